"""The datalist holds every scan once, with its lesion volume, in nested folds; what is wrong is said before writing."""

import json
import re
import runpy
import sys
from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import ROOT, TRAIN
from monai.bundle import ConfigParser

from scripts.common.errors import InputError
from scripts.data.cohort import load_cohort
from scripts.data.datalist import prepare_datalist
from scripts.data.datalist_schema import read_datalist
from tests.data.conftest import DESC, VOXEL, message, write_image, write_mask, write_scan

ARC_TREE = ROOT.parent / "shared" / "arc" / "ds004884_v1.0.2_tree.txt"


@pytest.fixture(scope="module")
def arc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ARC's real file names with tiny volumes: 1 to 228 voxels of lesion, in no order."""
    if not ARC_TREE.is_file():
        pytest.skip(f"ARC's file list is not here: {ARC_TREE}")
    root = tmp_path_factory.mktemp("arc") / "ds004884"
    paths = [path for path in ARC_TREE.read_text().split() if path.endswith(".nii.gz")]
    sizes = iter(1 + np.random.default_rng(0).permutation(228))
    write_image(root / "image.nii.gz")
    volume = (root / "image.nii.gz").read_bytes()
    for path in paths:
        if path.endswith(DESC):
            write_mask(root / path, int(next(sizes)))
        else:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_bytes(volume)
    (root / "dataset_description.json").write_text('{"Name": "Aphasia Recovery Cohort (ARC)"}')
    return root


@pytest.fixture(scope="module")
def arc_datalist(arc: Path) -> dict:
    return read_datalist(Path(prepare_datalist(str(arc))))


def spread(scans: list[dict], n_folds: int, key: object, fold_of: object = lambda scan: scan["fold"]) -> int:
    """The largest difference, over the values of ``key``, between two folds' numbers of scans with that value."""
    counts = Counter((key(scan), fold_of(scan)) for scan in scans)
    values = {key(scan) for scan in scans}
    return max(np.ptp([counts[value, fold] for fold in range(n_folds)]) for value in values)


