"""A lesion's volume is its voxels times the voxel's volume, in the scan's own grid, however that is turned."""

from pathlib import Path

import pandas
import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor
from scipy.spatial.transform import Rotation

from scripts.lesion_volumes import LesionVolumes


@pytest.mark.parametrize("simulated", [True, False])
def test_volume_on_an_oblique_anisotropic_grid(
    tmp_path: Path, capsys: pytest.CaptureFixture, caplog: pytest.LogCaptureFixture, simulated: bool
) -> None:
    affine = torch.eye(4, dtype=torch.float64)
    turned = Rotation.from_euler("xyz", [20, -30, 40], degrees=True).as_matrix()
    affine[:3, :3] = torch.tensor(turned) @ torch.diag(torch.tensor([-0.5, 1.5, 4.0], dtype=torch.float64))
    mask = torch.zeros(1, 8, 8, 8)
    mask[0, :5, :5, :5] = 1
    item = {"pred": MetaTensor(mask, affine=affine, meta={"filename_or_obj": "/data/sub-1_T2w.nii.gz"})}
    engine = Engine(lambda engine, batch: [item])
    LesionVolumes(str(tmp_path), {"channels": 26, "simulated": simulated}).attach(engine)
    with caplog.at_level("INFO"):
        engine.run([0])
    table = pandas.read_csv(tmp_path / "lesion_volumes.csv")
    assert table["image"].tolist() == ["/data/sub-1_T2w.nii.gz"]
    assert table["lesion_voxels"].tolist() == [125]
    assert table["lesion_volume_mm3"].tolist() == [125 * 0.5 * 1.5 * 4]
    assert "sub-1_T2w.nii.gz: lesion 375 mm3 (0.4 mL)" in capsys.readouterr().out
    assert ("SIMULATED" in caplog.text) is simulated


def test_every_scan_is_a_row_also_without_a_lesion_and_a_new_run_starts_anew(tmp_path: Path) -> None:
    def item(name: str, value: int) -> dict:
        mask = torch.full((1, 2, 3, 4), float(value))
        return {"pred": MetaTensor(mask, affine=torch.eye(4), meta={"filename_or_obj": f"/data/{name}.nii.gz"})}

    batches = [[item("a", 1)], [item("b", 0), item("c", 2)]]
    for _ in range(2):
        engine = Engine(lambda engine, batch: batch)
        LesionVolumes(str(tmp_path / "new"), {}).attach(engine)
        engine.run(batches)
    table = pandas.read_csv(tmp_path / "new" / "lesion_volumes.csv")
    assert table["image"].tolist() == [f"/data/{name}.nii.gz" for name in "abc"]
    assert table["lesion_voxels"].tolist() == [24, 0, 24]
    assert table["lesion_volume_mm3"].tolist() == [24, 0, 24]
