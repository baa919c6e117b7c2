"""No library here simulates a stroke: this puts chronic lesions into real anatomy, as a BIDS tree like ARC's."""

import json
import os
import shutil
import tempfile
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from monai.transforms import Compose, Rand3DElasticd, RandBiasFieldd, RandRicianNoised
from nibabel.processing import resample_from_to
from scipy import ndimage
from tqdm import tqdm

from scripts.common.errors import InputError
from scripts.data.datalist import prepare_datalist
from scripts.data.volumes import read_volume

# Lesion volume in mm3 at the 0, 25, 50, 75 and 100 % quantile of ARC's 228 masks (OpenNeuro ds004884 v1.0.2).
ARC_VOLUME_QUANTILES = (203, 33_619, 67_891, 128_314, 363_885)
# Seeds in MNI mm (left hemisphere) and semi-axes in mm of regions like the territories of the arteries named.
TERRITORIES = {
    "MCA trunk": ((-38, -5, 8), (20, 34, 26)),
    "MCA superior division": ((-44, 12, 26), (18, 30, 24)),
    "MCA inferior division": ((-50, -40, 10), (18, 32, 24)),
    "lenticulostriate": ((-26, 2, 4), (10, 18, 14)),
    "PCA": ((-22, -72, 2), (16, 24, 18)),
    "ACA": ((-10, 30, 36), (10, 34, 26)),
}
TERRITORY_ODDS = (0.36, 0.24, 0.24, 0.06, 0.06, 0.04)
# T2-weighted brightness relative to CSF, of tissue and of the two parts of an old infarct.
INTENSITY = {"csf": 1.0, "grey": 0.42, "white": 0.3, "skull": 0.05, "scalp": 0.45, "cavity": 0.97, "gliosis": 0.72}
# Centre (MNI mm) and size (mm) of the box that is simulated and scanned.
CENTRE, FIELD_OF_VIEW = (0, -18, 6), (192, 240, 192)


@dataclass
class Anatomy:
    """A head in MNI space: tissue fractions (D, H, W) on one RAS grid; ``head`` is the brightness outside the brain."""

    affine: np.ndarray
    csf: np.ndarray
    grey: np.ndarray
    white: np.ndarray
    head: np.ndarray


