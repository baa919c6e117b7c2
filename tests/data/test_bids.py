"""Masks are paired with the scans they were drawn on, predictions are no truth, and a table takes any layout."""

import json
from pathlib import Path

import pytest

from scripts.data.cohort import load_cohort
from scripts.data.datalist import prepare_datalist
from scripts.data.datalist_schema import read_datalist
from tests.data.conftest import DESC, VOXEL, message, write_image, write_mask

# ---- names of files


@pytest.mark.parametrize(
    "ending", ["desc-lesion_mask", "label-lesion_mask", "space-orig_desc-lesion_mask", "space-orig_label-lesion_mask"]
)
@pytest.mark.parametrize("extension", [".nii.gz", ".nii"])
def test_standard_bids_names_without_sessions(tmp_path: Path, ending: str, extension: str):
    for i in range(9):
        write_image(tmp_path / f"sub-{i}/anat/sub-{i}_run-2_FLAIR{extension}")
        write_mask(tmp_path / f"derivatives/manual/sub-{i}/anat/sub-{i}_run-2_{ending}{extension}", 1 + i)
    scans = read_datalist(Path(prepare_datalist(str(tmp_path), suffix="FLAIR")))["training"]
    assert [scan["image"] for scan in scans] == [f"sub-{i}/anat/sub-{i}_run-2_FLAIR{extension}" for i in range(9)]
    assert [scan["lesion_volume"] for scan in scans] == [VOXEL * (1 + i) for i in range(9)]
    assert {(scan["session"], scan["acquisition"]) for scan in scans} == {(None, None)}


def test_contrasts_are_the_files_of_the_same_name_but_for_the_suffix(cohort: Path):
    write_image(cohort / "sub-00/ses-1/anat/sub-00_ses-1_acq-spc3_T1w.nii.gz")
    write_image(cohort / "sub-00/ses-1/anat/sub-00_ses-1_acq-other_FLAIR.nii.gz")
    scans = read_datalist(Path(prepare_datalist(str(cohort), contrasts=["T1w"])))["training"]
    stem = "sub-00/ses-1/anat/sub-00_ses-1_acq-spc3"
    assert scans[0]["contrasts"] == {name: f"{stem}_{name}.nii.gz" for name in ("T2w", "T1w")}
    assert [*scans[1]["contrasts"]] == ["T2w"]
    assert "contrasts" not in read_datalist(Path(prepare_datalist(str(cohort))))["training"][0]


def test_a_contrast_that_no_scan_has_is_a_line(cohort: Path):
    line = "contrasts T9w: none of the 12 scans has one; is it the BIDS suffix?"
    assert message(dataset_dir=str(cohort), contrasts="T9w") == line
    assert not (cohort / "datalist.json").exists()


def test_contrasts_of_a_table_are_its_columns(tmp_path: Path):
    rows = ["image,label,T1w"]
    for i in range(9):
        write_image(tmp_path / f"{i}.nii.gz")
        write_mask(tmp_path / f"{i}_mask.nii.gz", 1 + i)
        rows.append(f"{i}.nii.gz,{i}_mask.nii.gz,{'t1.nii.gz' if i == 3 else ''}")
    (tmp_path / "table.csv").write_text("\n".join(rows))
    assert message(csv=str(tmp_path / "table.csv"), contrasts="T1w").endswith("row 5: T1w 't1.nii.gz' does not exist")
    assert "no column FLAIR" in message(csv=str(tmp_path / "table.csv"), contrasts=["FLAIR"])
    write_image(tmp_path / "t1.nii.gz")
    scans = read_datalist(Path(prepare_datalist(csv=str(tmp_path / "table.csv"), contrasts="T1w")))["training"]
    assert [scan.get("contrasts") for scan in scans] == [None] * 3 + [{"T1w": "t1.nii.gz"}] + [None] * 5


def test_masks_drawn_on_another_contrast_are_not_this_cohort(cohort: Path):
    write_mask(cohort / f"derivatives/lesion_masks/sub-00/ses-1/anat/sub-00_ses-1_T1w{DESC}")
    assert len(read_datalist(Path(prepare_datalist(str(cohort))))["training"]) == 12
    assert "no lesion mask of bold scans" in message(str(cohort), suffix="bold")


