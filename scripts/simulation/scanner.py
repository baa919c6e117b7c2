"""One simulated T2w scan: a head that has aged, a chronic infarct in it, and what scanners and people do to scans."""

import numpy as np
import torch
from scipy import ndimage

from scripts.simulation.anatomy import CENTRE, Head
from scripts.simulation.draw import Draw
from scripts.simulation.lesions import ARC_VOLUME_QUANTILES, grown_lesion, moved_lesion

# A pair is a range, a single number a probability or a standard deviation; lengths in mm, brightness 1 is CSF's.
RANGES = {
    # the head in the scanner: turn (rad), size, shift and warp
    "turn": 0.12, "size": (0.88, 1.12), "shift": 9, "mirror": 0.5, "warp": (1, 4), "warp_scale": (18, 45),
    # the lesion: none, a real mask (if there are any), its place and shape
    "no_lesion": 0.2, "real_mask": 0.7, "lesion_turn": 0.15, "lesion_scale": (0.8, 1.25), "lesion_shift": 5,
    "lesion_warp": (0.5, 5), "lesion_warp_scale": (10, 25), "ragged": (0.05, 0.3), "islands": 0.4, "rough": (0, 0.25),
    # atrophy: ventricles, ventricles beside the lesion, brain's surface, width of CSF around it, sulci, more sulci
    "ventricle": (-1, 8), "ex_vacuo": 0.5, "ex_vacuo_size": (0, 7), "shrunk": (-1, 3), "cistern": (1.5, 6),
    "sulci": (0.8, 2.2), "folds": 0.6, "fold_width": (0.05, 0.25), "fold_depth": (5, 22),
    # brightness of tissues and their texture
    "csf": (0.75, 1.05), "grey": (0.3, 0.62), "white_of_grey": (0.55, 0.95), "texture": (0, 0.08),
    # white-matter hyperintensities, caps around the ventricles, perivascular spaces; between grey (0) and CSF (1)
    "spots": 0.6, "spot_share": (0.3, 8), "caps": 0.5, "cap": (1, 7), "spot_brightness": (0, 0.8),
    "perivascular": 0.3, "perivascular_share": (0.1, 1),
    # inside the lesion: fluid and gliosis, how they mix with depth; strands of tissue; a halo around it
    "cavity": (0.85, 1.05), "gliosis": (0.2, 0.85), "all_gliotic": 0.15, "rim": (0, 8), "rim_width": (0.5, 3),
    "rim_noise": (0, 6), "open_to_csf": 0.6, "lesion_texture": (0, 0.15), "lesion_edge": (0.5, 3), "strands": 0.4,
    "strand_share": (2, 20), "halo": 0.4, "halo_width": (2, 10), "halo_brightness": (0.05, 0.4),
    # outside the brain: brightness of each of its parts, of the eyes; stripped, defaced, cut
    "outside": (0.03, 1.1), "outside_gain": (0.2, 1.1), "eyes": (0.6, 1.15), "stripped": 0.25, "strip_margin": (-2, 6),
    "defaced": 0.4, "cut": 0.25, "cut_size": (5, 50),
    # the scanner: bias, slices, blur, noise, brightest share that is clipped, artefacts, gamma
    "bias": (0, 0.2), "thick": 0.3, "slice": (3, 7), "blur": (0.3, 2.4), "noise": (0.005, 0.05), "artefact": 0.2,
    "percentile": (99.5, 100), "gamma": (0.7, 1.4),
}  # fmt: skip


