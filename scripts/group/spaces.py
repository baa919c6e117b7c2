"""Brings masks to the grid of the session's T1w and to MNI space, by ANTsPy, the lesion masked out of the metric.

ANTsPy is optional: ``pip install antspyx``. What is lesion counts for nothing in the fit to the template (Brett
et al. 2001, doi.org/10.1006/nimg.2001.0845; Andersen et al. 2010, doi.org/10.1016/j.neuroimage.2010.06.003).
"""

import gzip
import json
import logging
import os
import re
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

import nibabel as nib
import numpy as np
import torch
from matplotlib.figure import Figure
from nibabel.affines import apply_affine, from_matvec, voxel_sizes
from nibabel.processing import resample_from_to, resample_to_output
from scipy import ndimage
from scipy.spatial.transform import Rotation

from scripts.common.errors import InputError
from scripts.common.files import replace_files, sha256
from scripts.data.placement import extent, head_extent, head_of
from scripts.data.reader import read_volume
from scripts.data.volume_files import stem
from scripts.data.volumes import Volume, lesion_of
from scripts.evaluation.qc_picture import STYLE, as_png
from scripts.inference.derivative import MASK, NAME, read_ours
from scripts.inference.scan_header import encode

ANTSPYX = "0.6.3"
T1W, TEMPLATE = "T1w", "MNI152NLin2009aSym"  # what nilearn ships, by the name that TemplateFlow has for it
METHOD = 3  # counted up when the same scans and mask would give other masks or flags, which are then made again
COARSE = 2  # mm, in which scans are registered
RIM, SPARED = 2, 4  # mm around the brain of the template that count in the fit, and around the lesion that do not
GREY, WHITE = 0.45, 0.3  # brightness in T2w, fluid having 1
PITCHES = (-20, 0, 20)  # degrees of nodding from which a fit to the template is tried
DEPTH, SCALP = 75.0, 12.0  # mm from a brain's top to its middle, and from a head's top to the brain's
LIMITS = {T1W: 0.3, TEMPLATE: 0.5}  # a fit below is poor; own T1w may be, so these need edges that do not fit, too
AWAY, EDGES = 2, 0.13  # voxels by which edges are shifted, and the least edge_fit of a T2w and its own T1w
logger = logging.getLogger("meshnet")
METRIC = "root of the correlation ratio of scan and target"
EDGE_METRIC = f"1 - agreement of edges {AWAY * COARSE} mm beside / in place"
ABOUT = "1 where the native mask is, brought to this space by the transforms beside it"


def in_space(mask: Path, space: str) -> Path:
    """Where the native ``mask`` lies in another space: ``sub-1_space-T1w_desc-lesion_mask.nii.gz``."""
    return mask.with_name(mask.name.replace(f"_{MASK}", f"_space-{space}_{MASK}"))


@lru_cache(maxsize=2)
def template(resolution: int) -> tuple[nib.Nifti1Image, nib.Nifti1Image]:
    """The T1w of ``TEMPLATE``, without skull, and its brain's mask, on a grid of ``resolution`` mm.

    Both are nilearn's. Its documentation calls the template asymmetrical, but its file is that of the symmetric ICBM
    152 2009a, and each voxel has the value of its mirror image.
    """
    from nilearn import datasets  # 2 s

    return datasets.load_mni152_template(resolution), datasets.load_mni152_brain_mask(resolution)