def test_masks_without_an_image_are_named_up_to_ten(cohort: Path):
    for image in cohort.glob("sub-*/**/*_T2w.nii.gz"):
        image.unlink()
    lines = message(str(cohort)).splitlines()
    assert len(lines) == 11
    assert lines[0] == (
        "derivatives/lesion_masks/sub-00/ses-1/anat/sub-00_ses-1_acq-spc3_T2w_desc-lesion_mask.nii.gz: "
        "image 'sub-00/ses-1/anat/sub-00_ses-1_acq-spc3_T2w.nii.gz' does not exist"
    )
    assert lines[10] == "and 2 more"


def test_a_mask_in_template_space_is_not_paired_with_the_native_image(cohort: Path):
    name = "sub-00_ses-1_acq-spc3_space-MNI152_desc-lesion_mask.nii.gz"
    write_mask(cohort / "derivatives/warped/sub-00/ses-1/anat" / name)
    assert message(str(cohort)) == (
        f"derivatives/warped/sub-00/ses-1/anat/{name}: "
        "image 'sub-00/ses-1/anat/sub-00_ses-1_acq-spc3_space-MNI152_T2w.nii.gz' does not exist"
    )


def test_two_masks_of_one_image_are_refused(cohort: Path):
    write_mask(cohort / "derivatives/rater2/sub-00/ses-1/anat/sub-00_ses-1_acq-spc3_desc-lesion_mask.nii.gz")
    assert message(str(cohort)).endswith(
        "_T2w.nii.gz' has another mask already; --labels takes the masks of one folder"
    )
    prepare_datalist(str(cohort), labels="derivatives/lesion_masks")
    scans = read_datalist(cohort / "datalist.json")["training"]
    assert {scan["label"].split("/")[1] for scan in scans} == {"lesion_masks"}


def test_masks_that_a_reader_rejected_or_that_lie_in_another_space_are_no_labels(
    cohort: Path, capsys: pytest.CaptureFixture
):
    """Rejected by the page of the derivative that they lie in; those of another space lie beside the scan's own."""
    prepare_datalist(str(cohort))
    before = read_datalist(cohort / "datalist.json")["training"]
    folder = cohort / "derivatives" / "lesion_masks"
    gone, moved = (Path(scan["label"]).relative_to("derivatives/lesion_masks") for scan in before[:2])
    (folder / "group").mkdir()
    (folder / "group" / "decisions.tsv").write_text(f"mask\tdecision\tnote\n{gone}\treject\t\n{moved}\tcorrect\t\n")
    write_mask(folder / moved.parent / moved.name.replace("_desc", "_space-MNI152NLin2009cAsym_desc"))
    capsys.readouterr()
    prepare_datalist(str(cohort))
    line = f"Left out: 1 masks that group/decisions.tsv rejects, such as {before[0]['label']}"
    assert line in capsys.readouterr().out.splitlines()
    assert [scan["label"] for scan in read_datalist(cohort / "datalist.json")["training"]] == [
        scan["label"] for scan in before[1:]
    ]


# ---- predictions are no truth

OURS = {"Name": "MeshNet stroke lesion segmentation", "Version": "0.4.0"}


def predict(cohort: Path, folder: str = "derivatives/meshnet") -> list[Path]:
    """Masks as inference writes them, of other sizes than the true ones."""
    masks = []
    for image in sorted(cohort.glob("sub-*/**/*_T2w.nii.gz")):
        name = image.name.replace("_T2w.nii.gz", DESC)
        masks.append(cohort / folder / image.parent.relative_to(cohort) / name)
        write_mask(masks[-1], 300)
    return masks


def describe(folder: Path, *makers: object, **more: object) -> None:
    (folder / "dataset_description.json").write_text(json.dumps({"GeneratedBy": makers, **more}))


