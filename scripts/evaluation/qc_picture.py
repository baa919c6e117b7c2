"""nilearn draws one view at a time: this is three planes through the lesion and a row of axial slices, as a PNG."""

import io
import warnings

import nibabel as nib
import numpy as np
from matplotlib.figure import Figure
from monai.data import MetaTensor


def draw(image: MetaTensor, outlines: dict[str, MetaTensor], title: str = "", n_axial: int = 7) -> bytes:
    """A PNG of ``image`` (1, D, H, W) with each mask (1, D, H, W, greater than 0) outlined in the colour that names it.

    The planes go through the largest slices of the first mask that is not empty; the axial row covers it.

    Args:
        image: the scan.
        outlines: a mask for each matplotlib colour, on the same grid.
        title: what to write above it.
        n_axial: slices of the lower row.
    """
    from nilearn import plotting  # 1 s, and not every run draws

    scan = nib.Nifti1Image(image[0].float().numpy(), image.affine.numpy())
    masks = {c: nib.Nifti1Image((mask[0].numpy() > 0).astype(np.float32), scan.affine) for c, mask in outlines.items()}
    centre, heights = _where(next((m for m in masks.values() if m.get_fdata().any()), None), scan, n_axial)
    figure = Figure(figsize=(11, 6), facecolor="black")
    style = {"black_bg": True, "annotate": True, "draw_cross": False, "colorbar": False, "vmin": 0}
    style["vmax"] = float(np.percentile(scan.get_fdata(), 99.5)) or 1.0
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="No contour levels were found")
        for mode, cuts, box in (("ortho", centre, (0, 0.34, 1, 0.6)), ("z", heights, (0, 0, 1, 0.34))):
            view = plotting.plot_anat(scan, figure=figure, axes=box, display_mode=mode, cut_coords=cuts, **style)
            for colour, mask in masks.items():
                if mask.get_fdata().any():
                    view.add_contours(mask, levels=[0.5], colors=colour, linewidths=1.2)
    figure.suptitle(title, color="white", fontsize=11)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=80, facecolor="black")
    return picture.getvalue()


def _where(mask: nib.Nifti1Image | None, scan: nib.Nifti1Image, n: int) -> tuple[tuple[float, ...], list[float]]:
    """In mm: the point where the mask's largest slices cross, and the heights of ``n`` axial slices over it."""
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