def normalize(scan: Path, t1w: Path | None, mask: Path, prefix: Path, spaces: list[str]) -> list[Path]:
    """Bring the ``mask`` of a T2w ``scan`` to other spaces; return the masks there, also those that were there already.

    By way of the ``t1w``, if there is one, whose own files are then written, too. Beside each mask lie its sidecar, its
    transforms (ITK's, which move images) and a picture of the fit. In the T1w's space it lies a second time, as
    ``_label-lesion_roi.nii.gz``: fMRIPrep (1.0.13 to 25.2) takes a copy beside the T1w for cost-function masking.

    Args:
        scan: the T2w, as it was segmented.
        t1w: the T1w of the same session.
        mask: the native mask, in the derivative.
        prefix: what the outputs' paths begin with, such as ``OUT/sub-1/anat/sub-1``.
        spaces: of ``T1W`` and ``TEMPLATE``.

    Raises:
        InputError: another space, no ANTsPy, no T1w for its space or one of another subject, a scan without sides.
    """
    check_spaces(spaces)
    for entity in ("sub", "ses") if t1w else ():
        ours, theirs = ("".join(re.findall(f"(?:^|_)({entity}-[^_.]+)", path.name)) for path in (scan, t1w))
        if ours != theirs:
            raise InputError(f"{t1w}: is of {theirs or 'no ' + entity}, but its T2w of {ours or 'no ' + entity}")
    native, ants = read_ours(sidecar_of(mask)), _ants()
    if native is None or not mask.is_file():
        raise InputError(f"{mask}: no mask of this bundle; segment {scan.name} first")
    made_of = {"Method": METHOD, "NativeMaskSHA256": sha256(mask), "SourceSHA256": sha256(scan)}
    made_of["T1wSHA256"] = t1w and sha256(t1w)
    done = []
    for space in [T1W] * (t1w is not None) + [TEMPLATE] * (TEMPLATE in spaces):
        done.append(in_space(mask, space))
        names = _names(space, T1W if t1w else "T2w")
        paths = [done[-1], *(prefix.with_name(f"{prefix.name}_{name}") for name in names), sidecar_of(done[-1])]
        if made_of.items() <= (read_ours(paths[-1]) or {}).items() and all(path.is_file() for path in paths):
            continue
        volumes = [_read(path) for path in (scan, t1w or scan, mask)]
        with TemporaryDirectory() as folder:
            if space == T1W:
                contents, about = _to_t1w(ants, *volumes, Path(folder))
            else:
                contents, about = _to_template(ants, *volumes, prefix, Path(folder))
        about = _about(native, mask, t1w, space) | made_of | about
        if t1w and space == TEMPLATE:  # by way of the T1w
            about["PoorFit"] |= read_ours(sidecar_of(in_space(mask, T1W)))["PoorFit"]
        about["GeneratedBy"] = [{"Name": NAME}, {"Name": "ANTsPy", "Version": ants.__version__}]
        with replace_files(paths, "wb") as files:
            for file, content in zip(files, [*contents, f"{json.dumps(about, indent=4)}\n".encode()], strict=True):
                file.write(content)
    if t1w is None and T1W in spaces:  # told last, as the template does without
        raise InputError(f"{scan}: there is no T1w beside it, which --space {T1W} needs")
    return done


def check_spaces(spaces: list[str]) -> None:
    """Raise InputError for a space that masks cannot be brought to, and where ANTsPy is missing."""
    if unknown := [space for space in spaces if space not in (T1W, TEMPLATE)]:
        raise InputError(f"--space {unknown[0]}: expected {T1W} or {TEMPLATE}")
    if spaces:
        _ants()


def sidecar_of(mask: Path) -> Path:
    """Its JSON file."""
    return mask.with_name(f"{stem(mask.name)}.json")


def in_mni(data: np.ndarray) -> bytes:
    """``data`` (D, H, W), on the template's grid of 1 mm, as a compressed NIfTI file that says so."""
    image = nib.Nifti1Image(data, template(1)[0].affine)
    for put in (image.set_sform, image.set_qform):
        put(image.affine, 4)
    return gzip.compress(image.to_bytes(), 1, mtime=0)


def correlation_ratio(scan: np.ndarray, reference: np.ndarray, where: np.ndarray) -> float:
    """How much of a ``scan`` its ``reference`` explains, both (D, H, W), 0 to 1, in the voxels ``where`` (bool).

    The root of the share of variance that is between 32 equally full classes of the reference's intensities, so that
    contrasts may differ (Roche et al. 1998, doi.org/10.1007/BFb0056301, of which this is the root).
    """
    x, y = scan[where].astype(float), reference[where]
    classes = np.searchsorted(np.quantile(y, np.linspace(0, 1, 33)[1:-1]), y)
    n = np.bincount(classes, minlength=32)
    means = np.bincount(classes, x, minlength=32) / np.maximum(n, 1)
    return float(np.sqrt(np.sum(n * (means - x.mean()) ** 2) / max(np.sum((x - x.mean()) ** 2), 1e-12)))


def edge_fit(scan: np.ndarray, reference: np.ndarray, where: np.ndarray) -> float:
    """How much better edges agree in place than ``AWAY`` voxels beside it, 0 (no better) to 1, whatever the contrasts.

    Both are (D, H, W); the voxels ``where`` (bool) count. Edges agree by the squared cosine of the angle between
    gradients, weak ones less (Haber & Modersitzki 2007, doi.org/10.1160/ME9046). Two people's sulci agree nowhere.
    """
    fields = []
    for image in (scan, reference):
        slope = np.stack(np.gradient(ndimage.gaussian_filter(image, 0.7)))
        strength = (slope**2).sum(0)
        fields.append(slope / np.sqrt(strength + max(np.median(strength[where]), 1e-12)))
    steps = [(0, 1), *((step, axis) for axis in (1, 2, 3) for step in (-AWAY, AWAY))]
    here, *beside = (np.mean((np.roll(fields[0], *step) * fields[1]).sum(0)[where] ** 2) for step in steps)
    return float(1 - np.mean(beside) / here) if here else 0.0