@pytest.mark.parametrize("told_by", ["description", "sidecars"])
def test_predicted_masks_never_become_labels_by_themselves(cohort: Path, told_by: str, capsys: pytest.CaptureFixture):
    before = Path(prepare_datalist(str(cohort))).read_text()
    masks = predict(cohort)
    if told_by == "description":
        describe(cohort / "derivatives/meshnet", OURS, DatasetType="derivative")
    for mask in masks * (told_by == "sidecars"):
        sidecar = {"Type": "Lesion", "GeneratedBy": [OURS]}
        mask.with_name(mask.name.replace(".nii.gz", ".json")).write_text(json.dumps(sidecar))
    capsys.readouterr()
    assert Path(prepare_datalist(str(cohort))).read_text() == before
    assert capsys.readouterr().out.splitlines()[0] == (
        "Left out: 12 masks in derivatives/meshnet, made by MeshNet stroke lesion segmentation "
        "(--labels derivatives/meshnet takes them)"
    )
    for label in cohort.glob("derivatives/lesion_masks/**/*.nii.gz"):
        label.unlink()
    assert message(str(cohort)).startswith(f"{cohort}: no lesion mask that people drew of T2w scans; looked for deriv")


def test_software_is_known_by_the_words_of_older_bids_too(cohort: Path):
    about = {"PipelineDescription": {"Name": "LesionNet", "Version": "2"}}
    (cohort / "derivatives/lesion_masks/dataset_description.json").write_text(json.dumps(about))
    assert "no lesion mask that people drew" in message(str(cohort))


@pytest.mark.parametrize(
    ("sidecar", "taken"),
    [
        ("desc-lesion_mask.json", False),
        ("mask.json", False),
        ("sub-00/sub-00_desc-lesion_mask.json", None),
        ("desc-lesion_probseg.json", True),
        ("sub-99_desc-lesion_mask.json", True),
    ],
)
def test_a_sidecar_is_inherited_from_the_folders_above(
    cohort: Path, sidecar: str, taken: bool | None, capsys: pytest.CaptureFixture
):
    """None: that of one subject, whose scan alone is left out."""
    (cohort / "derivatives/lesion_masks" / sidecar).write_text(json.dumps({"GeneratedBy": [{"Name": "LesionNet"}]}))
    if taken is False:
        assert "no lesion mask that people drew" in message(str(cohort))
        return
    scans = read_datalist(Path(prepare_datalist(str(cohort))))["training"]
    assert len(scans) == (12 if taken else 11)
    assert ("made by LesionNet" in capsys.readouterr().out) is not taken


def test_of_inherited_sidecars_the_nearest_wins(cohort: Path):
    root = cohort / "derivatives/lesion_masks"
    (root / "desc-lesion_mask.json").write_text(json.dumps({"GeneratedBy": [{"Name": "LesionNet"}], "Manual": False}))
    for mask in root.glob("**/*_mask.nii.gz"):
        mask.with_name(mask.name.replace(".nii.gz", ".json")).write_text('{"Manual": true}')
    assert len(read_datalist(Path(prepare_datalist(str(cohort))))["training"]) == 12


@pytest.mark.parametrize(
    ("maker", "taken"),
    [
        ({"Name": "nnU-Net"}, False),
        ("fsl", False),
        ({"Name": "Manual segmentation"}, True),
        ({"Name": "lab", "Description": "drawn manually"}, True),
        ({"Name": "scripts/simulate_cohort.py"}, True),
    ],
)
def test_masks_of_people_and_of_simulations_are_labels(cohort: Path, maker: object, taken: bool):
    describe(cohort / "derivatives/lesion_masks", maker)
    if taken:
        assert len(read_datalist(Path(prepare_datalist(str(cohort))))["training"]) == 12
    else:
        assert "no lesion mask that people drew of T2w scans" in message(str(cohort))


def test_a_sidecar_that_says_manual_wins_and_what_made_the_raw_data_does_not_matter(cohort: Path):
    describe(cohort, OURS, DatasetType="raw")
    describe(cohort / "derivatives/lesion_masks", {"Name": "some pipeline"})
    for mask in cohort.glob(f"derivatives/**/*{DESC}"):
        mask.with_name(mask.name.replace(".nii.gz", ".json")).write_text('{"Manual": true}')
    assert len(read_datalist(Path(prepare_datalist(str(cohort))))["training"]) == 12