def quartile(scans: list[dict]) -> dict[str, int]:
    order = sorted(scans, key=lambda scan: scan["lesion_volume"])
    return {scan["image"]: 4 * i // len(order) for i, scan in enumerate(order)}


# ---- the real cohort


def test_arc_has_223_space_scans(arc_datalist: dict):
    assert Counter(scan["acquisition"] for scan in arc_datalist["training"]) == {"spc3p2": 115, "spc3": 108}


def test_keep_tse_adds_arcs_five_tse_scans(arc: Path, tmp_path: Path):
    scans = read_datalist(Path(prepare_datalist(str(arc), keep_tse=True, output=tmp_path / "d.json")))["training"]
    assert Counter(scan["acquisition"] for scan in scans) == {"spc3p2": 115, "spc3": 108, "tse3": 5}
    tse = [scan for scan in scans if scan["acquisition"] == "tse3"]
    assert sorted(Counter(scan["fold"] for scan in tse).values()) == [1, 2, 2]


def test_every_arc_mask_is_beside_its_own_image(arc: Path, arc_datalist: dict):
    for scan in arc_datalist["training"]:
        assert scan["label"] == "derivatives/lesion_masks/" + scan["image"].replace(".nii.gz", DESC)
        assert (arc / scan["image"]).is_file()
        assert scan["image"].startswith(f"sub-{scan['subject']}/ses-{scan['session']}/anat/")
    assert len({scan["subject"] for scan in arc_datalist["training"]}) == 223


def test_arc_lesion_volumes_are_those_of_the_masks(arc: Path, arc_datalist: dict):
    for scan in arc_datalist["training"][::10]:
        assert scan["lesion_volume"] == VOXEL * (nib.load(arc / scan["label"]).get_fdata() > 0).sum()
    volumes = [scan["lesion_volume"] for scan in arc_datalist["training"]]
    assert len(set(volumes)) == 223


def test_arc_outer_folds_are_equal_and_balanced(arc_datalist: dict):
    scans = arc_datalist["training"]
    group = quartile(scans)
    assert sorted(Counter(scan["fold"] for scan in scans).values()) == [74, 74, 75]
    assert spread(scans, 3, lambda scan: scan["acquisition"]) <= 1
    # One scan at a quartile's border may count to either side of it.
    assert spread(scans, 3, lambda scan: group[scan["image"]]) <= 2
    assert spread(scans, 3, lambda scan: (scan["acquisition"], group[scan["image"]])) <= 2


@pytest.mark.parametrize("outer", [0, 1, 2])
def test_arc_inner_folds_are_equal_and_balanced(arc_datalist: dict, outer: int):
    scans = [scan for scan in arc_datalist["training"] if scan["fold"] != outer]
    group = quartile(arc_datalist["training"])
    inner = [scan["inner_folds"][outer] for scan in scans]
    assert sorted(set(inner)) == [0, 1, 2]
    assert np.ptp(list(Counter(inner).values())) <= 1
    assert spread(scans, 3, lambda scan: scan["acquisition"], lambda scan: scan["inner_folds"][outer]) <= 1
    key = lambda scan: (scan["acquisition"], group[scan["image"]])  # noqa: E731  a name for one use, twice
    assert spread(scans, 3, key, lambda scan: scan["inner_folds"][outer]) <= 2


def test_the_command_prints_what_the_folds_hold(arc: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    prepare_datalist(str(arc), output=str(tmp_path / "d.json"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Left out: 5 acq-tse scans (--keep_tse keeps them)"
    assert " ".join(lines[1].split()) == "fold subjects scans spc3 spc3p2 lesion volume in mL, median [min-max]"
    table = [line.split() for line in lines[2:6]]
    assert [row[0] for row in table] == ["0", "1", "2", "all"]
    assert table[3][1:5] == ["223", "223", "108", "115"]
    for column in range(1, 5):
        assert sum(int(row[column]) for row in table[:3]) == int(table[3][column])
    assert re.search(r"python -m monai.bundle run training .* --dataset_dir " + str(arc), lines[-1])


# ---- readers


def test_monai_reads_the_datalist(cohort: Path):
    from monai.data import load_decathlon_datalist

    scans = load_decathlon_datalist(prepare_datalist(str(cohort)), data_list_key="training")
    assert len(scans) == 12
    assert all(Path(scan[key]).is_file() for scan in scans for key in ("image", "label"))


def test_the_bundle_reads_the_datalist(cohort: Path):
    (cohort / "dataset_description.json").write_text('{"Name": "Ours", "Simulated": true}')
    datalist = prepare_datalist(str(cohort), spacing=(1, 2, 2.5), spatial_size=[16, 8, 8])
    split = load_cohort(str(cohort), datalist, 1, 2)
    assert (split.name, split.simulated) == ("Ours", True)
    assert (split.spacing, split.spatial_size) == ((1.0, 2.0, 2.5), (16, 8, 8))
    parts = [{scan["subject"] for scan in part} for part in (split.training, split.validation, split.test)]
    assert [len(part) for part in parts][2] == 4
    assert len(set.union(*parts)) == sum(len(part) for part in parts) == 12


def test_name_and_grid_have_defaults(cohort: Path):
    content = read_datalist(Path(prepare_datalist(str(cohort))))
    assert (content["name"], content["simulated"]) == ("cohort", False)
    assert (content["spacing"], content["spatial_size"], content["seed"]) == ([1.0] * 3, [256] * 3, 0)
    assert read_datalist(Path(prepare_datalist(str(cohort), name="Mine")))["name"] == "Mine"


@pytest.mark.slow
def test_a_grid_around_heads_is_the_smallest_that_holds_them(cohort: Path, capsys: pytest.CaptureFixture):
    random, steps = np.random.default_rng(0), json.loads(Path(TRAIN).read_text())["train"]["deterministic_transforms"]
    paths = sorted(cohort.glob("sub-*/**/*_T2w.nii.gz"))
    for i, path in enumerate(paths):
        shape, centre = (60, 70, 120), np.array([28, 39, 36]) + random.integers(-3, 4, 3)  # air above
        ras = np.indices(shape).transpose(1, 2, 3, 0)
        head = (((ras - centre) / (14, 18, 16 + i)) ** 2).sum(-1) < 1
        image = nib.Nifti1Image(500.0 * head + random.rayleigh(10, shape), np.diag([2, 1.5, 2.5, 1]))
        turned = image.as_reoriented(nib.io_orientation(np.diag([-1, 1, -1, 1]))[[2, 0, 1]])  # to another orientation
        nib.save(turned, path)
        mask = nib.Nifti1Image((turned.get_fdata() > 400).astype(np.uint8), turned.affine)
        nib.save(mask, cohort / "derivatives/lesion_masks" / path.relative_to(cohort).with_name(path.name[:-7] + DESC))
    content = read_datalist(Path(prepare_datalist(str(cohort), spacing=2, spatial_size="head")))
    size = content["spatial_size"]
    assert f"Grid: {size[0]}x{size[1]}x{size[2]} voxels, for the largest heads" in (out := capsys.readouterr().out)
    assert paths[-1].name in out
    assert all(n % 16 == 0 for n in size)
    extents = []
    for scan in content["training"]:
        masses = []
        for sides in (size, [128, 128, 160]):
            parser = ConfigParser({"steps": steps[1:7], "spacing": [2, 2, 2], "spatial_size": sides})
            parser["orientation"], parser["all"] = "RAS", {"_target_": "Compose", "transforms": "@steps"}
            item = parser.get_parsed_content("all")({key: str(cohort / scan[key]) for key in ("image", "label")})
            masses.append(int(item["label"].sum()))
            assert ((item["label"] > 0) ^ (item["image"] > 250)).sum() < 0.05 * masses[-1]  # they are cut alike
        assert masses[0] == masses[1] > 5_000
        found = np.nonzero(item["image"][0].numpy() > 250)
        extents.append([np.ptp(i) + 1 for i in found])
    assert (size >= np.max(extents, 0) + 12 - 1).all()  # resampling blurs half a voxel
    assert (size < np.max(extents, 0) + 12 + 16 + 2).all()


def test_a_grid_around_heads_is_no_larger_than_the_scans(cohort: Path):
    content = read_datalist(Path(prepare_datalist(str(cohort), spacing=1, spatial_size="head")))
    assert content["spatial_size"] == [16, 16, 16]  # they have 8 voxels of 2 mm, and no air


def test_scans_in_which_no_head_can_be_looked_for_are_named(cohort: Path):
    bad, worse, *_ = sorted(cohort.glob("sub-*/**/*_T2w.nii.gz"))
    bad.write_bytes(bad.read_bytes()[:200])
    image = nib.Nifti1Image(np.random.default_rng(0).random((8, 8, 8)), None)
    image.header.set_sform(np.diag([2.0, 0, 2, 1]), code=1)
    nib.save(image, worse)
    first, second = message(str(cohort), spatial_size="head").splitlines()
    assert first.startswith(f"{bad}: ")
    assert second == f"{worse}: its affine is not one of a scan (spacing 2x0x2 mm); repair the header"
    assert not (cohort / "datalist.json").exists()


# ---- folds


def test_the_seed_alone_decides_the_folds(cohort: Path, tmp_path: Path):
    texts = []
    for i, seed in enumerate((0, 0, 1)):
        texts.append(Path(prepare_datalist(str(cohort), seed=seed, output=str(tmp_path / f"{i}.json"))).read_text())
    assert texts[0] == texts[1]
    folds = [[(scan["fold"], scan["inner_folds"]) for scan in json.loads(text)["training"]] for text in texts]
    assert folds[0] != folds[2]


def test_a_subject_with_several_scans_is_in_one_fold(tmp_path: Path):
    for i in range(9):
        for session in range(1 + i % 3):
            write_scan(tmp_path, f"{i}", ("spc3", "spc3p2")[session % 2], str(session), n_voxels=1 + 20 * i + session)
    scans = read_datalist(Path(prepare_datalist(str(tmp_path))))["training"]  # which refuses a split subject
    assert len(scans) == 18
    assert len({(scan["subject"], scan["fold"], str(scan["inner_folds"])) for scan in scans}) == 9
    assert Counter(fold for _, fold in {(scan["subject"], scan["fold"]) for scan in scans}) == {0: 3, 1: 3, 2: 3}


def test_a_subject_is_stratified_by_its_largest_lesion(tmp_path: Path):
    for i in range(12):
        write_scan(tmp_path, f"{i:02}", session="1", n_voxels=100 + 10 * i)
        write_scan(tmp_path, f"{i:02}", session="2", n_voxels=1)
    scans = read_datalist(Path(prepare_datalist(str(tmp_path))))["training"]
    largest = [scan for scan in scans if scan["session"] == "1"]
    group = quartile(largest)
    assert spread(largest, 3, lambda scan: group[scan["image"]]) == 0


@pytest.mark.filterwarnings("error")
def test_rare_acquisitions_are_dealt_out_evenly(tmp_path: Path):
    for i in range(30):
        write_scan(tmp_path, f"{i:02}", "rare" if i % 10 == 0 else "spc3", n_voxels=1 + 10 * i)
    scans = read_datalist(Path(prepare_datalist(str(tmp_path))))["training"]
    assert sorted(scan["fold"] for scan in scans if scan["acquisition"] == "rare") == [0, 1, 2]
    assert set(Counter(scan["fold"] for scan in scans).values()) == {10}


@pytest.mark.filterwarnings("error")
def test_volume_alone_stratifies_where_every_stratum_is_rare(tmp_path: Path):
    for i in range(12):
        write_scan(tmp_path, f"{i:02}", f"scanner{i:02}", n_voxels=1 + 10 * i)
    scans = read_datalist(Path(prepare_datalist(str(tmp_path))))["training"]
    group = quartile(scans)
    assert spread(scans, 3, lambda scan: group[scan["image"]]) == 0


@pytest.mark.filterwarnings("error")
def test_the_smallest_cohort_that_can_be_nested_is_split(tmp_path: Path):
    for i in range(5):
        write_scan(tmp_path, f"{i}", f"scanner{i}", n_voxels=1 + 10 * i)
    scans = read_datalist(Path(prepare_datalist(str(tmp_path))))["training"]
    for outer in range(3):
        assert {scan["inner_folds"][outer] for scan in scans} == {None, 0, 1, 2}


def test_other_numbers_of_folds(cohort: Path):
    content = read_datalist(Path(prepare_datalist(str(cohort), outer_folds=4, inner_folds=2)))
    assert Counter(scan["fold"] for scan in content["training"]) == {0: 3, 1: 3, 2: 3, 3: 3}
    assert {fold for scan in content["training"] for fold in scan["inner_folds"]} == {None, 0, 1}


# ---- volumes


def test_a_scale_slope_below_one_half_is_still_lesion(cohort: Path):
    label = next(cohort.glob(f"derivatives/**/*{DESC}"))
    write_mask(label, 20, slope=1 / 60)
    assert nib.load(label).get_fdata().max() < 0.5
    scans = read_datalist(Path(prepare_datalist(str(cohort))))["training"]
    assert {scan["label"]: scan["lesion_volume"] for scan in scans}[str(label.relative_to(cohort))] == 20 * VOXEL


def test_volume_is_in_mm3_on_an_oblique_anisotropic_grid(cohort: Path):
    label = write_scan(cohort, "oblique")
    turn = np.array([[0, -0.8, 0.6], [0, 0.6, 0.8], [-1, 0, 0]])
    write_mask(cohort / label, 33, nib.affines.from_matvec(turn @ np.diag([0.5, 1.25, 3.0]), [5, 6, 7]))
    scans = read_datalist(Path(prepare_datalist(str(cohort))))["training"]
    volume = {scan["label"]: scan["lesion_volume"] for scan in scans}[label]
    assert volume == pytest.approx(33 * 0.5 * 1.25 * 3.0, abs=0.051)


def test_an_empty_mask_is_kept_and_named(cohort: Path, capsys: pytest.CaptureFixture):
    label = write_scan(cohort, "empty", n_voxels=0)
    scans = read_datalist(Path(prepare_datalist(str(cohort))))["training"]
    assert [scan["lesion_volume"] for scan in scans if scan["label"] == label] == [0]
    assert f"Warning: {label}: its lesion volume is 0" in capsys.readouterr().out.splitlines()


# ---- git-annex


def test_dangling_links_are_counted_with_the_command_that_fetches_them(cohort: Path):
    for file in [*cohort.glob(f"derivatives/**/*{DESC}"), *cohort.glob("sub-*/**/*_T2w.nii.gz")][:20]:
        file.unlink()
        file.symlink_to("../../../.git/annex/objects/xx/yy/MD5E-s1.nii.gz/MD5E-s1.nii.gz")
    assert message(str(cohort)) == (
        "20 of 24 files have no content here, only git-annex links: "
        f"cd {cohort} && datalad get derivatives/lesion_masks sub-*/ses-*/anat/*_T2w.nii.gz"
    )
    assert not (cohort / "datalist.json").exists()


def test_annex_pointer_files_count_as_missing_content(tmp_path: Path):
    root = tmp_path / "a dataset"
    for i in range(9):
        write_image(root / f"sub-{i}/anat/sub-{i}_T2w.nii.gz")
        write_mask(root / f"derivatives/manual/sub-{i}/anat/sub-{i}_desc-lesion_mask.nii.gz")
    for i in (3, 7):
        (root / f"sub-{i}/anat/sub-{i}_T2w.nii.gz").write_text("/annex/objects/MD5E-s123--abc.nii.gz\n")
    assert message(str(root)) == (
        f"2 of 18 files have no content here, only git-annex links: cd '{root}' && datalad get sub-*/anat/*_T2w.nii.gz"
    )


# ---- bad input


def test_a_missing_folder_is_named(tmp_path: Path):
    assert message(str(tmp_path / "nope")) == f"dataset_dir {tmp_path}/nope: no such folder"
    assert message().startswith("give --dataset_dir")
    assert message(csv="a.csv", labels="masks") == "give --csv, which names the masks, or --labels, not both"


def test_a_cohort_of_tse_scans_only_says_how_to_keep_them(tmp_path: Path):
    for i in range(9):
        write_scan(tmp_path, f"{i}", "tse3")
    assert message(str(tmp_path)) == "all 9 scans are acq-tse; --keep_tse keeps them"


def test_every_unreadable_mask_is_named_at_once(cohort: Path):
    masks = sorted(cohort.glob(f"derivatives/**/*{DESC}"))
    masks[1].write_bytes(masks[1].read_bytes()[:60])
    masks[5].write_text("hello")
    lines = message(str(cohort)).splitlines()
    assert [line.split(": ")[0] for line in lines] == [str(masks[1]), str(masks[5])]
    assert not (cohort / "datalist.json").exists()


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("outer_folds", 1, "outer_folds 1: expected a whole number, at least 2"),
        ("inner_folds", 0, "inner_folds 0: expected a whole number, at least 2"),
        ("outer_folds", 3.0, "outer_folds 3.0: expected a whole number, at least 2"),
        ("seed", "a", "seed a: expected a whole number, at least 0"),
        ("seed", -1, "seed -1: expected a whole number, at least 0"),
        ("spacing", 0, "spacing 0: expected a positive number of mm, or three"),
        ("spacing", (1, 1), "spacing (1, 1): expected a positive number of mm, or three"),
        ("spacing", (1, 1, -2.0), "spacing (1, 1, -2.0): expected a positive number of mm, or three"),
        ("spacing", float("nan"), "spacing nan: expected a positive number of mm, or three"),
        ("spatial_size", 25.6, "spatial_size 25.6: expected a positive whole number of voxels, three, or head"),
        ("spatial_size", "heads", "spatial_size heads: expected a positive whole number of voxels, three, or head"),
        ("spatial_size", True, "spatial_size True: expected a positive whole number of voxels, three, or head"),
        ("outer_folds", 13, "12 subjects are too few for 13 outer and 3 inner folds"),
        ("inner_folds", 9, "12 subjects are too few for 3 outer and 9 inner folds"),
    ],
)
def test_options_out_of_range_are_refused(cohort: Path, option: str, value: object, expected: str):
    assert message(str(cohort), **{option: value}) == expected
    assert not (cohort / "datalist.json").exists()


def test_an_output_that_cannot_be_written_is_refused_before_reading(cohort: Path):
    output = cohort / "no" / "datalist.json"
    assert message(str(cohort), output=str(output)) == f"{output}: cannot be written; give another file as --output"
    assert message(str(cohort), output=str(cohort)) == f"{cohort}: cannot be written; give another file as --output"


def test_a_broken_dataset_description_is_named(cohort: Path):
    (cohort / "dataset_description.json").write_text("{")
    assert message(str(cohort)).startswith(f"{cohort}/dataset_description.json: not JSON (")
    (cohort / "dataset_description.json").write_text('["a list"]')
    assert (
        message(str(cohort))
        == f"{cohort}/dataset_description.json: ['a list'] is not of type 'object'; repair or delete it"
    )


def test_a_failure_while_writing_leaves_the_old_file_and_no_other(cohort: Path, monkeypatch: pytest.MonkeyPatch):
    before = Path(prepare_datalist(str(cohort))).read_text()
    files = sorted(cohort.iterdir())

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full_disk)
    with pytest.raises(InputError, match=r"datalist.json: cannot be written \(No space left on device\)"):
        prepare_datalist(str(cohort), seed=1)
    assert sorted(cohort.iterdir()) == files
    assert (cohort / "datalist.json").read_text() == before


# ---- the command line


def command(monkeypatch: pytest.MonkeyPatch, cwd: Path, *args: object) -> None:
    """What a user runs, in this process; the exception hook that it sets is undone with ``monkeypatch``."""
    monkeypatch.chdir(cwd)
    monkeypatch.setattr(sys, "argv", ["prepare_datalist.py", *map(str, args)])
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(sys, "path", [*sys.path])
    runpy.run_path(str(ROOT / "scripts" / "prepare_datalist.py"), run_name="__main__")


def test_the_command_runs_from_any_directory(
    cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    command(monkeypatch, tmp_path, "--dataset_dir", "cohort", "--spacing", "2,2,3", "--spatial_size", 64, "--keep_tse")
    content = read_datalist(cohort / "datalist.json")
    assert (content["spacing"], content["spatial_size"]) == ([2.0, 2.0, 3.0], [64, 64, 64])
    next_command = "python -m monai.bundle run training --config_file configs/train.json --dataset_dir"
    assert capsys.readouterr().out.splitlines()[-1] == f"Next: {next_command} {cohort}"


def test_bad_input_is_one_line_on_stderr_and_status_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    with pytest.raises(InputError) as error:  # Python exits with 1 after any exception
        command(monkeypatch, tmp_path, "nope")
    sys.excepthook(error.type, error.value, error.tb)
    assert capsys.readouterr() == ("", f"dataset_dir {tmp_path}/nope: no such folder\n")