def _ants() -> ModuleType:
    """ANTsPy, on as many threads as torch has, with numbers that are the same each time."""
    os.environ.setdefault("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", str(torch.get_num_threads()))  # read as it loads
    try:
        import ants  # 2 s, and optional
    except ImportError as error:  # of ANTsPy, or of what it needs
        raise InputError(f"--space needs ANTsPy ({error}): pip install antspyx=={ANTSPYX}") from error
    ants.config.set_ants_deterministic(False, 1)  # the seed; True would be one thread and other transforms
    return ants


def _names(space: str, moving: str) -> list[str]:
    """How the names of a space's outputs end, behind the mask's and before the sidecar's."""
    picture = f"space-{space}_desc-fit_qc.png"
    if space == T1W:
        return [picture, "label-lesion_roi.nii.gz", "from-T2w_to-T1w_mode-image_xfm.mat"]
    return [picture, *(f"from-{a}_to-{b}_mode-image_xfm.h5" for a, b in ((moving, space), (space, moving)))]


def _about(native: dict, mask: Path, t1w: Path | None, space: str) -> dict:
    """What a sidecar says of where a mask comes from."""
    source = native["Sources"][0]
    folder = source.removeprefix("bids:raw:").rpartition("/")[0]
    sources = [f"bids::{folder}/{mask.name}".replace("::/", "::"), source]
    sources += [source.replace(source.rpartition("/")[2] or source, t1w.name)] if t1w else []
    reference = sources[-1] if space == T1W else TEMPLATE
    return {"Description": ABOUT, "Type": "Lesion", "Sources": sources, "SpatialReference": reference}


def _read(path: Path) -> Volume:
    volume = read_volume(path)
    if not volume.sides_known:
        raise InputError(f"{path}: its header does not say where left and right are, so it fits nowhere; repair it")
    axes = volume.affine[:3, :3] / voxel_sizes(volume.affine)
    if np.abs(axes.T @ axes - np.eye(3)).max() > 0.008:  # half a degree
        raise InputError(f"{path}: its axes are not at right angles; resample it to a grid whose axes are")
    return volume


def _to_t1w(ants: Any, scan: Volume, t1w: Volume, mask: Volume, folder: Path) -> tuple[list[bytes], dict]:
    """The files of ``T1W``: the T2w moved as a rigid body, by mutual information."""
    pair = _coarse(t1w, t1w.data), _coarse(scan, scan.data)
    head = pair[0].get_fdata(dtype=np.float32)
    where = ndimage.binary_fill_holes(head_of(head))
    depth = ndimage.distance_transform_edt(where)
    found = _linear(ants, *pair, "Rigid", [None, np.eye(4), _anchored(*pair)], where, {}, folder)
    images = [_image(one.get_fdata(), one.affine) for one in pair]
    inner = depth >= np.median(depth[where])  # the brain: what is around it varies with the sequence
    there = ants.apply_transforms(*images, found).numpy()
    fit, edges = correlation_ratio(there, head, inner), edge_fit(there, head, inner)
    if fit < LIMITS[T1W] and edges < EDGES:
        raise InputError(
            f"{t1w.path}: its fit to {Path(scan.path).name} is {fit:.2f}, below {LIMITS[T1W]}; is it of another "
            "subject, or one of them without its skull? move it away to do without"
        )
    if edges < EDGES:
        logger.warning(
            f"{t1w.path}: its edges fit those of {Path(scan.path).name} by {edges:.2f}, below {EDGES}; is it of "
            "another subject, or one of them without its skull? look at the picture of the fit"
        )
    warped, label = _moved(ants, _image(t1w.data, t1w.affine), scan, mask, found, [])
    content = encode(label, t1w)
    shown = _draw(
        nib.Nifti1Image(t1w.data, t1w.affine), warped, label, f"{Path(scan.path).name} in {T1W}, fit {fit:.2f}"
    )
    told = {"Fit": round(fit, 3), "FitMetric": f"{METRIC}, inner half of the head", "PoorFit": edges < EDGES}
    told |= {"EdgeFit": round(edges, 3), "EdgeFitLimit": EDGES, "EdgeFitMetric": EDGE_METRIC}
    return [content, shown, content, Path(found[0]).read_bytes()], told


