"""Write simulated scans as a BIDS tree like ARC's, traps included."""

import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import redirect_stdout
from copy import deepcopy
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.processing import resample_from_to
from scipy import ndimage
from tqdm import tqdm

from scripts.common.errors import InputError
from scripts.common.revision import revision
from scripts.data.datalist import prepare_datalist
from scripts.simulation.anatomy import CENTRE, FIELD_OF_VIEW, box, load_head
from scripts.simulation.lesions import ARC_VOLUME_QUANTILES, load_mask, mask_files
from scripts.simulation.scanner import RANGES, simulate_scan


def simulate_cohort(
    output_dir: str,
    n_subjects: int = 54,
    spacing: float = 6.0,
    seed: int = 0,
    anatomy: str | None = None,
    lesions: str | None = None,
    variation: float = 1.0,
    contrasts: Sequence[str] = (),
) -> str:
    """Write a simulated cohort: a BIDS tree shaped like ARC's, with its datalist.json.

    The same arguments give the same voxels. A folder that already holds this cohort is used as it is.

    Args:
        output_dir: folder to make; ``{revision}`` in its name becomes that of the code that simulates.
        n_subjects: scans, one per subject; at least 9, for 3 outer and 3 inner folds.
        spacing: voxel size in mm, of the recipe's grid and of most scans.
        seed: seed of everything random.
        anatomy: head in MNI space to use instead of nilearn's MNI152 templates: T1-weighted, T2-weighted if its name
            ends in ``T2w``, or a label map if it ends in ``dseg``.
        lesions: folder of lesion masks in MNI space to use instead of grown lesions.
        variation: from 1, easy scans that are much alike, to 4, as varied as patients' (with a lesion each); above 1,
            each scan also has a voxel size of its own, 0.6 to 1.5 times ``spacing`` along each axis.
        contrasts: T1w, FLAIR or both: of every subject besides T2w, on the same grid.

    Returns:
        The folder.

    Raises:
        InputError: an argument is out of range, or the folder holds something else.
    """
    settings = {"n_subjects": n_subjects, "spacing": spacing, "seed": seed, "anatomy": anatomy, "lesions": lesions}
    if variation != 1:
        settings["variation"] = variation
    if contrasts:
        settings["contrasts"] = contrasts = [contrasts] if isinstance(contrasts, str) else [*contrasts]
    output = Path(output_dir.replace("{revision}", _revision())).resolve()
    if _is_made(output, settings):
        return str(output)
    _check(n_subjects, spacing, variation, contrasts)
    masks = mask_files(lesions) if lesions else []
    head = load_head(anatomy or "MNI152", _resolution(spacing))
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
    try:
        _simulate(partial, head, masks, settings)
        if not _is_made(output, settings):  # unless another process was quicker
            partial.chmod(0o755)
            os.rename(partial, output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return str(output)


def _check(n_subjects, spacing, variation, contrasts):
    if not isinstance(n_subjects, int) or n_subjects < 9:
        raise InputError(f"n_subjects {n_subjects}: at least 9 subjects are needed for 3 outer and 3 inner folds")
    if not isinstance(spacing, (int, float)) or not 1 <= spacing <= 8:
        raise InputError(f"spacing {spacing}: expected 1 to 8 mm")
    if not isinstance(variation, (int, float)) or not 1 <= variation <= 4:
        raise InputError(f"variation {variation}: expected 1 to 4")
    if not {*contrasts} <= {"T1w", "FLAIR"}:
        raise InputError(f"contrasts {', '.join(map(str, contrasts))}: expected T1w, FLAIR or both, besides T2w")


def _resolution(spacing):
    """Of what is simulated, in mm."""
    return max(1, round(spacing / 2))


def _simulate(root, head, masks, settings):
    n, spacing = settings["n_subjects"], settings["spacing"]
    rng = np.random.default_rng(settings["seed"])
    volumes = np.interp((rng.permutation(n) + 0.5) / n, np.linspace(0, 1, 5), ARC_VOLUME_QUANTILES)
    order = rng.permutation(len(masks)) if masks else None
    for i in tqdm(range(n), "Simulating cohort", unit="subject"):
        mask = [load_mask(masks[order[i % len(masks)]])] if masks else []
        _simulate_subject(root, i, head, mask, volumes[i], settings)
    _write_description(root, settings)
    spatial_size = [int(-(-mm // (16 * spacing)) * 16) for mm in FIELD_OF_VIEW]  # MeshNet dilates by 16
    contrasts = settings.get("contrasts", ())
    with redirect_stdout(None):  # what it prints is about the unfinished folder
        prepare_datalist(str(root), spacing=spacing, spatial_size=spatial_size, contrasts=contrasts)


def _simulate_subject(root, index, head, mask, volume, settings):
    """Write the scans of subject ``index``, of a lesion of ``volume`` mm3 or as in ``mask``, and their mask."""
    variation, spacing, resolution = settings.get("variation", 1), settings["spacing"], _resolution(settings["spacing"])
    easy = RANGES["patients"] | RANGES["easy"]
    ranges = {k: np.array(v) + (np.array(RANGES["patients"][k]) - v) * (variation - 1) / 3 for k, v in easy.items()}
    setting = [head], mask, box(resolution)[0], resolution
    rng = np.random.default_rng([settings["seed"], index])
    while True:  # until the lesion is on the grid
        before = deepcopy(rng)
        scan = simulate_scan(*setting, rng, ranges, volume)
        if scan[1].any():
            break
    grid = _native_grid(spacing, index, rng.uniform(0.6, 1.5, 3) if variation > 1 else None)
    image, label = _with_traps(*_on_grid(scan, resolution, grid, rng), index)
    images = {"T2w": image}
    for k, contrast in enumerate(settings.get("contrasts", ())):
        noise = np.random.default_rng([settings["seed"], index, k])
        scan = simulate_scan(*setting, deepcopy(before), ranges | RANGES[contrast], volume, noise)
        images[contrast] = _with_traps(*_on_grid(scan, resolution, grid, noise), index)[0]
    _write_subject(root, index, images, label, rng)


def _is_made(output, settings):
    """Whether ``output`` holds the cohort of these settings already."""
    if not output.exists():
        return False
    description = output / "dataset_description.json"
    made = json.loads(description.read_text()).get("GeneratedBy", [{}])[0] if description.is_file() else {}
    if made.get("Settings") == settings and made.get("Version") != _revision():
        raise InputError(
            f"{output}: other code has simulated this cohort; give another --output_dir or delete it to simulate it "
            "again, or use it by --dataset_dir"
        )
    if made.get("Settings") != settings:
        raise InputError(
            f"{output}: holds something else ({made.get('Settings', 'not a simulated cohort')}); "
            "give another --output_dir (for the default cohort --default_cohort#output_dir) or delete it"
        )
    if not (output / "datalist.json").is_file():
        raise InputError(f"{output}: its datalist.json is gone; delete the folder to simulate it again")
    return True


def _revision():
    """Of the code that simulates."""
    return revision("scripts.simulation.cohort", "scripts.simulation")


def _native_grid(spacing, index, voxel):
    """The grid of scan ``index``, of voxels ``voxel`` times ``spacing``; if not given, one in six is anisotropic."""
    voxel = spacing * np.array((0.8, 0.8, 1.4) if index % 6 == 4 else (1, 1, 1)) if voxel is None else spacing * voxel
    shape = np.ceil(np.array(FIELD_OF_VIEW) / voxel).astype(int)
    return tuple(shape), nib.affines.from_matvec(np.diag(voxel), np.array(CENTRE) - voxel * (shape - 1) / 2)


def _on_grid(volumes, resolution, grid, rng):
    """Image and mask of one scan as the scanner stores them, on its own grid and in its own unit."""
    shape = np.array(volumes[0].shape)
    affine = nib.affines.from_matvec(np.eye(3) * resolution, np.array(CENTRE) - resolution * (shape - 1) / 2)
    blur = 0.42 * nib.affines.voxel_sizes(grid[1]) / resolution  # a Gaussian as wide as the voxel
    smooth = (nib.Nifti1Image(ndimage.gaussian_filter(data.astype(np.float32), blur), affine) for data in volumes)
    image, covered = (resample_from_to(volume, grid, order=1).get_fdata(dtype=np.float32) for volume in smooth)
    lesion = covered > (0.5 if covered.max() > 0.5 else 0.99 * covered.max())  # the smallest keeps its best voxel
    image = (image * rng.uniform(300, 900)).astype(np.int16)  # scanners have no common unit
    return nib.Nifti1Image(image, grid[1]), nib.Nifti1Image(lesion.astype(np.uint8), grid[1])


def _with_traps(image, label, index):
    """What real data does: one scan in six is sagittal (PSR), and one mask in twelve has a scale slope of 1/60."""
    if index % 6 == 2:
        psr = nib.orientations.axcodes2ornt("PSR")
        turn = nib.orientations.ornt_transform(nib.io_orientation(image.affine), psr)
        image, label = image.as_reoriented(turn), label.as_reoriented(turn)
    if index % 12 == 3:
        label.header.set_slope_inter(1 / 60, 0)
        label = nib.Nifti1Image(label.get_fdata() / 60, label.affine, label.header)
    return image, label


def _write_subject(root, index, images, label, rng):
    acquisition = "spc3p2" if rng.random() < 115 / 223 else "spc3"
    folder = Path(f"sub-S{index + 1:03}") / "ses-1" / "anat"
    stem = f"sub-S{index + 1:03}_ses-1_acq-{acquisition}_run-1"
    masks = root / "derivatives" / "lesion_masks" / folder
    volumes = {root / folder / f"{stem}_{suffix}": image for suffix, image in images.items()}
    for path, volume in (volumes | {masks / f"{stem}_T2w_desc-lesion_mask": label}).items():
        path.parent.mkdir(parents=True, exist_ok=True)
        volume.set_sform(volume.affine, 2)
        volume.set_qform(volume.affine, 2)
        nib.save(volume, f"{path}.nii.gz")


def _write_description(root, settings):
    description = {
        "Name": "Simulated chronic stroke (not patients)",
        "BIDSVersion": "1.9.0",
        "DatasetType": "raw",
        "License": "CC0",
        "Simulated": True,
        "GeneratedBy": [{"Name": "scripts/simulate_cohort.py", "Version": _revision(), "Settings": settings}],
    }
    (root / "dataset_description.json").write_text(json.dumps(description, indent=4) + "\n")
    (root / "README").write_text(
        "Simulated scans with chronic stroke lesions, for trying out software. "
        "The anatomy is real (see dataset_description.json), the lesions and the scans are not. Not for research "
        "findings and not for clinical use.\n"
    )
