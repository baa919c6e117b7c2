"""Which regions of an atlas lesions lie in, and where lesions of a cohort overlap, from masks in MNI space."""

import io
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas
from matplotlib.figure import Figure
from nibabel.affines import apply_affine
from nibabel.processing import resample_from_to

from scripts.common.errors import InputError, one_line
from scripts.common.files import replace_files, sha256
from scripts.data.reader import read_volume
from scripts.data.volumes import Volume, lesion_of
from scripts.evaluation.qc_picture import as_png
from scripts.group.spaces import TEMPLATE, in_mni, in_space, sidecar_of, template
from scripts.group.table import COLUMNS as GROUP_COLUMNS
from scripts.group.table import NAMES
from scripts.inference.derivative import read_ours

logger = logging.getLogger("meshnet")
IN_BRAIN = 0.8  # least share of an atlas's labelled voxels in the template's brain, and of a side's on that side
SIDE = r"(?i)(?<![a-z])(?:(left|lh?)|(right|rh?))(?![a-z])"  # as a word or a part of a name: Left-, _L, ctx-lh-
COLUMNS = NAMES | GROUP_COLUMNS["regions"]


def write_regions(output_dir: Path, rows: list[dict], atlas: str | Path, atlas_labels: str | Path | None) -> Path:
    """Write ``group/regions.tsv``, a row for each scan and region, and what its columns are beside it.

    The atlas's labels are brought to the masks' grid, by the nearest voxel, so that the lesion's volume is exact.

    Args:
        output_dir: folder of the derivative.
        rows: of ``table.rows_of``; those whose decision is reject, or whose mask is not in MNI space, are left out.
        atlas: label image in MNI space.
        atlas_labels: its table; see ``read_labels``.

    Raises:
        InputError: no mask in MNI space, or atlas and table do not fit that space or each other.
    """
    if atlas_labels is None:
        raise InputError("--atlas_labels is missing: give the table that names the labels of --atlas")
    found = list(_masks(output_dir, rows))
    if not found:
        raise InputError(f"{output_dir}: no mask in {TEMPLATE}; run participant with --space {TEMPLATE} first")
    grid = found[0][1]
    labels, regions = _on_grid(read_volume(atlas), read_labels(Path(atlas_labels)), grid, Path(atlas_labels))
    voxel = abs(np.linalg.det(grid.affine[:3, :3]))
    sizes = np.bincount(labels.ravel(), minlength=int(regions["index"].max()) + 1) * voxel
    table = []
    for row, mask, about in found:
        inside = np.bincount(labels[lesion_of(mask)], minlength=len(sizes)) * voxel
        part = regions.assign(lesion_volume=inside[regions["index"]], region_volume=sizes[regions["index"]])
        part["share_of_region"] = part.lesion_volume / part.region_volume
        part["share_of_lesion"] = part.lesion_volume / (inside.sum() or np.nan)
        part.loc[part["index"] == 0, ["region_volume", "share_of_region"]] = np.nan
        told = {key: row.get(key) for key in NAMES}
        told |= {"fit": about["Fit"], "poor_fit": str(about["PoorFit"]).lower()}
        table.append(part.assign(**told, mask=Path(mask.path).relative_to(output_dir).as_posix()))
    path = output_dir / "group" / "regions.tsv"
    with replace_files([path, path.with_suffix(".json")]) as (file, legend):
        frame = pandas.concat(table)[[*COLUMNS]].round(6)
        frame.to_csv(file, sep="\t", index=False, na_rep="n/a", lineterminator="\n")
        legend.write(json.dumps(COLUMNS | {"Atlas": Path(atlas).name, "AtlasSHA256": sha256(atlas)}, indent=4) + "\n")
    return path