def _to_template(
    ants: Any, scan: Volume, moving: Volume, mask: Volume, prefix: Path, folder: Path
) -> tuple[list[bytes], dict]:
    """The files of ``TEMPLATE``: T1w or T2w moved by an affine and a deformable transform, the lesion masked out."""
    lesion, before = lesion_of(mask), []
    if moving.path != scan.path:
        before = [f"{prefix}_{_names(T1W, T1W)[-1]}"]
        lesion = lesion_of(read_volume(in_space(Path(mask.path), T1W)))
    fixed, inside = _target("T2w" if moving.path == scan.path else T1W)
    where = ndimage.distance_transform_edt(~inside, sampling=COARSE) <= RIM
    image = _coarse(moving, moving.data)
    lesion = _coarse(moving, lesion.astype(np.float32)).get_fdata(dtype=np.float32) > 0.1
    healthy = ndimage.distance_transform_edt(~lesion, sampling=COARSE) > SPARED if lesion.any() else ~lesion
    image = _filled(image, healthy)
    pair, masks = (fixed, image), {"mask": _image(where, fixed.affine), "moving_mask": _image(healthy, image.affine)}
    start = _linear(
        ants, *pair, "Affine", [None, *(_anchored(*pair, pitch, SCALP) for pitch in PITCHES)], inside, masks, folder
    )
    found = ants.registration(
        *(_image(one.get_fdata(), one.affine) for one in pair), "SyNOnly", start, str(folder / "found_"), **masks,
        reg_iterations=(40, 60, 20), total_sigma=1, write_composite_transform=True,
    )  # fmt: skip
    forward, inverse = found["fwdtransforms"], found["invtransforms"]
    target = template(1)[0]
    warped, label = _moved(ants, _image(target.get_fdata(), target.affine), moving, mask, [forward], before)
    on_fixed = resample_from_to(nib.Nifti1Image(label, target.affine), fixed, order=0).get_fdata() > 0
    fit = correlation_ratio(found["warpedmovout"].numpy(), fixed.get_fdata(), inside & ~on_fixed)
    shown = _draw(target, warped, label, f"{Path(moving.path).name} in {TEMPLATE}, fit {fit:.2f}")
    told = {"Fit": round(fit, 3), "FitLimit": LIMITS[TEMPLATE], "PoorFit": fit < LIMITS[TEMPLATE]}
    told["FitMetric"] = f"{METRIC}, lesion left out"
    return [in_mni(label), shown, *(Path(path).read_bytes() for path in (forward, inverse))], told


def _filled(image: nib.Nifti1Image, healthy: np.ndarray) -> nib.Nifti1Image:
    """With the nearest healthy voxel where it is not ``healthy`` (bool), lest smoothing spreads the lesion."""
    nearest = ndimage.distance_transform_edt(~healthy, return_distances=False, return_indices=True)
    return nib.Nifti1Image(image.get_fdata(dtype=np.float32)[tuple(nearest)], image.affine)


@lru_cache(maxsize=2)
def _target(contrast: str) -> tuple[nib.Nifti1Image, np.ndarray]:
    """The template around its brain, in that contrast, and where its brain is (bool), on a grid of ``COARSE`` mm.

    nilearn ships no T2w: here the template's grey and white matter have the brightness that they have in T2w, and what
    is neither is fluid, also around the brain.
    """
    from nilearn import datasets  # 2 s

    scan, brain = template(COARSE)
    if contrast == "T2w":
        load = datasets.load_mni152_gm_template, datasets.load_mni152_wm_template
        grey, white = (part(COARSE).get_fdata() for part in load)
        near = ndimage.distance_transform_edt(brain.get_fdata() == 0, sampling=COARSE) <= RIM
        painted = np.clip(1 - grey - white, 0, 1) + GREY * grey + WHITE * white
        scan = nib.Nifti1Image((painted * near).astype(np.float32), scan.affine)
    margin = 10 // COARSE
    ends = extent(brain.get_fdata() > 0)
    around = tuple(slice(max(0, first - margin), last + margin) for first, last in ends)
    return scan.slicer[around], brain.get_fdata()[around] > 0


