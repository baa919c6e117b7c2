"""One simulated scan, T2w or of another contrast: an aged head, a chronic infarct, and what scanners and people do."""

import json
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage

from scripts.simulation.anatomy import CENTRE, sample
from scripts.simulation.lesions import ARC_VOLUME_QUANTILES, grown_lesion, moved_lesion
from scripts.simulation.random_draws import Draw

RANGES = json.loads(Path(__file__).with_name("ranges.json").read_text())


def simulate_scan(
    heads: list[torch.Tensor],
    masks: list[torch.Tensor],
    shape: tuple[int, ...],
    voxel: float,
    rng: np.random.Generator,
    ranges: dict,
    volume: float | None = None,
    scanner: np.random.Generator | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """A scan (D, H, W; 0 to 1) and its mask (D, H, W; 0 or 1) on a RAS grid of ``voxel`` mm.

    Args:
        heads: of ``load_head``; one is drawn for the brain, and one for what is around it unless the first is a T2w
            scan, which keeps ``own_brightness`` of its own.
        masks: of ``load_mask``; may be empty.
        shape: of the grid; its centre is the field of view's.
        voxel: edge of a voxel in mm.
        rng: gives everything random.
        ranges: all names of ``RANGES["patients"]``; those of ``RANGES["T1w"]`` or ``["FLAIR"]`` over them give the same
            head and lesion (if ``rng`` is the same) in that contrast.
        volume: of a grown lesion, in mm3; not given, drawn from ARC's distribution.
        scanner: gives what the scanner does to the image, if not ``rng``: noise, blur and unevenness.
    """
    draw = Draw(rng, ranges)
    head, skin = (heads[rng.integers(len(heads))] for _ in range(2))
    mni = _placed(shape, voxel, draw)
    csf, grey, white, _, depth, to_ventricle, own = sample(head, mni)
    tissue, parts, kept = grey + white, (csf, grey, white), 0.0
    if own.any():
        skin, kept = head, draw("own_brightness")
    lesion = np.zeros(shape, bool) if draw.chance("no_lesion") else _lesion(masks, tissue, mni, voxel, draw, volume)
    near = _smooth(lesion, 15, voxel)
    near /= max(near.max(), 1e-6)
    fluid, ventricle = _aged(csf, depth, to_ventricle, near, voxel, draw)
    if kept:
        fluid = np.maximum(fluid, csf)  # what is bright in its own scan stays fluid
    grey, white = (part * (1 - fluid) / np.maximum(tissue, 1e-3) * (tissue > 0.01) for part in (grey, white))
    lesion &= (fluid < 0.95) & (to_ventricle > ventricle) & (depth > 0)
    bright = {"csf": draw("csf"), "grey": draw("grey")}
    bright["white"] = bright["grey"] * draw("white_of_grey")
    bright["wet"] = ranges.get("wet", bright["csf"])  # tissue full of water; a FLAIR suppresses what is nothing else
    image = bright["csf"] * fluid + bright["grey"] * grey + bright["white"] * white
    if kept:
        levels = _levels(own, *parts)
        lost = (fluid - csf) / np.maximum(1 - csf, 1e-3)  # tissue that is fluid now
        image += kept * (own + lost * (levels["wet"] - own) - image)
        bright = {name: value + kept * (levels[name] - value) for name, value in bright.items()}
    image = _spotted(image, white, to_ventricle - ventricle, bright, voxel, draw)
    image *= 1 + draw("texture") * draw.noise(shape, rng.uniform(3, 12) / voxel)[0]
    if lesion.any():
        image = _infarcted(image, lesion, fluid, white, bright, voxel, draw)
    image = _clothed(image, sample(skin[3:4], mni)[0], kept * own, kept, depth, fluid, mni.numpy(), voxel, draw)
    return _scanned(image, voxel, Draw(scanner or rng, ranges)), lesion.astype(np.uint8)


def _levels(own, csf, grey, white):
    """How bright CSF, grey and white matter are in a T2w scan; the head's mean for one that the grid lacks."""
    parts = {"csf": csf, "grey": grey, "white": white}
    mean = {name: np.average(own, weights=part**4 + 1e-9 * (own > 0)) for name, part in parts.items()}
    return mean | {"wet": mean["csf"]}


def _placed(shape, voxel, draw):
    """MNI coordinates (3, *shape) in mm of a head that is turned, scaled, shifted, mirrored and warped."""
    axes = [voxel * (torch.arange(n) - (n - 1) / 2) for n in shape]
    turn = draw.normal("turn", 3, 3)
    linear = torch.linalg.matrix_exp((turn - turn.T) / 2**0.5) / draw("size")
    linear = linear * torch.tensor([draw("size") ** 0.5 for _ in range(3)])
    x = torch.stack(torch.meshgrid(*axes, indexing="ij")) - draw.normal("shift", 3, 1, 1, 1)
    x = torch.einsum("ij,j...->i...", linear, x)
    x += draw("warp") * torch.from_numpy(draw.noise(shape, draw("warp_scale") / voxel, 3))
    x += torch.tensor(CENTRE).reshape(3, 1, 1, 1)
    return x * torch.tensor([-1, 1, 1]).reshape(3, 1, 1, 1) if draw.chance("mirror") else x


def _lesion(masks, tissue, mni, voxel, draw, volume):
    if masks and draw.chance("real_mask"):
        share = moved_lesion(masks[draw.rng.integers(len(masks))], mni, voxel, draw)
    else:
        volume = volume or np.interp(draw.rng.random(), np.linspace(0, 1, 5), ARC_VOLUME_QUANTILES)
        share = _smooth(grown_lesion(tissue > 0.5, mni.numpy(), voxel, volume, draw), 2, voxel)
    rough = draw("rough") * draw.noise(tissue.shape, draw.rng.uniform(6, 15) / voxel)[0]
    lesion = share + rough * (share > 0.05) > 0.5
    return lesion if lesion.any() else share >= max(share.max(), 1e-6)


def _aged(csf, depth, to_ventricle, near, voxel, draw):
    """CSF's share in a brain that has shrunk, more ``near`` its lesion, and by how many mm ventricles are wider."""
    shape = csf.shape
    ventricle = draw("ventricle") + draw.noise(shape, 30 / voxel)[0]
    if draw.chance("ex_vacuo"):
        ventricle += draw("ex_vacuo_size") * near
    ventricle = np.clip(ventricle, 0, None)
    fluid = np.clip(csf * (draw("sulci") + (draw("sulci") - 0.8) * near), 0, 1) * np.clip(depth / voxel + 0.5, 0, 1)
    fluid = np.where(depth < 30, fluid, np.maximum(csf, fluid * (csf > 0.3)))
    if draw.chance("folds"):  # averages of many heads have few sulci
        sheet = np.abs(draw.noise(shape, draw.rng.uniform(10, 20) / voxel)[0])
        reach = np.clip((draw("fold_depth") - depth) / voxel, 0, 1)
        fluid = np.maximum(fluid, np.clip(1.5 - sheet / draw("fold_width"), 0, 1) * reach)
    fluid = np.maximum(fluid, np.clip((ventricle - to_ventricle) / voxel + 0.5, 0, 1) * (ventricle > 0))
    shrunk = draw("shrunk") + draw.noise(shape, 20 / voxel)[0] + 2 * near
    fluid = np.maximum(fluid, np.clip((shrunk - depth) / voxel + 0.5, 0, 1))
    return fluid * np.clip((depth + draw("cistern")) / voxel + 0.5, 0, 1), ventricle


def _spotted(image, white, to_ventricle, bright, voxel, draw):
    """With white-matter hyperintensities, caps around the ventricles and perivascular spaces."""
    share = np.zeros_like(image)
    if draw.chance("spots"):
        field = draw.noise(image.shape, draw.rng.uniform(5, 12) / voxel)[0]
        some = field[::2, ::2, ::2][white[::2, ::2, ::2] > 0.5]
        limit = np.percentile(some, 100 - draw("spot_share")) if some.size else 9
        share = np.clip((field - limit) / 0.3 + 0.5, 0, 1)
        if draw.chance("caps"):
            cap = draw("cap") + 1.5 * draw.noise(image.shape, 12 / voxel)[0]
            share = np.maximum(share, np.clip((cap - to_ventricle) / 3 + 0.5, 0, 1))
        share = share * np.clip(1.5 * white, 0, 1)
    span = bright["wet"] - bright["grey"]
    image = image + share * _step(image, bright["grey"] + draw("spot_brightness") * span, span)
    if draw.chance("perivascular"):
        dots = (draw.rng.random(image.shape, np.float32) < draw("perivascular_share") / 100) * (white > 0.6)
        image = image + dots * draw.rng.uniform(0.2, 0.9) * (bright["csf"] - image)
    return image


def _infarcted(image, lesion, fluid, white, bright, voxel, draw):
    """With the lesion: fluid in its depth, gliosis at its rim and around it, strands of tissue that survived."""
    shape, span = image.shape, bright["wet"] - bright["grey"]
    gliosis, cavity = bright["grey"] + draw("gliosis") * span, bright["csf"] * draw("cavity")
    wet = lesion | (fluid > 0.6) if draw.chance("open_to_csf") else lesion  # then no rim between lesion and CSF
    where = np.argwhere(lesion)
    box = tuple(slice(max(0, a - 8), b + 9) for a, b in zip(where.min(0), where.max(0), strict=True))
    inner, outer = np.zeros(shape, np.float32), np.full(shape, 1e3, np.float32)
    inner[box] = ndimage.distance_transform_edt(wet[box], sampling=voxel)
    outer[box] = ndimage.distance_transform_edt(~lesion[box], sampling=voxel)
    if draw.chance("halo"):
        width = draw("halo_width") * (1 + 0.4 * draw.noise(shape, 15 / voxel)[0])
        target = bright["grey"] + draw("halo_brightness") * span
        image = image + np.clip(1 - outer / width.clip(1), 0, 1) * white * _step(image, target, span)
    mix = inner + draw("rim_noise") * draw.noise(shape, draw.rng.uniform(5, 14) / voxel)[0] - draw("rim")
    mix = 0 if draw.chance("all_gliotic") else 1 / (1 + np.exp(-np.clip(mix / draw("rim_width"), -30, 30)))
    value = gliosis + (cavity - gliosis) * mix
    value *= 1 + draw("lesion_texture") * draw.noise(shape, draw.rng.uniform(2, 6) / voxel)[0]
    share = _smooth(lesion, draw("lesion_edge") / 2, voxel)
    if draw.chance("strands"):
        field = draw.noise(shape, draw.rng.uniform(4, 8) / voxel)[0]
        share *= 1 - np.clip((field - np.percentile(field[lesion], 100 - draw("strand_share"))) / 0.5 + 0.5, 0, 1)
    return image + share * (value - image)


def _clothed(image, outside, own, kept, depth, fluid, mni, voxel, draw):
    """With skull, scalp and eyes, of which ``own`` are a T2w scan's; or stripped of them, or defaced."""
    shape, rng = image.shape, draw.rng
    if draw.chance("stripped"):
        return image * (depth > -draw("strip_margin") - draw.noise(shape, 20 / voxel)[0])
    brightness = [0.0, 0.02, *(draw("outside") for _ in range(4))]  # fat, muscle, marrow: of any brightness
    gain = draw("outside_gain") * (1 + 0.2 * draw.noise(shape, rng.uniform(4, 15) / voxel)[0])
    around = gain * np.interp(outside, [0, 0.08, 0.25, 0.5, 0.75, 1], brightness).astype(np.float32)
    eye = draw("eyes")
    with_head = np.mean(outside[depth < -8] > 0.05) > 0.01
    with_eyes = not kept and with_head  # a T2w scan has its own, a brain without a head has none
    for x in (-33, 33) if with_eyes else ():
        radius = np.sqrt((mni[0] - x) ** 2 + (mni[1] - 62) ** 2 + (mni[2] + 38) ** 2)
        around += np.clip((12 - radius) / voxel + 0.5, 0, 1) * (eye - around)
    around = (1 - kept) * around + own * (1 + (gain - 1) * np.clip(-depth / 10, 0, 1))  # no step at the brain's edge
    tissue = np.clip(depth / voxel + 0.5, fluid, 1)
    image = image * tissue + around * (1 - tissue)
    if draw.chance("defaced"):
        image = image * (rng.uniform(0.4, 1.2) * (mni[1] - rng.uniform(20, 60)) - (mni[2] + 45) < 0)
    return image


def _scanned(image, voxel, draw):
    """As scanner and converter leave it: uneven, blurred, cut, noisy, scaled from 0 to 1."""
    shape, rng = image.shape, draw.rng
    ramps = np.ogrid[tuple(slice(-1, 1, 1j * n) for n in shape)]
    weights = rng.normal(0, draw("bias"), 6)
    image = image * np.exp(sum(w * r for w, r in zip(weights, [*ramps, *(r * r for r in ramps)], strict=True)))
    blur = np.full(3, draw("blur"))
    if draw.chance("thick"):
        blur[rng.integers(3)] = draw("slice") * 0.6
    image = _smooth(image, np.maximum(0, blur**2 - (0.3 * voxel) ** 2) ** 0.5 / 1.5, voxel)  # a voxel blurs, too
    if draw.chance("cut"):
        axis, n = rng.choice(3, p=(0.1, 0.2, 0.7)), round(draw("cut_size") / voxel)
        np.moveaxis(image, axis, 0)[slice(0, n) if rng.random() < 0.7 else slice(shape[axis] - n, None)] = 0
    sigma = draw("noise")
    noise = rng.standard_normal((2, *shape), dtype=np.float32) * sigma
    noisy = np.hypot(image + noise[0], noise[1])
    image = np.where(image > 0, noisy, 0) if rng.random() < 0.5 else noisy  # some converters clear the air
    if draw.chance("artefact"):
        image[tuple(rng.integers(0, shape))] = rng.uniform(1.5, 6)
    top = np.percentile(image[::2, ::2, ::2], draw("percentile"))
    return (np.clip(image / max(top, 1e-6), 0, 1) ** draw("gamma")).astype(np.float32)


def _step(image, target, span):
    """The way from ``image`` to ``target`` where it has the sign of ``span``, else 0: nothing gets drier."""
    return np.clip(target - image, 0, None) if span > 0 else np.clip(target - image, None, 0)


def _smooth(volume, mm, voxel):
    return ndimage.gaussian_filter(volume.astype(np.float32), np.asarray(mm) / voxel, truncate=3)