def simulate_cohort(
    output_dir: str,
    n_subjects: int = 54,
    spacing: float = 6.0,
    seed: int = 0,
    anatomy: str | None = None,
    lesions: str | None = None,
    variation: float = 1.0,
) -> str:
    """Write a simulated cohort: a BIDS tree shaped like ARC's, with its datalist.json.

    The same arguments give the same voxels. A folder that already holds this cohort is used as it is.

    Args:
        output_dir: folder to make.
        n_subjects: scans, one per subject; at least 9, for 3 outer and 3 inner folds.
        spacing: voxel size in mm, of the recipe's grid and of most scans.
        seed: seed of everything random.
        anatomy: T1-weighted head in MNI space to use instead of nilearn's MNI152 templates.
        lesions: folder of lesion masks in MNI space to use instead of grown lesions.
        variation: how many times the usual spread contrast, bias field and noise have; above 1, each scan also has
            a voxel size of its own, 0.6 to 1.5 times ``spacing`` along each axis.

    Returns:
        ``output_dir``.

    Raises:
        InputError: an argument is out of range, or the folder holds something else.
    """
    settings = {"n_subjects": n_subjects, "spacing": spacing, "seed": seed, "anatomy": anatomy, "lesions": lesions}
    if variation != 1:
        settings["variation"] = variation
    output = Path(output_dir).resolve()
    if _is_made(output, settings):
        return str(output)
    if not isinstance(n_subjects, int) or n_subjects < 9:
        raise InputError(f"n_subjects {n_subjects}: at least 9 subjects are needed for 3 outer and 3 inner folds")
    if not isinstance(spacing, (int, float)) or not 1 <= spacing <= 8:
        raise InputError(f"spacing {spacing}: expected 1 to 8 mm")
    if not isinstance(variation, (int, float)) or not 0 <= variation <= 5:
        raise InputError(f"variation {variation}: expected 0 to 5")
    head = _head_anatomy(anatomy, max(1, round(spacing / 2)))
    masks = _mask_files(lesions) if lesions else None
    rng = np.random.default_rng(seed)
    volumes = np.interp((rng.permutation(n_subjects) + 0.5) / n_subjects, np.linspace(0, 1, 5), ARC_VOLUME_QUANTILES)
    order = rng.permutation(len(masks)) if masks else None

    output.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
    try:
        for i in tqdm(range(n_subjects), "Simulating cohort", unit="subject"):
            subject_rng = np.random.default_rng([seed, i])
            if masks:
                lesion = _real_lesion(masks[order[i % len(masks)]], head)
            else:
                lesion = _grow_lesion(head, volumes[i], subject_rng)
            _write_subject(partial, i, *_scan(head, lesion, spacing, i, subject_rng, variation), subject_rng)
        _write_description(partial, settings)
        spatial_size = [int(-(-mm // (16 * spacing)) * 16) for mm in FIELD_OF_VIEW]  # MeshNet dilates by 16
        with redirect_stdout(None):  # what it prints is about the unfinished folder
            prepare_datalist(str(partial), spacing=spacing, spatial_size=spatial_size)
        if not _is_made(output, settings):  # unless another process was quicker
            partial.chmod(0o755)
            os.rename(partial, output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return str(output)


def _is_made(output: Path, settings: dict) -> bool:
    """Whether ``output`` holds the cohort of these settings already."""
    if not output.exists():
        return False
    description = output / "dataset_description.json"
    made = json.loads(description.read_text()).get("GeneratedBy", [{}])[0] if description.is_file() else {}
    if made.get("Settings") != settings:
        raise InputError(
            f"{output}: holds something else ({made.get('Settings', 'not a simulated cohort')}); "
            "give another --output_dir (for the default cohort --default_cohort#output_dir) or delete it"
        )
    if not (output / "datalist.json").is_file():
        raise InputError(f"{output}: its datalist.json is gone; delete the folder to simulate it again")
    return True


def _mask_files(folder: str) -> list[Path]:
    masks = sorted(Path(folder).glob("**/*.nii*"))
    if not masks:
        raise InputError(f"--lesions {folder}: no NIfTI file (*.nii, *.nii.gz) in it")
    return masks


def _head_anatomy(path: str | None, resolution: int) -> Anatomy:
    """Tissue fractions of the MNI152 templates, or of the T1-weighted head at ``path``."""
    from nilearn import datasets  # 2 s; a run whose cohort exists does not need it

    affine = np.diag([resolution] * 3 + [1.0])
    affine[:3, 3] = np.array(CENTRE) - np.array(FIELD_OF_VIEW) / 2
    grid = (tuple(mm // resolution for mm in FIELD_OF_VIEW), affine)

    def on_grid(image: nib.Nifti1Image) -> np.ndarray:
        return np.clip(resample_from_to(image, grid, order=1).get_fdata(dtype=np.float32), 0, None)

    t1 = on_grid(read_volume(path)[0] if path else datasets.load_mni152_template(resolution=resolution))
    grey = on_grid(datasets.load_mni152_gm_template(resolution=resolution))
    white = on_grid(datasets.load_mni152_wm_template(resolution=resolution))
    inside = on_grid(datasets.load_mni152_brain_mask(resolution=resolution)) > 0.5
    priors = np.stack([np.clip(1 - grey - white, 0, 1), grey, white]) * inside
    csf, grey, white = _segment(t1, priors, inside)
    outside_mm = ndimage.distance_transform_edt(~inside, sampling=resolution)
    csf = np.maximum(csf, np.clip(1 - outside_mm / 3, 0, 1) * ~inside)  # the templates end at the brain
    if path:
        head = np.where(outside_mm > 3, t1 / np.percentile(t1[inside], 99) * INTENSITY["scalp"], 0)
    else:
        head = np.select(
            [outside_mm <= 3, outside_mm <= 9, outside_mm <= 15], [0, INTENSITY["skull"], INTENSITY["scalp"]]
        )
    return Anatomy(affine, csf, grey, white, head.astype(np.float32))


def _segment(t1: np.ndarray, priors: np.ndarray, inside: np.ndarray, n_iterations: int = 20) -> np.ndarray:
    """Fractions of CSF, grey and white matter: Gaussian mixture with spatial priors (Ashburner & Friston 2005)."""
    prior = np.clip(priors[:, inside], 0.01, None)
    prior /= prior.sum(0)
    x, posterior = t1[inside], prior
    for _ in range(n_iterations):
        weight = posterior.sum(1)
        mean = (posterior @ x / weight)[:, None]
        variance = ((posterior * (x - mean) ** 2).sum(1) / weight)[:, None]
        posterior = prior * np.exp(-((x - mean) ** 2) / (2 * variance)) / np.sqrt(variance)
        posterior /= posterior.sum(0)
    fractions = priors.copy()
    fractions[:, inside] = posterior
    return fractions


def _grow_lesion(head: Anatomy, volume: float, rng: np.random.Generator) -> np.ndarray:
    """A binary lesion of about ``volume`` mm3: one connected part of a vascular territory with a ragged border."""
    centre, axes = list(TERRITORIES.values())[rng.choice(len(TERRITORIES), p=TERRITORY_ODDS)]
    side = 1 if rng.random() < 0.9 else -1  # ARC's people have aphasia, so mostly left-hemisphere strokes
    centre = (np.array(centre) + rng.normal(0, 5, 3)) * (side, 1, 1)
    spacing = head.affine[0, 0]
    x, y, z = (o + spacing * np.arange(n) for o, n in zip(head.affine[:3, 3], head.csf.shape, strict=True))
    grids = np.meshgrid(x, y, z, indexing="ij", sparse=True)
    cost = np.sqrt(sum(((g - c) / a) ** 2 for g, c, a in zip(grids, centre, axes, strict=True)))
    noise = ndimage.gaussian_filter(rng.standard_normal(cost.shape, dtype=np.float32), 8 / spacing)
    cost += 0.3 * noise / noise.std()
    cost[(head.grey + head.white < 0.5) | (side * grids[0] > -1)] = np.inf
    n_voxels = max(1, round(volume / spacing**3))
    allowed = np.sort(cost[np.isfinite(cost)])
    lesion = cost <= allowed[min(n_voxels, allowed.size) - 1]
    parts, n_parts = ndimage.label(lesion)
    return parts == 1 + np.argmax(np.bincount(parts.ravel())[1:]) if n_parts > 1 else lesion


def _real_lesion(path: Path, head: Anatomy) -> np.ndarray:
    """The mask at ``path`` on the anatomy's grid, cut to the brain."""
    image, data = read_volume(path)
    mask = nib.Nifti1Image((data > 0).astype(np.float32), image.affine)
    brain = head.grey + head.white + head.csf > 0.5
    return (resample_from_to(mask, (head.csf.shape, head.affine), order=1).get_fdata() > 0.5) & brain


def _scan(
    head: Anatomy, lesion: np.ndarray, spacing: float, index: int, rng: np.random.Generator, variation: float
) -> tuple[nib.Nifti1Image, nib.Nifti1Image]:
    """One T2w-like scan and its mask: chronic lesion, own anatomy, contrast, bias field and noise, own grid."""
    mu = {tissue: value * max(0.1, rng.normal(1, 0.05 * variation)) for tissue, value in INTENSITY.items()}
    fluid = ndimage.distance_transform_edt(lesion, sampling=head.affine[0, 0])
    cavity = np.clip((fluid - rng.uniform(0.5, 2.5)) / 2, 0, 1)  # the rim, some mm wide, is gliotic
    healthy = mu["csf"] * head.csf + mu["grey"] * head.grey + mu["white"] * head.white + head.head
    image = np.where(lesion, mu["gliosis"] + (mu["cavity"] - mu["gliosis"]) * cavity, healthy)
    voxel = head.affine[0, 0]
    sigma = 20 / voxel
    # White noise smoothed by sigma keeps 1 / sqrt((2 sqrt(pi) sigma)^3) of its standard deviation, here 1 / sqrt(3).
    magnitude = np.sqrt(3 * (2 * np.sqrt(np.pi) * sigma) ** 3) / voxel  # for a displacement of 1 mm
    transform = Compose(
        [
            Rand3DElasticd(
                keys=["image", "label"],
                prob=1,
                sigma_range=(sigma, sigma),
                magnitude_range=(magnitude, 3 * magnitude),
                rotate_range=[0.12] * 3,
                scale_range=[0.07] * 3,
                translate_range=[5 / voxel] * 3,
                padding_mode="zeros",
            ),
            RandBiasFieldd(keys="image", prob=1, degree=3, coeff_range=(-0.05 * variation, 0.05 * variation)),
        ]
    ).set_random_state(seed=int(rng.integers(2**31)))
    warped = transform({"image": image[None].astype(np.float32), "label": lesion[None].astype(np.float32)})
    grid = _native_grid(spacing, index, rng.uniform(0.6, 1.5, 3) if variation > 1 else None)
    blur = 0.42 * nib.affines.voxel_sizes(grid[1]) / voxel  # a Gaussian as wide as the voxel
    volumes = []
    for key in ("image", "label"):
        data = warped[key][0].numpy()
        smooth = ndimage.gaussian_filter(data, blur)
        volumes.append(resample_from_to(nib.Nifti1Image(smooth, head.affine), grid, order=1))
    noise = RandRicianNoised(keys="image", prob=1, std=rng.uniform(0.01, 0.01 + 0.02 * variation), sample_std=False)
    noise.set_random_state(seed=int(rng.integers(2**31)))
    noisy = noise({"image": volumes[0].get_fdata(dtype=np.float32)})["image"]
    scale = rng.uniform(300, 900)  # scanners have no common unit
    image = nib.Nifti1Image(np.clip(np.asarray(noisy) * scale, 0, 32767).astype(np.int16), volumes[0].affine)
    covered = volumes[1].get_fdata()  # share of each voxel; the smallest lesion keeps its best voxel on a coarse grid
    lesion = covered > (0.5 if covered.max() > 0.5 else 0.99 * covered.max())
    label = nib.Nifti1Image(lesion.astype(np.uint8), volumes[1].affine)
    return _with_traps(image, label, index)


def _native_grid(spacing: float, index: int, voxel: np.ndarray | None) -> tuple[tuple[int, ...], np.ndarray]:
    """The grid of scan ``index``, of voxels ``voxel`` times ``spacing``; if not given, one in six is anisotropic."""
    voxel = spacing * np.array((0.8, 0.8, 1.4) if index % 6 == 4 else (1, 1, 1)) if voxel is None else spacing * voxel
    shape = np.ceil(np.array(FIELD_OF_VIEW) / voxel).astype(int)
    return tuple(shape), nib.affines.from_matvec(np.diag(voxel), np.array(CENTRE) - voxel * (shape - 1) / 2)


def _with_traps(image: nib.Nifti1Image, label: nib.Nifti1Image, index: int) -> tuple[nib.Nifti1Image, nib.Nifti1Image]:
    """What real data does: one scan in six is sagittal (PSR), and one mask in twelve has a scale slope of 1/60."""
    if index % 6 == 2:
        psr = nib.orientations.axcodes2ornt("PSR")
        turn = nib.orientations.ornt_transform(nib.io_orientation(image.affine), psr)
        image, label = image.as_reoriented(turn), label.as_reoriented(turn)
    if index % 12 == 3:
        label.header.set_slope_inter(1 / 60, 0)
        label = nib.Nifti1Image(label.get_fdata() / 60, label.affine, label.header)
    return image, label


def _write_subject(
    root: Path, index: int, image: nib.Nifti1Image, label: nib.Nifti1Image, rng: np.random.Generator
) -> None:
    acquisition = "spc3p2" if rng.random() < 115 / 223 else "spc3"
    folder = Path(f"sub-S{index + 1:03}") / "ses-1" / "anat"
    stem = f"sub-S{index + 1:03}_ses-1_acq-{acquisition}_run-1_T2w"
    for path, volume in (
        (root / folder / f"{stem}.nii.gz", image),
        (root / "derivatives/lesion_masks" / folder / f"{stem}_desc-lesion_mask.nii.gz", label),
    ):
        path.parent.mkdir(parents=True)
        volume.set_sform(volume.affine, 2)
        volume.set_qform(volume.affine, 2)
        nib.save(volume, path)


def _write_description(root: Path, settings: dict) -> None:
    description = {
        "Name": "Simulated chronic stroke (not patients)",
        "BIDSVersion": "1.9.0",
        "DatasetType": "raw",
        "License": "CC0",
        "Simulated": True,
        "GeneratedBy": [{"Name": "scripts/simulate_cohort.py", "Settings": settings}],
    }
    (root / "dataset_description.json").write_text(json.dumps(description, indent=4) + "\n")
    (root / "README").write_text(
        "Simulated T2-weighted scans with chronic stroke lesions, for trying out software. "
        "The anatomy is real (see dataset_description.json), the lesions and the scans are not. Not for research "
        "findings and not for clinical use.\n"
    )
