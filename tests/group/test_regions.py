"""Lesions by region are what one counts by hand; atlases of another space and tables that do not fit are refused."""

import json
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas
import pytest
from conftest import REAL

from scripts.common.errors import InputError
from scripts.common.files import sha256
from scripts.group import regions, spaces
from scripts.group.regions import read_labels, write_overlap, write_regions
from scripts.group.spaces import TEMPLATE, in_mni, in_space, sidecar_of, template
from scripts.inference.derivative import NAME

ATLAS = REAL / "atlas"
SHAPE, AFFINE = (49, 58, 47), np.array([[4.0, 0, 0, -96], [0, 4, 0, -134], [0, 0, 4, -72], [0, 0, 0, 1]])
TABLE = "index\tname\n1\tright box\n2\tmiddle\n3\tleft box\n"
DATA = np.zeros(SHAPE, np.uint8)
DATA[28:38, 25:33, 20:25] = 1  # x from 16 to 52 mm: 10 x 8 x 5 voxels of 64 mm3
DATA[23:26, 15:18, 20:22] = 2
DATA[11:21, 25:33, 20:25] = 3  # x from -52 to -16 mm
LESION = np.s_[6:16, 25:33, 20:25]  # half of it in label 3


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A template of 4 mm whose brain is a box."""
    brain = np.zeros(SHAPE, np.uint8)
    brain[5:44, 8:50, 5:42] = 1
    images = tuple(nib.Nifti1Image(brain * value, AFFINE) for value in (np.uint8(100), np.uint8(1)))
    for module in (regions, spaces):
        monkeypatch.setattr(module, "template", lambda resolution: images)


@pytest.fixture
def cohort(tmp_path: Path) -> Callable[..., list[dict]]:
    """Write masks in MNI space beside their native ones, and give their rows; ``fits`` is how well each fits."""

    def make(*masks: np.ndarray, fits: tuple[float, ...] = ()) -> list[dict]:
        rows = []
        for i, mask in enumerate(masks, 1):
            native = tmp_path / f"sub-{i}" / "anat" / f"sub-{i}_desc-lesion_mask.nii.gz"
            native.parent.mkdir(parents=True)
            native.write_bytes(f"native {i}".encode())
            moved = in_space(native, TEMPLATE)
            moved.write_bytes(in_mni(mask.astype(np.uint8)))
            fit = fits[i - 1] if fits else 0.9
            about = {"GeneratedBy": [{"Name": NAME}], "NativeMaskSHA256": sha256(native)}
            sidecar_of(moved).write_text(json.dumps({**about, "Fit": fit, "PoorFit": fit < 0.5}))
            rows.append({"participant_id": f"sub-{i}", "mask": native.relative_to(tmp_path).as_posix()})
        return rows

    return make


def box(places: tuple[slice, ...] = LESION, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    mask = np.zeros(shape, np.uint8)
    mask[places] = 1
    return mask


def atlas_of(folder: Path, data: np.ndarray = DATA, affine: np.ndarray = AFFINE, table: str = TABLE) -> tuple:
    nib.save(nib.Nifti1Image(data, affine), folder / "atlas.nii.gz")
    (folder / "atlas.tsv").write_text(table)
    return folder / "atlas.nii.gz", folder / "atlas.tsv"


def read(path: Path) -> pandas.DataFrame:
    return pandas.read_csv(path, sep="\t", keep_default_na=False, na_values=["n/a"])


@pytest.mark.usefixtures("small")
def test_volumes_and_shares_are_those_counted_by_hand_and_pairs_lie_side_by_side(
    tmp_path: Path, cohort: Callable
) -> None:
    rows = cohort(box(), box(np.s_[24:35, 15:16, 20:21]))
    table = read(write_regions(tmp_path, rows, *atlas_of(tmp_path)))
    first, second = table[table.participant_id == "sub-1"], table[table.participant_id == "sub-2"]
    assert [*first.region] == ["left box", "right box", "middle", "in no region"] == [*second.region]
    assert [*first.hemisphere.fillna("")] == ["L", "R", "", ""]
    assert [*first.pair] == ["box", "box", "middle", "in no region"]
    assert [*first.region_volume[:3]] == [400 * 64, 400 * 64, 18 * 64]
    assert [*first.lesion_volume] == [200 * 64, 0, 0, 200 * 64]
    assert [*first.share_of_region[:3]] == [0.5, 0, 0]
    assert [*first.share_of_lesion] == [0.5, 0, 0, 0.5]
    assert [*second.lesion_volume] == [0, 0, 2 * 64, 9 * 64]  # of 11 voxels in a row
    assert [*second.share_of_lesion] == pytest.approx([0, 0, 2 / 11, 9 / 11], abs=1e-6)
    assert {*json.loads((tmp_path / "group" / "regions.json").read_text())} >= {*table}


@pytest.mark.usefixtures("small")
def test_an_atlas_on_a_finer_grid_that_is_turned_keeps_its_volumes_and_the_lesions(
    tmp_path: Path, cohort: Callable
) -> None:
    fine = DATA.repeat(2, 0).repeat(2, 1).repeat(2, 2)[::-1]  # of 2 mm, from right to left
    affine = np.array([[-2.0, 0, 0, 97], [0, 2, 0, -135], [0, 0, 2, -73], [0, 0, 0, 1]])
    table = read(write_regions(tmp_path, cohort(box()), *atlas_of(tmp_path, fine, affine)))
    assert table.lesion_volume.sum() == 400 * 64
    assert [*table.region_volume[:3]] == [400 * 64, 400 * 64, 18 * 64]
    assert [*table.share_of_lesion] == [0.5, 0, 0, 0.5]


def test_tables_of_both_forms_say_the_same(tmp_path: Path) -> None:
    forms = {
        "a.tsv": "index\tname\n0\tbackground\n5\tLeft-Putamen\n12\tRight-Putamen\n7\tlesser wing\n",
        "b.txt": "5|Left-Putamen\n12|Right-Putamen\n7|lesser wing\n",
        "c.txt": "5|PUL|Left-Putamen|1\n12|PUL|Right-Putamen|2\n7|LW|lesser wing|3\n",  # an abbreviation is wrong
    }
    read = []
    for name, text in forms.items():
        (tmp_path / name).write_text(text)
        read.append(read_labels(tmp_path / name))
    for table in read:
        assert [*table["index"]] == [5, 12, 7, 0]
        assert [*table.hemisphere[:2]] == ["L", "R"]
        assert [*table.pair[:3]] == ["Putamen", "Putamen", "lesser wing"]
        pandas.testing.assert_frame_equal(table, read[0])


@pytest.mark.usefixtures("small")
def test_a_scan_that_is_given_as_an_atlas_is_a_line_that_one_can_read(tmp_path: Path, cohort: Callable) -> None:
    scan = np.arange(DATA.size, dtype=np.int32).reshape(SHAPE)
    with pytest.raises(InputError, match=r"has no name for label 2, 4, 5, .* … of atlas.nii.gz$") as error:
        write_regions(tmp_path, cohort(box()), *atlas_of(tmp_path, scan, table="1|a\n3|b\n"))
    assert len(str(error.value)) < 400


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("table", "line"),
    [
        ("index\tname\n1\ta\n3\tb\n", "has no name for label 2 of atlas.nii.gz"),
        ("index\tname\n1\ta\n1\tb\n", "label 1 is there twice"),
        ("index\tregion\n1\ta\n", "no column name"),
        ("1.5|a\n", "'1.5': expected a whole number"),
        (TABLE.replace("left", "LEFT").replace("right", "left").replace("LEFT", "right"), "lies on the other side"),
    ],
    ids=["label without a name", "twice", "column", "number", "mirrored"],
)
def test_a_table_that_does_not_fit_its_atlas_is_refused(
    tmp_path: Path, cohort: Callable, table: str, line: str
) -> None:
    rows = cohort(box())
    with pytest.raises(InputError, match=line) as error:
        write_regions(tmp_path, rows, *atlas_of(tmp_path, table=table))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "group").exists()


@pytest.mark.usefixtures("small")
def test_an_atlas_that_is_not_in_mni_space_is_refused(tmp_path: Path, cohort: Callable) -> None:
    rows = cohort(box())
    away = AFFINE + np.array([[0, 0, 0, 0], [0, 0, 0, 90], [0, 0, 0, 40], [0] * 4])
    with pytest.raises(
        InputError, match=r"of its labelled voxels lie in the brain of MNI152NLin2009aSym, expected 80%"
    ):
        write_regions(tmp_path, rows, *atlas_of(tmp_path, affine=away))
    with pytest.raises(InputError, match="expected whole numbers from 0 on"):
        write_regions(tmp_path, rows, *atlas_of(tmp_path, DATA * np.float32(0.4)))
    with pytest.raises(InputError, match="--atlas_labels is missing"):
        write_regions(tmp_path, rows, atlas_of(tmp_path)[0], None)


@pytest.mark.usefixtures("small")
def test_what_is_rejected_older_than_its_mask_or_in_no_mni_space_counts_nowhere(
    tmp_path: Path, cohort: Callable, caplog: pytest.LogCaptureFixture
) -> None:
    rows = cohort(*[box()] * 4)
    rows[0]["decision"] = "reject"
    (tmp_path / rows[1]["mask"]).write_bytes(b"corrected since")
    in_space(tmp_path / rows[2]["mask"], TEMPLATE).unlink()
    table = read(write_regions(tmp_path, rows, *atlas_of(tmp_path)))
    assert {*table.participant_id} == {"sub-4"}
    assert "is of an older sub-2_desc-lesion_mask.nii.gz; run participant" in caplog.text
    with pytest.raises(InputError, match=f"no mask in {TEMPLATE}; run participant"):
        write_regions(tmp_path, rows[:3], *atlas_of(tmp_path))
    assert write_overlap(tmp_path, rows[:3]) is None


@pytest.mark.usefixtures("small")
def test_the_overlap_counts_scans_that_fit(tmp_path: Path, cohort: Callable) -> None:
    boxes = [box(np.s_[a : a + 5, 25:33, 20:25]) for a in (12, 15, 15, 35)]
    picture = write_overlap(tmp_path, cohort(*boxes, fits=(0.9, 0.8, 0.7, 0.2)))
    image = nib.load(tmp_path / "group" / "overlap_mask.nii.gz")
    np.testing.assert_array_equal(image.get_fdata(), sum(boxes[:3]))
    np.testing.assert_allclose(image.affine, AFFINE)
    assert image.header["sform_code"] == 4  # NIfTI's code of MNI 152
    about = json.loads((tmp_path / "group" / "overlap_mask.json").read_text())
    assert (about["Scans"], about["Largest"], about["SpatialReference"]) == (3, 3, TEMPLATE)
    assert about["Sources"][0] == f"bids::sub-1/anat/sub-1_space-{TEMPLATE}_desc-lesion_mask.nii.gz"
    assert picture.read_bytes()[:4] == b"\x89PNG"


def test_the_template_is_the_symmetric_one_that_its_name_says() -> None:
    """Its voxels are those of their mirror images, and its grid is that of TemplateFlow's tpl-MNI152NLin2009aSym."""
    scan, brain = template(1)
    assert scan.shape == brain.shape == (197, 233, 189)
    np.testing.assert_array_equal(scan.affine, nib.affines.from_matvec(np.eye(3), [-98, -134, -72]))
    data = np.asarray(scan.dataobj)
    np.testing.assert_array_equal(data, data[::-1])
    assert 1.7e6 < np.asarray(brain.dataobj).sum() < 2.0e6  # mm3, a large brain


@pytest.mark.slow  # on the template's own grid
@pytest.mark.skipif(not ATLAS.is_dir(), reason="the arterial atlas is not beside this checkout")
def test_the_arterial_atlas_has_each_territory_beside_that_of_the_other_side(tmp_path: Path, cohort: Callable) -> None:
    rows = cohort(box(np.s_[58:78, 100:130, 80:100], (197, 233, 189)))
    atlas, labels = ATLAS / "ArterialAtlas136.nii.gz", ATLAS / "ArterialAtlas136.txt"
    table = read(write_regions(tmp_path, rows, atlas, labels))
    assert [*table.hemisphere[:-1]] == ["L", "R"] * 16
    other = table.pair[:-1].str.replace("anteior", "anterior")  # its spelling differs on one side
    assert [*other[::2]] == [*other[1::2]]
    true = np.asarray(nib.load(atlas).dataobj)
    assert table.region_volume[:-1].sum() == pytest.approx(np.count_nonzero(true), rel=0.02)
    assert table.lesion_volume.sum() == 12_000