def test_predictions_are_labels_where_one_names_them_and_that_is_said(cohort: Path, capsys: pytest.CaptureFixture):
    predict(cohort)
    describe(cohort / "derivatives/meshnet", OURS)
    for labels in ("derivatives/meshnet", str(cohort / "derivatives/meshnet/")):
        scans = read_datalist(Path(prepare_datalist(str(cohort), labels=labels)))["training"]
        assert {scan["lesion_volume"] for scan in scans} == {300 * VOXEL}
        assert capsys.readouterr().out.splitlines()[0] == (
            "Warning: 12 masks were made by MeshNet stroke lesion segmentation: predictions, taken as the truth"
        )


def test_a_folder_of_labels_that_is_not_there_is_named_with_those_that_are(cohort: Path):
    predict(cohort)
    assert message(str(cohort), labels="masks") == (
        f"labels masks: no such folder in {cohort} or here; "
        "its derivatives are: derivatives/lesion_masks, derivatives/meshnet"
    )


def test_a_broken_sidecar_is_named(cohort: Path):
    sidecar = next(cohort.glob(f"derivatives/**/*{DESC}"))
    sidecar = sidecar.with_name(sidecar.name.replace(".nii.gz", ".json"))
    sidecar.write_text("{")
    assert message(str(cohort)).startswith(f"{sidecar}: not JSON (")


def test_a_folder_without_masks_says_what_was_looked_for(tmp_path: Path):
    write_image(tmp_path / "sub-1/anat/sub-1_T2w.nii.gz")
    assert message(str(tmp_path)) == (
        f"{tmp_path}: no lesion mask of T2w scans; looked for derivatives/**/*lesion*mask.nii.gz or .nii, such as "
        "derivatives/lesion_masks/sub-1/anat/sub-1_T2w_desc-lesion_mask.nii.gz; --csv takes other layouts"
    )


# ---- CSV


def write_csv(folder: Path, header: str, rows: list[str]) -> str:
    path = folder / "scans.csv"
    path.write_text("\n".join([header, *rows]) + "\n")
    return str(path)


def test_a_csv_with_every_column_is_taken_at_its_word(tmp_path: Path):
    rows = []
    for i in range(9):
        write_image(tmp_path / f"data/{i}.nii.gz")
        write_mask(tmp_path / f"elsewhere/{i}.nii", 1 + i)
        rows.append(f"{i}.nii.gz,{tmp_path}/elsewhere/{i}.nii,sub-P{i // 2},{i % 2},{'ab'[i % 2]}")
    csv = write_csv(tmp_path, "image,label,subject,session,acquisition", rows)
    path = prepare_datalist(str(tmp_path / "data"), csv=csv, inner_folds=2)
    assert path == str(tmp_path / "data/datalist.json")
    scans = read_datalist(Path(path))["training"]
    assert [scan["image"] for scan in scans] == [f"{i}.nii.gz" for i in range(9)]
    assert [scan["label"] for scan in scans] == [f"{tmp_path}/elsewhere/{i}.nii" for i in range(9)]
    assert [scan["subject"] for scan in scans] == [f"P{i // 2}" for i in range(9)]
    assert [(scan["session"], scan["acquisition"]) for scan in scans][:2] == [("0", "a"), ("1", "b")]
    assert len(load_cohort(str(tmp_path / "data"), path, 0, 0).training) > 0


