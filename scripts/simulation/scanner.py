"""One simulated scan, T2w or of another contrast: an aged head, chronic infarcts, and what scanners and people do."""

import json
from pathlib import Path

import numpy as np
import torch

from scripts.data.placement import extent
from scripts.simulation.anatomy import CENTRE, Head
from scripts.simulation.infarct import infarcted, step
from scripts.simulation.label_map import AIR, OUTSIDE, STRUCTURES
from scripts.simulation.lesions import Mask, around, drawn_lesion, lacune
from scripts.simulation.random_draws import Draw, smooth

RANGES = json.loads(Path(__file__).with_name("ranges.json").read_text())
MARGIN = 10  # mm around the brain in which what is inside is simulated


def simulate_scan(
    heads: list[Head],
    masks: list[Mask],
    shape: tuple[int, ...],
    voxel: float,
    rng: np.random.Generator,
    ranges: dict,
    volume: float | None = None,
    scanner: np.random.Generator | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """A scan (D, H, W; 0 to 1) and its mask (D, H, W; 0 or 1) on a RAS grid of ``voxel`` mm.

    Args:
        heads: of ``load_head``; one is drawn for the brain, and one for what is around it unless the first is a label
            map or a T2w scan, which keeps ``own_brightness`` of its own.
        masks: of ``load_masks``; may be empty.
        shape: of the grid; its centre is the field of view's.
        voxel: edge of a voxel in mm.
        rng: gives everything random.
        ranges: all names of ``RANGES["patients"]``; those of ``RANGES["T1w"]`` or ``["FLAIR"]`` over them give the same
            head and lesion (if ``rng`` is the same) in that contrast.
        volume: of a grown lesion, in mm3; not given, drawn by ``volume_odds``.
        scanner: gives what the scanner does to the image, if not ``rng``: noise, blur and unevenness.
    """
    draw = Draw(rng, ranges)
    head, skin = (heads[rng.integers(len(heads))] for _ in range(2))
    mni = _placed(shape, voxel, draw)
    if draw.chance("random_contrast"):
        draw.ranges = ranges | RANGES["random"]
    box, depth = _brain(head, mni, voxel)
    brain, label = _with_lesions(head, masks, mni[(slice(None), *box)], voxel, draw, volume)
    image, fluid = (np.zeros(shape, np.float32) for _ in range(2))
    image[box], fluid[box], depth[box] = brain["image"], brain["fluid"], brain["depth"]
    own, kept = (head.at(mni, (6,))[0], brain["kept"]) if brain["kept"] else (np.zeros((1, 1, 1), np.float32), 0.0)
    image = _clothed(image, head if kept or head.labelled else skin, kept * own, kept, depth, fluid, mni, voxel, draw)
    lesion = np.zeros(shape, np.uint8)
    lesion[box] = label
    return _scanned(image, voxel, Draw(scanner or rng, draw.ranges)), lesion


def _placed(shape, voxel, draw):
    """MNI coordinates (3, *shape) in mm of a head that is turned, scaled, shifted, mirrored and warped."""
    axes = [voxel * (torch.arange(n) - (n - 1) / 2) for n in shape]
    turn = draw.normal("turn", 3, 3)
    linear = torch.linalg.matrix_exp((turn - turn.T) / 2**0.5) / draw("size")
    linear = linear * torch.tensor([draw("size") ** 0.5 for _ in range(3)])
    shift = linear @ draw.normal("shift", 3) - torch.tensor(CENTRE)
    x = draw("warp") * torch.from_numpy(draw.noise(shape, draw("warp_scale") / voxel, 3))
    for k, axis in enumerate(axes):  # one axis at a time: the grid itself is never there
        x += (linear[:, k, None] * axis).reshape(3, *(-1 if a == k else 1 for a in range(3)))
    x -= shift.reshape(3, 1, 1, 1)
    if draw.chance("mirror"):
        x[0] *= -1
    return x


def _brain(head, mni, voxel):
    """The part of the grid around the brain, and a field (D, H, W) of depths that are as far outside as can be."""
    stride = max(1, round(6 / voxel))
    coarse = head.at(mni[:, ::stride, ::stride, ::stride], (4,))[0] > -MARGIN
    ends = [(stride * (first - 1), stride * last + 1) for first, last in extent(coarse)]
    return tuple(slice(max(0, a), b) for a, b in ends), np.full(mni.shape[1:], -20, np.float32)


def _with_lesions(head, masks, mni, voxel, draw, volume):
    """The brain's image, depth, fluid and how much of its own brightness is ``kept``, and the mask of its lesions."""
    csf, grey, white, depth, to_ventricle, own = head.at(mni, (0, 1, 2, 4, 5, 6))
    gain = _structures(head, mni, draw)
    tissue, parts, kept = grey + white, (csf, grey, white), 0.0
    if own.any():
        kept = draw("own_brightness")
    shares = _shares(masks, tissue, mni, voxel, draw, volume)
    near = smooth(np.maximum.reduce([share for share, _ in shares]) > 0.5, 15, voxel) if shares else 0 * csf
    near /= max(float(near.max()), 1e-6)
    fluid, ventricle = _aged(csf, depth, to_ventricle, near, voxel, draw, head.labelled)
    if kept:
        fluid = np.maximum(fluid, csf)  # what is bright in its own scan stays fluid
    dry = (1 - fluid) / np.maximum(tissue, 1e-3) * (tissue > 0.01)
    grey, white = grey * dry, white * dry
    bright = _levels(draw)
    image = bright["csf"] * fluid + gain * (bright["grey"] * grey + bright["white"] * white)
    if kept:
        levels = _own_levels(own, *parts)
        lost = (fluid - csf) / np.maximum(1 - csf, 1e-3)  # tissue that is fluid now
        image += kept * (own + lost * (levels["wet"] - own) - image)
        bright = {name: value + kept * (levels[name] - value) for name, value in bright.items()}
    to_ventricle = to_ventricle - ventricle
    bright["spots"] = draw("spot_brightness")
    image = _spotted(image, white, to_ventricle, bright, voxel, draw)
    image *= 1 + draw("texture") * draw.noise(image.shape, draw.rng.uniform(3, 12) / voxel)[0]
    free, label = (fluid < 0.95) & (to_ventricle > 0) & (depth > 0), np.zeros(image.shape, bool)
    parts = {"fluid": fluid, "grey": grey, "white": white}
    for share, ranges in shares:
        label |= infarcted(image, share, free, parts, bright, voxel, Draw(draw.rng, draw.ranges | ranges))
    return {"image": image, "fluid": fluid, "depth": depth, "kept": kept}, label


def _shares(masks, tissue, mni, voxel, draw, volume):
    """Shares (D, H, W) of each lesion, and what differs from the ranges within it."""
    if draw.chance("no_lesion"):
        return []
    for _ in range(4):  # until it lies in tissue, not in a sulcus or beside the brain
        shares = [(drawn_lesion(masks, tissue, mni, voxel, draw, volume), {})]
        inside = shares[0][0] > 0.5
        if (tissue[inside] > 0.5).sum() > 0.3 * inside.sum():
            break
    if draw.chance("several"):
        small = Draw(draw.rng, draw.ranges | RANGES["small"])
        shares += [(drawn_lesion(masks, tissue, mni, voxel, small), {}) for _ in range(draw.rng.integers(1, 4))]
    if draw.chance("lacunes"):
        shares += [(lacune(mni, voxel, draw), RANGES["lacune"]) for _ in range(draw.rng.integers(1, 4))]
    return shares


def _structures(head, mni, draw):
    """How bright a label map's structures are relative to their tissue, each a little other than usual; else 1."""
    if not head.labelled:
        return 1.0
    iron = draw("iron")
    gains = [gain**iron * (draw("structure") if share[0] < 1 else 1) for _, share, gain in STRUCTURES.values()]
    return head.by_code(np.array(gains + [1.0] * (256 - AIR)), mni)


def _levels(draw):
    """How bright CSF, grey and white matter are, and tissue that is full of water; CSF is never like grey matter."""
    bright = {"csf": draw("csf"), "grey": draw("grey")}
    bright["white"] = bright["grey"] * draw("white_of_grey")
    contrast = bright["csf"] - bright["grey"]
    bright["csf"] = bright["grey"] + np.copysign(max(abs(contrast), 0.2), contrast)
    return bright | {"wet": draw.ranges.get("wet", bright["csf"])}  # a FLAIR suppresses only what is nothing else


def _own_levels(own, csf, grey, white):
    """How bright CSF, grey and white matter are in a T2w scan; the head's mean for one that the grid lacks."""
    parts = {"csf": csf, "grey": grey, "white": white}
    mean = {name: float(np.average(own, weights=part**8 + 1e-9 * (own > 0))) for name, part in parts.items()}
    return mean | {"wet": mean["csf"]}


def _aged(csf, depth, to_ventricle, near, voxel, draw, person):
    """CSF's share in a brain that has shrunk, more ``near`` its lesion, and by how many mm ventricles are wider.

    The brain of one ``person`` has its own sulci and atrophy already; an average has little of both.
    """
    shape = csf.shape
    ventricle = (draw("own_ventricle") if person else draw("ventricle")) + draw.noise(shape, 30 / voxel)[0]
    if draw.chance("ex_vacuo"):
        ventricle += draw("ex_vacuo_size") * near
    ventricle = np.clip(ventricle, 0, None)
    sulci = draw("own_sulci") if person else draw("sulci")
    fluid = np.clip(csf * (sulci + (draw("sulci") - 0.8) * near), 0, 1) * np.clip(depth / voxel + 0.5, 0, 1)
    fluid = np.where(depth < 30, fluid, np.maximum(csf, fluid * (csf > 0.3)))
    if not person and draw.chance("folds"):
        sheet = np.abs(draw.noise(shape, draw.rng.uniform(10, 20) / voxel)[0])
        reach = np.clip((draw("fold_depth") - depth) / voxel, 0, 1)
        fluid = np.maximum(fluid, np.clip(1.5 - sheet / draw("fold_width"), 0, 1) * reach)
    fluid = np.maximum(fluid, np.clip((ventricle - to_ventricle) / voxel + 0.5, 0, 1) * (ventricle > 0))
    shrunk = (draw("own_shrunk") if person else draw("shrunk")) + draw.noise(shape, 20 / voxel)[0] + 2 * near
    fluid = np.maximum(fluid, np.clip((shrunk - depth) / voxel + 0.5, 0, 1))
    return fluid * np.clip((depth + (0 if person else draw("cistern"))) / voxel + 0.5, 0, 1), ventricle


def _spotted(image, white, to_ventricle, bright, voxel, draw):
    """With white-matter hyperintensities, caps around the ventricles and perivascular spaces."""
    share = np.zeros_like(image)
    if draw.chance("spots"):
        field = draw.noise(image.shape, draw.rng.uniform(5, 12) / voxel)[0]
        some = field[::2, ::2, ::2][white[::2, ::2, ::2] > 0.5]
        limit = float(np.percentile(some, 100 - draw("spot_share"))) if some.size else 9
        share = np.clip((field - limit) / 0.3 + 0.5, 0, 1)
        if draw.chance("caps"):
            cap = draw("cap") + 1.5 * draw.noise(image.shape, 12 / voxel)[0]
            share = np.maximum(share, np.clip((cap - to_ventricle) / 3 + 0.5, 0, 1))
        share = share * np.clip(1.5 * white, 0, 1)
    span = bright["wet"] - bright["grey"]
    image = image + share * step(image, bright["grey"] + bright["spots"] * span, span)
    if draw.chance("perivascular"):
        dots = (draw.rng.random(image.shape, np.float32) < draw("perivascular_share") / 100) * (white > 0.6)
        image = image + dots * draw.rng.uniform(0.2, 0.9) * (bright["csf"] - image)
    return image


def _outside(head, draw):
    """The brightness that each byte of ``head``'s fourth map stands for."""
    drawn = [draw("outside") for _ in range(4)]  # fat, muscle, marrow: of any brightness
    if not head.labelled:
        return np.interp(np.arange(256) / 255, [0, 0.08, 0.25, 0.5, 0.75, 1], [0.0, 0.02, *drawn])
    levels = [draw(name) for name in OUTSIDE]
    return np.array([levels[0]] * AIR + [0.0] + levels + [0.0] * (255 - AIR - len(levels)))


def _clothed(image, head, own, kept, depth, fluid, mni, voxel, draw):
    """With the skull, scalp and eyes of ``head``, of which ``own`` are a T2w scan's; or stripped, or defaced."""
    shape, rng = image.shape, draw.rng
    if draw.chance("stripped"):
        return image * (depth > -draw("strip_margin") - draw.noise(shape, 20 / voxel)[0])
    gain = draw("outside_gain") * (1 + 0.2 * draw.noise(shape, rng.uniform(4, 15) / voxel)[0])
    outside = head.by_code(_outside(head, draw), mni)
    eye, paints = draw("eyes"), not kept and not head.labelled  # the others have their own
    with_head = np.mean(outside[depth < -8] > 0.01) > 0.01  # a brain without a head has none
    surrounding = gain * outside
    for x in (-33, 33) if paints and with_head else ():
        here = around(mni, (x, 62, -38), 14)
        radius = (mni[(slice(None), *here)] - torch.tensor([x, 62, -38]).reshape(3, 1, 1, 1)).norm(dim=0).numpy()
        surrounding[here] += np.clip((12 - radius) / voxel + 0.5, 0, 1) * (eye - surrounding[here])
    # no step at the brain's edge
    surrounding = (1 - kept) * surrounding + own * (1 + (gain - 1) * np.clip(-depth / 10, 0, 1))
    tissue = np.clip(depth / voxel + 0.5, fluid, 1)
    image = image * tissue + surrounding * (1 - tissue)
    if draw.chance("defaced"):
        plane = rng.uniform(0.4, 1.2) * (mni[1] - rng.uniform(20, 60)) - (mni[2] + 45)
        image = image * (plane < 0).numpy()
    return image


def _scanned(image, voxel, draw):
    """As scanner and converter leave it: uneven, blurred, cut, noisy, scaled from 0 to 1."""
    shape, rng = image.shape, draw.rng
    weights = rng.normal(0, draw("bias"), 6)
    for k, ramp in enumerate(np.ogrid[tuple(slice(-1, 1, 1j * n) for n in shape)]):
        image = image * np.exp(weights[k] * ramp + weights[k + 3] * ramp**2).astype(np.float32)
    blur = np.full(3, draw("blur"))
    if draw.chance("thick"):
        blur[rng.integers(3)] = draw("slice") * 0.6
    image = smooth(image, np.maximum(0, blur**2 - (0.3 * voxel) ** 2) ** 0.5 / 1.5, voxel)  # a voxel blurs, too
    if draw.chance("cut"):
        axis, n = rng.choice(3, p=(0.1, 0.2, 0.7)), round(draw("cut_size") / voxel)
        np.moveaxis(image, axis, 0)[slice(0, n) if rng.random() < 0.7 else slice(shape[axis] - n, None)] = 0
    sigma = draw("noise")
    noise = rng.standard_normal((2, *shape), dtype=np.float32) * np.float32(sigma)
    noisy = np.hypot(image + noise[0], noise[1])
    image = np.where(image > 0, noisy, 0) if rng.random() < 0.5 else noisy  # some converters clear the air
    if draw.chance("artefact"):
        image[tuple(rng.integers(0, shape))] = rng.uniform(1.5, 6)
    top = float(np.percentile(image[::2, ::2, ::2], draw("percentile")))
    return torch.from_numpy(image / max(top, 1e-6)).clamp_(0, 1).pow_(draw("gamma")).float().numpy()
