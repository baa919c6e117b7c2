"""Draw a scan as a PNG: three planes through the lesion and a row of axial slices, with outlines."""

import io
import warnings

import nibabel as nib
import numpy as np
from matplotlib.figure import Figure
from monai.data import MetaTensor

STYLE = {"black_bg": True, "draw_cross": False, "colorbar": False}  # of nilearn's plots


def draw(image: MetaTensor, outlines: dict[str, MetaTensor], title: str = "", n_axial: int = 7) -> bytes:
    """Return ``image`` (1, D, H, W) as a PNG under ``title``; ``outlines`` are masks of that shape by their colours.

    The planes go through the largest slices of the first mask that is not empty; ``n_axial`` axial ones cover it. No
    side is marked where the scan's ``meta`` says that ``sides_known`` is False.
    """
    from nilearn import plotting  # 1 s, and not every run draws

    scan = _nifti(image)
    masks = {colour: _nifti(mask > 0) for colour, mask in outlines.items()}
    centre, heights = _where(next((m for m in masks.values() if m.get_fdata().any()), None), scan, n_axial)
    figure = Figure(figsize=(11, 6), facecolor="black")
    darkest, brightest = np.percentile(scan.get_fdata(), [0, 99.5])
    style = {**STYLE, "annotate": image.meta.get("sides_known", True)}
    style |= {"vmin": min(0.0, darkest), "vmax": brightest or 1.0}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="No contour levels were found")
        for mode, cuts, box in (("ortho", centre, (0, 0.34, 1, 0.6)), ("z", heights, (0, 0, 1, 0.34))):
            view = plotting.plot_anat(scan, figure=figure, axes=box, display_mode=mode, cut_coords=cuts, **style)
            for colour, mask in masks.items():
                if mask.get_fdata().any():
                    view.add_contours(mask, levels=[0.5], colors=colour, linewidths=1.2)
    return as_png(figure, title)


def as_png(figure: Figure, title: str) -> bytes:
    """Return a black ``figure`` as a PNG, with a white ``title`` above it."""
    figure.suptitle(title, color="white", fontsize=11)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=80, facecolor="black")
    return picture.getvalue()


def _nifti(volume: MetaTensor) -> nib.Nifti1Image:
    """Return ``volume`` (1, D, H, W) for nilearn, which draws no axis of one voxel: such a slice is there twice."""
    array = volume[0].float().numpy()
    return nib.Nifti1Image(np.pad(array, [(0, int(n == 1)) for n in array.shape], "edge"), volume.affine.numpy())


def _where(mask: nib.Nifti1Image | None, scan: nib.Nifti1Image, n: int) -> tuple[tuple[float, ...], list[float]]:
    """Return, in mm, the point where the mask's largest slices cross, and the heights of ``n`` axial slices over it."""
    source = nib.as_closest_canonical(scan if mask is None else mask)
    data = source.get_fdata()
    if mask is None:
        data = data > data.mean()
    areas = [data.sum(tuple({0, 1, 2} - {axis})) for axis in range(3)]
    centre = nib.affines.apply_affine(source.affine, [int(area.argmax()) for area in areas])
    low, high = np.flatnonzero(areas[2])[[0, -1]] if areas[2].any() else (0, data.shape[2] - 1)
    margin = max(2, (high - low) // 6)
    rows = np.linspace(max(low - margin, 0), min(high + margin, data.shape[2] - 1), n)
    heights = nib.affines.apply_affine(source.affine, [[data.shape[0] / 2, data.shape[1] / 2, row] for row in rows])
    return tuple(float(c) for c in centre), [float(z) for z in heights[:, 2]]