def simulate_scan(
    heads: list[Head],
    masks: list[torch.Tensor],
    shape: tuple[int, ...],
    voxel: float,
    rng: np.random.Generator,
    ranges: dict = RANGES,
    volume: float | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """A scan (D, H, W) from 0 to 1 and its mask (D, H, W, 0 or 1) on a RAS grid of isotropic ``voxel`` mm.

    Args:
        heads: one is drawn for the brain, one for what is around it.
        masks: real lesions (``load_masks``) on the heads' grid; may be empty.
        shape: of the grid, which is centred on the field of view.
        voxel: edge of a voxel in mm.
        rng: gives everything random.
        ranges: what ``RANGES`` has.
        volume: of a grown lesion, in mm3; not given, drawn from ARC's distribution.
    """
    draw = Draw(rng, ranges)
    head, skin = (heads[rng.integers(len(heads))] for _ in range(2))
    mni = _placed(shape, voxel, draw)
    csf, grey, white, _, depth, to_ventricle = head.at(mni)
    lesion = np.zeros(shape, bool)
    if not draw.chance("no_lesion"):
        lesion = _lesion(masks, head.resolution, grey + white > 0.5, mni, voxel, draw, volume)
    near = _smooth(lesion, 15, voxel)
    near /= max(near.max(), 1e-6)
    fluid, ventricle = _aged(csf, depth, to_ventricle, near, voxel, draw)
    scale = (1 - fluid) / np.maximum(grey + white, 1e-3) * (grey + white > 0.01)
    grey, white = grey * scale, white * scale
    lesion &= (fluid < 0.95) & (to_ventricle > ventricle) & (depth > 0)
    bright = _brightness(draw)
    image = bright["csf"] * fluid + bright["grey"] * grey + bright["white"] * white
    image = _spotted(image, white, to_ventricle - ventricle, bright, voxel, draw)
    image *= 1 + draw("texture") * draw.noise(shape, rng.uniform(3, 12) / voxel)[0]
    image = _infarcted(image, lesion, fluid, white, bright, voxel, draw)
    image = _clothed(image, skin.at(mni, slice(3, 4))[0], depth, fluid, mni.numpy(), voxel, draw)
    return _scanned(image, voxel, draw), lesion.astype(np.uint8)


def _placed(shape: tuple[int, ...], voxel: float, draw: Draw) -> torch.Tensor:
    """MNI coordinates (3, *shape) in mm of a head that is turned, scaled, shifted, mirrored and warped."""
    axes = [voxel * (torch.arange(n) - (n - 1) / 2) for n in shape]
    x = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    turn = torch.from_numpy(draw.rng.normal(0, draw.ranges["turn"], (3, 3))).float()
    linear = torch.linalg.matrix_exp((turn - turn.T) / 2**0.5) / draw("size")
    linear = linear * torch.tensor([draw("size") ** 0.5 for _ in range(3)])
    shift = torch.from_numpy(draw.rng.normal(0, draw.ranges["shift"], 3)).float()
    x = torch.einsum("ij,j...->i...", linear, x - shift.reshape(3, 1, 1, 1))
    x += draw("warp") * torch.from_numpy(draw.noise(shape, draw("warp_scale") / voxel, 3))
    x += torch.tensor(CENTRE).reshape(3, 1, 1, 1)
    return x * torch.tensor([-1, 1, 1]).reshape(3, 1, 1, 1) if draw.chance("mirror") else x


def _lesion(masks, resolution, tissue, mni, voxel, draw, volume) -> np.ndarray:  # noqa: ANN001
    if masks and draw.chance("real_mask"):
        share = moved_lesion(masks[draw.rng.integers(len(masks))], resolution, mni, voxel, draw)
    else:
        volume = volume or np.interp(draw.rng.random(), np.linspace(0, 1, 5), ARC_VOLUME_QUANTILES)
        share = _smooth(grown_lesion(tissue, mni.numpy(), voxel, volume, draw), 2, voxel)
    rough = draw("rough") * draw.noise(tissue.shape, draw.rng.uniform(6, 15) / voxel)[0]
    lesion = share + rough * (share > 0.05) > 0.5
    return lesion if lesion.any() else share >= max(share.max(), 1e-6)


def _aged(csf, depth, to_ventricle, near, voxel, draw):  # noqa: ANN001, ANN202
    """CSF fraction of a brain that has shrunk, and by how many mm its ventricles are wider (a field)."""
    shape = csf.shape
    ventricle = draw("ventricle") + draw.noise(shape, 30 / voxel)[0]
    if draw.chance("ex_vacuo"):
        ventricle += draw("ex_vacuo_size") * near
    ventricle = np.clip(ventricle, 0, None)
    fluid = np.clip(csf * (draw("sulci") + (draw("sulci") - 0.8) * near), 0, 1) * np.clip(depth / voxel + 0.5, 0, 1)
    fluid = np.where(depth < 30, fluid, np.maximum(csf, fluid * (csf > 0.3)))
    if draw.chance("folds"):
        sheet = np.abs(draw.noise(shape, draw.rng.uniform(10, 20) / voxel)[0])
        inside = np.clip((draw("fold_depth") - depth) / voxel, 0, 1)
        fluid = np.maximum(fluid, np.clip(1.5 - sheet / draw("fold_width"), 0, 1) * inside)
    fluid = np.maximum(fluid, np.clip((ventricle - to_ventricle) / voxel + 0.5, 0, 1) * (ventricle > 0))
    shrunk = draw("shrunk") + draw.noise(shape, 20 / voxel)[0] + 2 * near
    fluid = np.maximum(fluid, np.clip((shrunk - depth) / voxel + 0.5, 0, 1))
    return fluid * np.clip((depth + draw("cistern")) / voxel + 0.5, 0, 1), ventricle


def _brightness(draw: Draw) -> dict[str, float]:
    csf, grey = draw("csf"), draw("grey")
    return {"csf": csf, "grey": grey, "white": grey * draw("white_of_grey")}


def _spotted(image, white, to_ventricle, bright, voxel, draw):  # noqa: ANN001, ANN202
    """With white-matter hyperintensities, caps around the ventricles and perivascular spaces."""
    shape, share = image.shape, np.zeros_like(image)
    if draw.chance("spots"):
        field = draw.noise(shape, draw.rng.uniform(5, 12) / voxel)[0]
        some = field[::2, ::2, ::2][white[::2, ::2, ::2] > 0.5]
        limit = np.percentile(some, 100 - draw("spot_share")) if some.size else 9
        share = np.clip((field - limit) / 0.3 + 0.5, 0, 1)
        if draw.chance("caps"):
            cap = draw("cap") + 1.5 * draw.noise(shape, 12 / voxel)[0]
            share = np.maximum(share, np.clip((cap - to_ventricle) / 3 + 0.5, 0, 1))
        share = share * np.clip(1.5 * white, 0, 1)
    target = bright["grey"] + draw("spot_brightness") * (bright["csf"] - bright["grey"])
    image = image + share * np.clip(target - image, 0, None)
    if draw.chance("perivascular"):
        dots = (draw.rng.random(shape, dtype=np.float32) < draw("perivascular_share") / 100) * (white > 0.6)
        image = image + dots * draw.rng.uniform(0.2, 0.9) * (bright["csf"] - image)
    return image


def _infarcted(image, lesion, fluid, white, bright, voxel, draw):  # noqa: ANN001, ANN202
    """With the lesion: fluid in its depth, gliosis at its rim and around it, strands of tissue that survived."""
    if not lesion.any():
        return image
    shape = image.shape
    span = bright["csf"] - bright["grey"]
    gliosis, cavity = bright["grey"] + draw("gliosis") * span, bright["csf"] * draw("cavity")
    wet = lesion | (fluid > 0.6) if draw.chance("open_to_csf") else lesion
    box = tuple(slice(max(0, a - 8), b + 9) for a, b in zip(*_corners(lesion), strict=True))
    inner, outer = np.zeros(shape, np.float32), np.full(shape, 1e3, np.float32)
    inner[box] = ndimage.distance_transform_edt(wet[box], sampling=voxel)
    outer[box] = ndimage.distance_transform_edt(~lesion[box], sampling=voxel)
    if draw.chance("halo"):
        halo = np.clip(1 - outer / (draw("halo_width") * (1 + 0.4 * draw.noise(shape, 15 / voxel)[0])).clip(1), 0, 1)
        image = image + halo * white * np.clip(bright["grey"] + draw("halo_brightness") * span - image, 0, None)
    mix = inner + draw("rim_noise") * draw.noise(shape, draw.rng.uniform(5, 14) / voxel)[0] - draw("rim")
    mix = 0 if draw.chance("all_gliotic") else 1 / (1 + np.exp(-np.clip(mix / draw("rim_width"), -30, 30)))
    value = gliosis + (cavity - gliosis) * mix
    value *= 1 + draw("lesion_texture") * draw.noise(shape, draw.rng.uniform(2, 6) / voxel)[0]
    share = _smooth(lesion, draw("lesion_edge") / 2, voxel)
    if draw.chance("strands"):
        field = draw.noise(shape, draw.rng.uniform(4, 8) / voxel)[0]
        share *= 1 - np.clip((field - np.percentile(field[lesion], 100 - draw("strand_share"))) / 0.5 + 0.5, 0, 1)
    return image + share * (value - image)


def _clothed(image, outside, depth, fluid, mni, voxel, draw):  # noqa: ANN001, ANN202
    """With skull, scalp and eyes; or stripped of them, or defaced."""
    tissue = np.clip(depth / voxel + 0.5, fluid, 1)
    if draw.chance("stripped"):
        return image * (depth > -draw("strip_margin") - draw.noise(image.shape, 20 / voxel)[0])
    knots = [0.0, 0.02, *(draw("outside") for _ in range(4))]
    gain = draw("outside_gain") * (1 + 0.2 * draw.noise(image.shape, draw.rng.uniform(4, 15) / voxel)[0])
    around = gain * np.interp(outside, [0, 0.08, 0.25, 0.5, 0.75, 1], knots).astype(np.float32)
    eye = draw("eyes")
    for side in (-1, 1):
        x, y, z = mni[0] - side * 33, mni[1] - 62, mni[2] + 38
        around += np.clip((12 - np.sqrt(x * x + y * y + z * z)) / voxel + 0.5, 0, 1) * (eye - around)
    image = image * tissue + around * (1 - tissue)
    if draw.chance("defaced"):
        y, z = mni[1], mni[2]
        image = image * (draw.rng.uniform(0.4, 1.2) * (y - draw.rng.uniform(20, 60)) - (z + 45) < 0)
    return image


def _scanned(image: np.ndarray, voxel: float, draw: Draw) -> np.ndarray:
    """As the scanner and the converter leave it: 0 to 1."""
    shape, rng = image.shape, draw.rng
    ramp = [np.linspace(-1, 1, n, dtype=np.float32).reshape([-1 if a == i else 1 for a in range(3)]) for i, n in enumerate(shape)]
    weight = rng.normal(0, draw("bias"), 6)
    image = image * np.exp(sum(w * r for w, r in zip(weight, [*ramp, *(r * r for r in ramp)], strict=True)))
    blur = np.full(3, draw("blur"))
    if draw.chance("thick"):
        blur[rng.integers(3)] = draw("slice") * 0.6
    image = _smooth(image, np.maximum(0, blur**2 - (0.3 * voxel) ** 2) ** 0.5 / 1.5, voxel)
    if draw.chance("cut"):
        axis, n = rng.choice(3, p=(0.1, 0.2, 0.7)), round(draw("cut_size") / voxel)
        index = [slice(None)] * 3
        index[axis] = slice(0, n) if rng.random() < 0.7 else slice(shape[axis] - n, None)
        image[tuple(index)] = 0
    sigma = draw("noise")
    noise = rng.standard_normal((2, *shape), dtype=np.float32) * sigma
    image = np.where(image > 0, np.hypot(image + noise[0], noise[1]), 0) if rng.random() < 0.5 else np.hypot(image + noise[0], noise[1])
    if draw.chance("artefact"):
        image[tuple(rng.integers(0, shape))] = rng.uniform(1.5, 6)
    top = np.percentile(image[::2, ::2, ::2], draw("percentile"))
    return (np.clip(image / max(top, 1e-6), 0, 1) ** draw("gamma")).astype(np.float32)


def _smooth(volume: np.ndarray, mm: float | np.ndarray, voxel: float) -> np.ndarray:
    return ndimage.gaussian_filter(volume.astype(np.float32), np.asarray(mm) / voxel, truncate=3)


def _corners(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    where = np.argwhere(mask)
    return where.min(0), where.max(0)