def write_overlap(output_dir: Path, rows: list[dict]) -> Path | None:
    """Write ``group/overlap_mask.nii.gz``, in how many scans each voxel of MNI space is lesion, and its picture.

    Scans whose fit is poor are left out, and so is what ``write_regions`` leaves out.

    Returns:
        The picture, or None where no mask is in MNI space.

    Raises:
        InputError: it cannot be written.
    """
    count, sources, grid = None, [], None
    for _, mask, about in _masks(output_dir, rows):
        name = Path(mask.path).relative_to(output_dir).as_posix()
        if about["PoorFit"]:
            logger.warning(f"{mask.path}: its scan fits {TEMPLATE} or its T1w poorly; left out of the overlap")
            continue
        grid = grid or mask
        count = lesion_of(mask) + (np.zeros(mask.shape, np.uint16) if count is None else count)
        sources.append(f"bids::{name}")
    if grid is None:
        return None
    path = output_dir / "group" / "overlap_mask.nii.gz"
    image = nib.Nifti1Image(count, grid.affine)
    about = {"Description": "Number of scans in which a voxel is lesion", "Type": "Lesion", "Scans": len(sources)}
    about |= {"SpatialReference": TEMPLATE, "Sources": sources, "Largest": int(count.max())}
    picture = path.with_name("overlap_mask.png")
    with replace_files([path, path.with_name("overlap_mask.json"), picture], "wb") as (file, sidecar, drawn):
        file.write(in_mni(count))
        sidecar.write((json.dumps(about, indent=4) + "\n").encode())
        drawn.write(_draw(image, len(sources)))
    return picture


def read_labels(path: Path) -> pandas.DataFrame:
    """The labels of an atlas: ``index``, ``region``, ``pair`` and ``hemisphere`` (L, R or None), pairs side by side.

    A table with tabs has columns ``index`` and ``name``, as BIDS's ``dseg.tsv``, and maybe ``hemisphere``. Else each
    line is ``index|name`` or ``index|abbreviation|name|...``. The hemisphere is what the column, or a word of the name,
    says: left, right, L, R, lh or rh. Label 0 is added, as what lies in no region.

    Raises:
        InputError: it cannot be read, or an index is no whole number or there twice.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); give a table of labels as UTF-8 text") from error
    if "\t" in text:
        table = pandas.read_csv(io.StringIO(text), sep="\t", dtype=str, keep_default_na=False)
    else:
        cells = [line.split("|") for line in text.splitlines() if line.strip()]
        table = pandas.DataFrame({"index": [c[0] for c in cells], "name": [c[2 if len(c) > 2 else -1] for c in cells]})
    if missing := [key for key in ("index", "name") if key not in table]:
        raise InputError(f"{path}: no column {' and '.join(missing)}; expected index and name, or lines of index|name")
    if wrong := [text for text in table["index"] if not text.strip().isdecimal()]:
        raise InputError(f"{path}: index {wrong[0]!r}: expected a whole number; split index and name by | or tabs")
    table["index"] = table["index"].astype(int)
    if twins := sorted(table["index"][table["index"].duplicated()]):
        raise InputError(f"{path}: label {twins[0]} is there twice; give each label one name")
    given = table["hemisphere"] if "hemisphere" in table else table["name"].map(lambda name: None)
    sides = [_side(str(said or "")) or _side(name) for said, name in zip(given, table["name"], strict=True)]
    pairs = [re.sub(r"[\s_.-]+", " ", re.sub(SIDE, " ", name)).strip() for name in table["name"]]
    table = pandas.DataFrame({"index": table["index"], "region": table["name"], "pair": pairs, "hemisphere": sides})
    table = table[table["index"] > 0].sort_values("index")
    first = table.groupby("pair")["index"].transform("min")
    table = table.assign(first=first).sort_values(["first", "hemisphere", "index"]).drop(columns="first")
    outside = {"index": [0], "region": ["in no region"], "pair": ["in no region"], "hemisphere": [None]}
    return pandas.concat([table, pandas.DataFrame(outside)], ignore_index=True)


def _side(name: str) -> str | None:
    """L or R where a name says one side, else None."""
    left, right = (
        (any(found) for found in zip(*re.findall(SIDE, name), strict=True)) if re.search(SIDE, name) else (0, 0)
    )
    return None if left == right else "L" if left else "R"


def _on_grid(
    atlas: Volume, regions: pandas.DataFrame, grid: Volume, table: Path
) -> tuple[np.ndarray, pandas.DataFrame]:
    """The labels of ``atlas`` on a mask's ``grid`` (D, H, W; int), and those of the regions that are there."""
    values = np.unique(atlas.data)
    if (values % 1).any() or values.min() < 0 or values.max() == 0:
        raise InputError(f"{atlas.path}: expected whole numbers from 0 on, not {values[[0, -1]].tolist()}; give labels")
    if unnamed := sorted({*values.astype(int).tolist()} - {0, *regions["index"]}):
        named = one_line(", ".join(map(str, unnamed)), 100)
        raise InputError(f"{table}: has no name for label {named} of {Path(atlas.path).name}")
    _check_place(atlas, regions)
    image = nib.Nifti1Image(atlas.data.astype(np.int32), atlas.affine)
    labels = np.asarray(resample_from_to(image, (grid.shape, grid.affine), order=0).dataobj).astype(np.int64)
    before, after = (
        np.count_nonzero(d) * abs(np.linalg.det(a)) for d, a in ((atlas.data, atlas.affine), (labels, grid.affine))
    )
    if abs(after - before) > 0.02 * before:
        logger.warning(f"{atlas.path}: its regions have {before:,.0f} mm3, but {after:,.0f} on the grid of {TEMPLATE}")
    there = np.unique(labels)
    return labels, regions[regions["index"].isin({0, *there.tolist()})].reset_index(drop=True)