def test_a_csv_says_where_its_paths_start_and_paths_say_the_subject(tmp_path: Path):
    rows = []
    for i in range(9):
        write_image(tmp_path / f"raw/sub-A{i}/sub-A{i}_ses-3_acq-spc3_T2w.nii.gz")
        write_mask(tmp_path / f"masks/{i}.nii.gz", 1 + i)
        rows.append(f"{tmp_path}/raw/sub-A{i}/sub-A{i}_ses-3_acq-spc3_T2w.nii.gz, masks/{i}.nii.gz")
    path = prepare_datalist(csv=write_csv(tmp_path, "image,label", rows))
    assert path == str(tmp_path / "datalist.json")
    scans = read_datalist(Path(path))["training"]
    assert scans[4]["image"] == "raw/sub-A4/sub-A4_ses-3_acq-spc3_T2w.nii.gz"
    assert scans[4]["label"] == "masks/4.nii.gz"
    assert (scans[4]["subject"], scans[4]["session"], scans[4]["acquisition"]) == ("A4", "3", "spc3")


def test_strangers_with_one_file_name_stay_strangers(tmp_path: Path):
    rows = []
    for i in range(9):
        image = f"p{i}/T2.nii.gz" if i < 5 else f"p{i}/head{i}.nii"
        write_image(tmp_path / image)
        write_mask(tmp_path / f"p{i}/mask.nii.gz", 1 + i)
        rows.append(f"{image},p{i}/mask.nii.gz")
    scans = read_datalist(Path(prepare_datalist(csv=write_csv(tmp_path, "image,label", rows))))["training"]
    names = [scan["subject"] for scan in scans]
    assert names == [f"p{i}/T2" for i in range(5)] + [f"head{i}" for i in range(5, 9)]


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        (["image;label", "a.nii;b.nii"], "no column image and label; it has: image;label"),
        (["image,mask", "a.nii,b.nii"], "no column label; it has: image, mask"),
        (["image,label"], "no row"),
    ],
)
def test_csv_without_columns_or_rows_says_what_it_lacks(tmp_path: Path, lines: list[str], problem: str):
    csv = write_csv(tmp_path, lines[0], lines[1:])
    assert message(csv=csv) == f"csv {csv}: {problem}"


def test_csv_rows_are_numbered_as_in_a_spreadsheet_empty_lines_count_and_short_rows_lack_a_mask(tmp_path: Path):
    write_image(tmp_path / "a.nii.gz")
    write_mask(tmp_path / "b.nii.gz")
    rows = ["a.nii.gz,b.nii.gz", "", ",,", "gone.nii.gz,b.nii.gz,NA", "a.nii.gz"]
    csv = write_csv(tmp_path, "image,label,subject", rows)
    assert message(csv=csv).splitlines() == [
        f"{csv}: row 5: image 'gone.nii.gz' does not exist",
        f"{csv}: row 5: label 'b.nii.gz' has another image already",
        f"{csv}: row 6: image 'a.nii.gz' has another mask already",
        f"{csv}: row 6: label '' does not exist",
    ]


def test_csv_that_cannot_be_read_is_named(tmp_path: Path):
    assert message(csv=str(tmp_path / "no.csv")).startswith(f"csv {tmp_path}/no.csv: cannot be read (")
    (tmp_path / "latin.csv").write_bytes("image,label\nMüller.nii,b.nii\n".encode("latin-1"))
    assert message(csv=str(tmp_path / "latin.csv")).startswith(f"csv {tmp_path}/latin.csv: cannot be read (")


def test_entries_are_in_the_order_of_their_images_not_of_the_rows(cohort: Path):
    images = sorted(cohort.glob("sub-*/**/*_T2w.nii.gz"), reverse=True)
    csv = write_csv(cohort, "image,label", [f"{i},derivatives/lesion_masks/{i.relative_to(cohort)}" for i in images])
    Path(csv).write_text(Path(csv).read_text().replace("_T2w.nii.gz\n", f"_T2w{DESC}\n"))
    from_csv = Path(prepare_datalist(csv=csv, output=str(cohort / "csv.json"))).read_text()
    assert from_csv == Path(prepare_datalist(str(cohort))).read_text()


def test_a_csv_as_excel_saves_it_is_read(tmp_path: Path):
    (tmp_path / "excel.csv").write_bytes(b"\xef\xbb\xbfimage,label\r\na.nii,b.nii\r\n")
    assert message(csv=str(tmp_path / "excel.csv")).startswith(f"{tmp_path}/excel.csv: row 2: image 'a.nii'")
