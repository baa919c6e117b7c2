"""What a chronic infarct looks like: fluid in its depth, gliosis at its rim and around it, strands that survived."""

import numpy as np
from scipy import ndimage

from scripts.data.placement import extent
from scripts.simulation.random_draws import Draw, smooth

REACH = 12  # mm around a lesion that it changes
SEEN, BLUR = 0.2, 1.5  # the least change, as a share of the way from grey to wet, that blurring by so many mm leaves


def infarcted(
    image: np.ndarray,
    share: np.ndarray,
    free: np.ndarray,
    parts: dict[str, np.ndarray],
    bright: dict[str, float],
    voxel: float,
    draw: Draw,
) -> np.ndarray:
    """Paint a lesion into ``image`` (D, H, W) and return its mask, bool: what is half drawn or more.

    A lesion that cannot be seen, because it is tiny or like what was there, is not painted.

    Args:
        image: changed in place.
        share: above 0.5 where the lesion is; its edge is roughened here.
        free: (D, H, W; bool) where a lesion may be.
        parts: fractions (D, H, W) of fluid, grey and white matter.
        bright: brightness of csf, grey, white and ``wet`` tissue, and ``spots``, from 0 (grey) to 1 (wet).
        voxel: edge in mm.
        draw: of the ranges.
    """
    mask, box = np.zeros(share.shape, bool), _box(share, int(REACH / voxel))
    rough = draw("rough") * draw.noise(share[box].shape, draw.rng.uniform(6, 15) / voxel)[0]
    share = share[box] + rough * (share[box] > 0.05)
    lesion = (share > min(0.5, 0.99 * share.max(initial=0))) & free[box]
    if not lesion.any():
        return mask
    target, fluid, grey, white = (volume[box] for volume in (image, *parts.values()))
    soft = smooth(lesion, max(draw("lesion_edge") / 2, 0.4 * voxel), voxel)
    soft /= soft.max()  # a small one is as wet in its middle as a large one
    half, before = (soft > 0.5) & free[box], target.copy()
    span = bright["wet"] - bright["grey"]
    outer = ndimage.distance_transform_edt(~lesion, sampling=voxel)
    if draw.chance("halo"):
        width = draw("halo_width") * (1 + 0.4 * draw.noise(lesion.shape, 15 / voxel)[0])
        level = bright["grey"] + draw("halo_brightness") * span
        target += np.clip(1 - outer / width.clip(1), 0, 1) * white * step(target, level, span)
    deep = lesion.sum() > 4 * (grey * lesion).sum()
    value = _content(lesion, lesion | (fluid > 0.6), deep, bright, voxel, draw)
    if draw.chance("strands"):
        field = draw.noise(lesion.shape, draw.rng.uniform(4, 8) / voxel)[0]
        limit = np.percentile(field[lesion], 100 - draw("strand_share"))
        soft *= 1 - np.clip((field - limit) / 0.5 + 0.5, 0, 1)
    target += soft * (value - target)
    if half.any() and smooth(np.abs(target - before), BLUR, voxel)[half].max() > SEEN * abs(span):
        mask[box] = half
    else:
        target[...] = before
    return mask


def _content(lesion, wet, deep, bright, voxel, draw):
    """The brightness inside: a cavity in the depth of the lesion and gliosis around it, or gliosis alone.

    The rim is a share of the lesion's own depth, up to 16 mm: a small lesion has a cavity as often as a large one. One
    that is wholly gliotic and does not reach the cortex is brighter than the spots of white matter.
    """
    share, cavity = draw("gliosis"), bright["csf"] * draw("cavity")
    gliotic = draw.chance("all_gliotic")
    if gliotic:
        share = max(0.5 + share / 2, min(bright["spots"] + 0.2, 1) if deep else 0)
    gliosis = bright["grey"] + share * (bright["wet"] - bright["grey"])
    wet = wet if draw.chance("open_to_csf") else lesion  # then no rim between lesion and CSF
    inner = ndimage.distance_transform_edt(wet, sampling=voxel) - voxel / 2
    scale = min(1, inner[lesion].max() / 16)
    mix = inner + scale * draw("rim_noise") * draw.noise(lesion.shape, draw.rng.uniform(5, 14) / voxel)[0]
    width = max(scale * draw("rim_width"), 0.2 * voxel)
    mix = 1 / (1 + np.exp(np.clip((scale * draw("rim") - mix) / width, -30, 30)))
    value = gliosis + (cavity - gliosis) * (0 if gliotic else mix)
    return value * (1 + draw("lesion_texture") * draw.noise(lesion.shape, draw.rng.uniform(2, 6) / voxel)[0])


def step(image: np.ndarray, target: float, span: float) -> np.ndarray:
    """The way from ``image`` to ``target`` where it has the sign of ``span``, else 0: nothing gets drier."""
    return np.clip(target - image, 0, None) if span > 0 else np.clip(target - image, None, 0)


def _box(share: np.ndarray, margin: int) -> tuple[slice, ...]:
    """The part of the grid that holds a lesion's ``share`` (D, H, W) and ``margin`` voxels around it."""
    return tuple(slice(max(0, first - margin), last + margin) for first, last in extent(share > 0.05))