def _linear(
    ants: Any, fixed: nib.Nifti1Image, moving: nib.Nifti1Image, kind: str, starts: list[np.ndarray | None],
    where: np.ndarray, masks: dict, folder: Path,
) -> list[str]:  # fmt: skip
    """The transform, Rigid or Affine, from the best of ``starts`` by the correlation ratio ``where``.

    They are transforms (4, 4) that lead from ``fixed`` to ``moving`` in RAS mm; None brings centres of mass together.
    """
    images, tried = [_image(one.get_fdata(), one.affine) for one in (fixed, moving)], []
    for i, start in enumerate(starts):
        path = None
        if start is not None:
            flip = np.diag([-1, -1, 1, 1])  # ITK's axes
            matrix = flip @ start @ flip
            begin = {"transform_type": "AffineTransform", "matrix": matrix[:3, :3], "offset": matrix[:3, 3]}
            ants.write_transform(ants.create_ants_transform(**begin), path := str(folder / f"start{i}.mat"))
        found = ants.registration(
            *images, "Rigid", path and [path], str(folder / f"try{i}_"), **masks, mask_all_stages=True,
            aff_iterations=(200, 100), aff_shrink_factors=(4, 2), aff_smoothing_sigmas=(2, 1),
        )  # fmt: skip
        fit = correlation_ratio(found["warpedmovout"].numpy(), fixed.get_fdata(), where)
        tried.append((fit, found["fwdtransforms"]))
    return ants.registration(
        *images, kind, max(tried)[1], str(folder / "linear_"), **masks, mask_all_stages=True,
        aff_iterations=(100, 50), aff_shrink_factors=(2, 1), aff_smoothing_sigmas=(1, 0), aff_random_sampling_rate=0.3,
    )["fwdtransforms"]  # fmt: skip


def _moved(ants: Any, target: Any, scan: Volume, mask: Volume, transforms: list[str], before: list[str]) -> tuple:
    """``scan`` and ``mask`` on the grid of ``target``; the mask's voxels go through ``before``, too."""
    warped = ants.apply_transforms(target, _image(scan.data, scan.affine), transforms)
    lesion = _image(lesion_of(mask), mask.affine)
    label = ants.apply_transforms(target, lesion, [*transforms, *before], interpolator="genericLabel")
    return warped.numpy(), (label.numpy() > 0.5).astype(np.uint8)


def _image(data: np.ndarray, affine: np.ndarray) -> Any:
    """For ANTs."""
    image = nib.Nifti1Image(data.astype(np.float32), affine)
    image.header.set_xyzt_units("mm", "sec")
    return _ants().from_nibabel_nifti(image)


def _coarse(volume: Volume, data: np.ndarray) -> nib.Nifti1Image:
    """``data`` on an RAS grid of ``COARSE`` mm over the ``volume``, smoothed where its voxels are finer."""
    finer = COARSE / voxel_sizes(volume.affine)
    image = nib.Nifti1Image(ndimage.gaussian_filter(data, np.where(finer > 1, 0.42 * finer, 0)), volume.affine)
    return resample_to_output(image, (COARSE,) * 3, order=1)


def _anchored(fixed: nib.Nifti1Image, moving: nib.Nifti1Image, pitch: float = 0, scalp: float = 0) -> np.ndarray:
    """The transform (4, 4) from ``fixed`` to ``moving`` that brings the middles of the heads together, then nods.

    The middle is ``DEPTH`` mm below the top, and in ``moving`` a ``scalp`` more.
    """
    middles = []
    for image, depth in ((fixed, DEPTH), (moving, DEPTH + scalp)):
        (left, right), (back, front), (_, top) = head_extent(torch.from_numpy(image.get_fdata(dtype=np.float32)))
        middles.append(apply_affine(image.affine, [(left + right) / 2, (back + front) / 2, top]) - [0, 0, depth])
    turn = Rotation.from_euler("x", pitch, degrees=True).as_matrix()
    return from_matvec(turn, middles[1] - turn @ middles[0])


def _draw(target: nib.Nifti1Image, warped: np.ndarray, label: np.ndarray, title: str) -> bytes:
    """A PNG of the ``warped`` scan, with outlines of the ``target`` in red and the lesion in blue."""
    from nilearn import plotting  # 1 s, and not every run draws

    figure = Figure(figsize=(11, 6), facecolor="black")
    image = nib.Nifti1Image(warped, target.affine)
    style = {**STYLE, "vmin": 0, "vmax": np.percentile(warped, 99.5) or 1}
    data = target.get_fdata(dtype=np.float32)
    levels = sorted({*np.percentile(data[head_of(data)], [1, 30])})  # its outline, and that of its fluid
    for mode, box in (("x", (0, 0.48, 1, 0.46)), ("z", (0, 0, 1, 0.46))):
        view = plotting.plot_anat(image, figure=figure, axes=box, display_mode=mode, cut_coords=5, **style)
        view.add_contours(target, levels=levels, colors="red", linewidths=0.5)
        if label.any():
            view.add_contours(nib.Nifti1Image(label, target.affine), levels=[0.5], colors="cyan", linewidths=1.2)
    return as_png(figure, title)