def _check_place(atlas: Volume, regions: pandas.DataFrame) -> None:
    """Raise InputError if the labels lie outside the template's brain, or sides where their names do not say."""
    places = np.argwhere(atlas.data > 0)
    values, mm = atlas.data[tuple(places.T)].astype(int), apply_affine(atlas.affine, places)
    brain = template(1)[1]
    voxels = np.rint(apply_affine(np.linalg.inv(brain.affine), mm)).astype(int)
    inside = ((voxels >= 0) & (voxels < brain.shape)).all(1)
    inside[inside] = np.asarray(brain.dataobj)[tuple(voxels[inside].T)] > 0
    if inside.mean() < IN_BRAIN:
        raise InputError(
            f"{atlas.path}: {inside.mean():.0%} of its labelled voxels lie in the brain of {TEMPLATE}, expected "
            f"{IN_BRAIN:.0%}; give an atlas in MNI space"
        )
    for index, region, side in regions[["index", "region", "hemisphere"]].itertuples(index=False):
        x = mm[values == index, 0]
        if side in ("L", "R") and x.size and np.mean(x <= 0 if side == "L" else x >= 0) < 1 - IN_BRAIN:
            raise InputError(f"{atlas.path}: label {index}, {region!r}, lies on the other side; is the atlas mirrored?")


def _masks(output_dir: Path, rows: list[dict]) -> Iterator[tuple[dict, Volume, dict]]:
    """Of each row the mask in MNI space and what its sidecar says, if it is there and of the mask as it is now."""
    grid, absent = template(1)[0], []
    for row in rows:
        native = output_dir / row["mask"]
        path = in_space(native, TEMPLATE)
        about = read_ours(sidecar_of(path))
        if row.get("decision") == "reject":
            continue
        if about is None or not path.is_file():
            absent.append(native)
        elif about["NativeMaskSHA256"] != sha256(native):
            logger.warning(f"{path}: is of an older {native.name}; run participant with --space {TEMPLATE}; left out")
        else:
            mask = read_volume(path)
            if mask.shape != grid.shape or not np.allclose(mask.affine, grid.affine):
                raise InputError(f"{path}: not on the grid of {TEMPLATE}; delete it and run participant again")
            yield row, mask, about
    if 0 < len(absent) < len(rows):
        logger.info(f"{len(absent)} of {len(rows)} masks are not in {TEMPLATE}, such as {absent[0]}; left out")


def _draw(overlap: nib.Nifti1Image, scans: int) -> bytes:
    """A PNG of how many scans have a lesion where, over the template, on nine axial slices through most of it."""
    from nilearn import plotting  # 1 s, and not every run draws

    count = np.asarray(overlap.dataobj)
    heights = np.flatnonzero(count.any((0, 1))) if count.any() else np.arange(40, 150)
    cuts = apply_affine(overlap.affine, [[0, 0, k] for k in np.linspace(heights[0], heights[-1], 11)[1:-1]])[:, 2]
    figure = Figure(figsize=(14, 2.6), facecolor="black")
    view = plotting.plot_anat(
        template(1)[0], figure=figure, axes=(0, 0, 0.93, 0.88), display_mode="z", cut_coords=[*cuts], black_bg=True,
        colorbar=False, vmin=0, vmax=1.2,
    )  # fmt: skip
    most = max(int(count.max()), 1)
    view.add_overlay(overlap, threshold=0.5, cmap="hot", vmin=0, vmax=most, colorbar=True)
    return as_png(figure, f"Lesions of {scans} scans, at most {most} in a voxel, in {TEMPLATE}")
