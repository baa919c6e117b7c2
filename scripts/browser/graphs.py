"""What ``configs/inference.json`` does to one scan, as ONNX graphs, so that the page computes little by itself.

scan -> coarse -> its head, which JavaScript finds -> place, with the affine -> where the grid lies
scan -> prepare -> image -> network, a view at a time -> logits
where the card has a limit: image -> shift, and beyond it image -> adapted -> logits
logits -> agree -> probability -> restore, some slices at a time -> probability on the scan's own grid
"""

from contextlib import redirect_stdout
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import grid_sample, pad

from scripts.common.errors import InputError
from scripts.data.placement import COARSE, MARGIN
from scripts.networks.adaptive_norm import norm_shift
from scripts.networks.meshnet import MeshNet
from scripts.sharing.export import export
from scripts.weights.weights import Weights

SCALINGS = ("ScaleIntensityd", "ScaleIntensityRangePercentilesd")
OPSET = 20  # the first whose GridSample takes volumes


class Coarse(nn.Module):
    """The means of a scan's blocks of voxels, enough to find its head, as ``head_extent`` takes them."""

    def forward(self, scan: torch.Tensor) -> torch.Tensor:
        """Means (C, B, A) of a scan (1, 1, Z, Y, X)."""
        means = scan[0, 0]
        for axis in range(3):
            side = means.shape[axis]
            block = torch.sym_max(side // COARSE, 1)
            ends = (torch.arange((side + block - 1) // block) * block + block).clamp(max=side)
            sums = means.cumsum(axis).index_select(axis, ends - 1)
            first = sums.narrow(axis, 0, 1)
            means = torch.cat([first, sums.diff(dim=axis)], axis)
            counts = torch.cat([ends[:1], ends.diff()]).view([-1 if i == axis else 1 for i in range(3)])
            means = means / counts
        return means


class Place(nn.Module):
    """Where the grid of this ``card`` lies in a scan: MONAI's Orientation, Spacing and ResizeWithPadOrCrop (1.6), which
    are linear in the voxels' indices, and ``grid_starts``, put together. All in float64, as MONAI computes it.
    """

    TOLERANCE = 1e-3  # MONAI's AFFINE_TOL
    NONE = 1e-8  # where np.allclose sees 0

    def __init__(self, card: dict) -> None:
        super().__init__()
        axes = [[(1.0, -1.0)[letter in "LPI"] * (letter in pair) for pair in ("LR", "PA", "IS")]
                for letter in card["orientation"]]  # fmt: skip
        self.world = nn.Buffer(torch.tensor(axes, dtype=torch.float64))
        self.spacing = nn.Buffer(torch.tensor(card["spacing"], dtype=torch.float64))
        self.size = nn.Buffer(torch.tensor(card["spatial_size"], dtype=torch.float64))

    def forward(self, affine: torch.Tensor, sides: torch.Tensor, head: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """``to_scan`` and its inverse ``back`` (3, 4) and ``limits`` (2, 3).

        That is for a scan with these ``sides`` (3,), ``affine`` (3, 4) to mm and ``head`` (C, B, A; boolean) as of
        ``Coarse``.
        """
        linear = affine[:, :3]
        turn = orientation(linear) @ self.world.T  # of each axis of the scan, which axis of the grid, and its sign
        flipped = torch.where(turn.sum(1) < 0, sides - 1, 0)
        turned, start, shape = linear @ turn, linear @ flipped + affine[:, 3], along(turn, sides).abs()
        norms = turned.norm(dim=0)
        step = torch.where((norms - self.spacing).abs() <= self.TOLERANCE, norms, self.spacing)
        resampled, ends = orthogonal(turned) * step, shape - 1
        to_box = inverse(resampled) @ turned
        box, below = (to_box.abs() @ ends + 1).round(), to_box.clamp(max=0) @ ends
        centred = turned @ (shape / 2) + start - resampled @ (box / 2)  # MONAI lays centre upon centre
        offset = torch.where((below.abs() <= self.NONE).all(), start, centred)
        to_turned, origin = inverse(turned) @ resampled, inverse(turned) @ (offset - start)
        eye = torch.eye(3, dtype=torch.float64)
        same = self.close(turned, resampled) & self.close(start, offset)
        same = (same | self.close(to_turned, eye) & self.close(origin, origin * 0)) & (box == shape).all()
        to_turned, origin = torch.where(same, eye, to_turned), torch.where(same, 0, origin)  # it resamples nothing
        shift = self.shift(turn, box, shape, sides, head)
        matrix = turn @ to_turned
        first, back = matrix @ shift + turn @ origin + flipped, inverse(matrix)
        to_scan, back = torch.cat([matrix, first[:, None]], 1), torch.cat([back, -(back @ first)[:, None]], 1)
        return to_scan.float(), back.float(), torch.stack([-shift, box - 1 - shift]).float()

    def close(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return ((one - other).abs() <= self.TOLERANCE + 1e-5 * other.abs()).all()

    def shift(
        self, turn: torch.Tensor, box: torch.Tensor, shape: torch.Tensor, sides: torch.Tensor, head: torch.Tensor
    ):
        """Voxel of the resampled scan less voxel of the grid, as ``grid_starts`` has it."""
        ends = []
        for axis in (2, 1, 0):  # x, y, z
            inside = head.any(dim=2 if axis < 2 else 0).any(dim=1 if axis == 0 else 0)
            place = torch.arange(inside.shape[0])
            ends.append(
                torch.stack([torch.where(inside, place, 2**31).amin(0), torch.where(inside, place, -1).amax(0) + 1])
            )
        block = (sides / COARSE).floor().clamp(min=1)
        first, last = torch.minimum(torch.stack(ends).T * block, sides)
        found = ((first > 0) | (last < sides)).any()
        first, last = (along(turn.abs(), end) * box / shape for end in (first, last))
        first, last = (torch.where(turn.sum(0) > 0, one, box - other) for one, other in ((first, last), (last, first)))
        centred = (box / 2).floor() - (self.size / 2).floor()
        start = (first + last - self.size) / 2
        top = self.world.sum(1) * torch.where(self.world.sum(1) > 0, last + MARGIN - self.size, MARGIN - first)
        start = torch.where((last - first > self.size) & (self.world[:, 2] != 0), top, start)
        moved = torch.minimum(start.clamp(min=0), box - self.size).floor()
        shift = torch.where(found & ((first < centred) | (last > centred + self.size)), moved, centred)
        return torch.where(box > self.size, shift, -((self.size - box) / 2).floor())


def along(turn: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
    """``turn.T @ vector``; ONNX Runtime (1.30, 1.32) optimizes that product into ``turn @ vector``."""
    return (turn * vector[:, None]).sum(0)


def inverse(matrix: torch.Tensor) -> torch.Tensor:
    """Of a ``matrix`` (3, 3)."""
    one, two = matrix.roll(-1, 0), matrix.roll(1, 0)
    cofactors = one.roll(-1, 1) * two.roll(1, 1) - one.roll(1, 1) * two.roll(-1, 1)
    return cofactors.T / (matrix[0] * cofactors[0]).sum()


def orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """Orthonormal columns by Gram and Schmidt, which MONAI takes from a Cholesky factor."""
    columns = []
    for column in matrix.unbind(1):
        for other in columns:
            column = column - other * (column * other).sum()
        columns.append(column / column.norm())
    return torch.stack(columns, 1)


def orientation(linear: torch.Tensor) -> torch.Tensor:
    """Which axis of the world (column: R, A, S) each axis of a scan (row) follows, 1 or -1, as nibabel has it."""
    rotation = linear / linear.norm(dim=0)
    for _ in range(8):  # Newton's iteration to its polar factor, the nearest rotation
        rotation = (rotation + inverse(rotation).T) / 2
    left, axes, found = rotation.T.abs(), torch.arange(3), torch.zeros(3, 3, dtype=torch.float64)
    for axis in torch.topk(left.amax(1), 3).indices.split(1):  # the clearest first
        world = left.index_select(0, axis).argmax(1)
        found = found + ((axes == axis)[:, None] & (axes == world)).double()
        left = torch.where(axes == world, -1, left)
    return found * rotation.T.sign()


class Midline(nn.Module):
    """x (mm) of the middle of a ``head`` (Z, Y, X; boolean) by ``affine`` (3, 4): as ``midline`` of inference."""

    def forward(self, head: torch.Tensor, affine: torch.Tensor) -> torch.Tensor:
        row, bits = affine[0].float(), head.byte()
        middle = row[0] * 0
        for axis in range(3):
            across, side = 2 - axis, head.shape[2 - axis]
            ends = bits.argmax(across) + side - 1 - bits.flip(across).argmax(across)  # of each line, summed
            at = [torch.arange(n, dtype=torch.float32).view(-1, *(1,) * i) for i, n in enumerate(head.shape[::-1])]
            at[axis] = ends.unsqueeze(across) / 2
            place = row[0] * at[0] + row[1] * at[1] + row[2] * at[2] + row[3]
            lines = head.any(across).flatten()
            middles = torch.where(lines, place.flatten(), torch.inf).sort().values
            half = torch.stack([lines.sum() - 1, lines.sum()]) // 2
            is_sideways = row[:3].abs().argmax() == axis
            middle = torch.where(is_sideways, middles.index_select(0, half).mean(), middle)
        return middle


class Prepare(nn.Module):
    """A scan made into what the network of this ``card`` sees: as MONAI's Orientation, Spacing, ResizeWithPadOrCrop and
    the card's scaling do.

    What the three come to for a scan, ``Place`` says: ``to_scan`` (3, 4) maps voxels of the grid to voxels of the scan,
    ``limits`` (2, 3) are the first and the last voxel of the grid on which the scan lies.
    """

    def __init__(self, card: dict) -> None:
        super().__init__()
        self.spatial_size = card["spatial_size"]
        self.scalings = [dict(scaling) for scaling in card["intensity"]]
        for scaling in self.scalings:
            if scaling["_target_"] not in SCALINGS or scaling.get("relative") or scaling.get("channel_wise"):
                raise InputError(f"card: intensity {scaling}: the page can only {' and '.join(SCALINGS)}")
        self.mirrored = 2 + next(i for i, side in enumerate(card["orientation"]) if side in "LR")
        self.flip = card["flip_averaging"]

    def forward(self, scan: torch.Tensor, to_scan: torch.Tensor, limits: torch.Tensor) -> torch.Tensor:
        """Image (views, 1, D, H, W) of a scan (1, 1, Z, Y, X); the second view is the first one's mirror image."""
        axes = [torch.arange(n, dtype=torch.float32) for n in self.spatial_size]
        image = sample(scan, to_scan, *axes) - scan.min()  # as ``above_minimum`` does, without a copy of the scan
        for axis, indices in enumerate(axes):
            inside = (indices >= limits[0, axis]) & (indices <= limits[1, axis])
            image = image * inside.view([-1 if i == axis else 1 for i in range(3)])
        for scaling in self.scalings:
            image = scale(image, scaling)
        return torch.cat([image, image.flip(self.mirrored)]) if self.flip else image


def sample(volume: torch.Tensor, to_volume: torch.Tensor, *axes: torch.Tensor) -> torch.Tensor:
    """A volume (1, 1, Z, Y, X) at the voxels of these indices (A,), (B,), (C,): (1, 1, A, B, C), interpolated linearly.

    ``to_volume`` (3, 4) maps them to voxels x, y, z of the volume; beyond its edge the nearest is meant. It is made a
    map to what ``grid_sample`` wants before it meets the voxels, which are many.
    """
    sides = torch.tensor([volume.shape[4], volume.shape[3], volume.shape[2]], dtype=torch.float32)
    steps, first = 2 * to_volume[:, :3] / sides[:, None], (2 * to_volume[:, 3] + 1) / sides - 1
    a, b, c = axes[0][:, None, None], axes[1][:, None], axes[2]
    places = [(a * steps[i, 0] + b * steps[i, 1] + first[i]) + c * steps[i, 2] for i in range(3)]
    return grid_sample(volume, torch.stack(places, -1)[None], padding_mode="border", align_corners=False)


def scale(image: torch.Tensor, scaling: dict) -> torch.Tensor:
    """What MONAI's transform of this definition makes of ``image``."""
    percent = (scaling.get("lower", 0), scaling.get("upper", 100))
    low, high = (percentile(image.flatten(), value) for value in percent)
    if scaling["_target_"] == "ScaleIntensityd":
        low_to, high_to = scaling.get("minv", 0.0), scaling.get("maxv", 1.0)
    else:
        low_to, high_to = scaling.get("b_min"), scaling.get("b_max")
    image = (image - low) / torch.where(high > low, high - low, torch.ones_like(high))
    if low_to is not None and high_to is not None:
        image = image * (high_to - low_to) + low_to
        image = image.clamp(low_to, high_to) if scaling.get("clip") else image
    return image


def percentile(values: torch.Tensor, percent: float) -> torch.Tensor:
    """As ``np.percentile``, of ``values`` (N,) whose number is known: only as many as lie beyond it are sorted."""
    place = percent / 100 * (len(values) - 1)
    first, share = int(place), place - int(place)
    if place > len(values) / 2:
        beyond = torch.topk(values, len(values) - first).values
        low, high = beyond[-1], beyond[-2 if len(values) - first > 1 else -1]
    else:
        beyond = torch.topk(values, first + 2, largest=False).values
        low, high = beyond[first], beyond[first + 1]
    return low + (high - low) * share


class Shift(nn.Module):
    """The ``norm_shift`` of an image (1, 1, D, H, W) by the first layer of a ``network``."""

    def __init__(self, network: MeshNet) -> None:
        super().__init__()
        self.convolution, self.norm, *_ = network.layers[0]

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return norm_shift(self.convolution, self.norm, image)


class Agree(nn.Module):
    """The probability of lesion from the logits (views, 2, D, H, W) of a scan and its mirror image.

    It comes with a voxel more on each side, (1, 1, D + 2, H + 2, W + 2), and so that the nearest voxel is the right one
    wherever the scan reaches: beyond ``limits`` the last on which the scan lies, 0 where the grid was smaller.
    """

    def __init__(self, card: dict) -> None:
        super().__init__()
        self.spatial_size = card["spatial_size"]
        self.mirrored = 1 + next(i for i, side in enumerate(card["orientation"]) if side in "LR")
        self.flip = card["flip_averaging"]

    def forward(self, logits: torch.Tensor, limits: torch.Tensor) -> torch.Tensor:
        mean = (logits[0] + logits[1].flip(self.mirrored)) / 2 if self.flip else logits[0]
        probability = pad(mean.softmax(0)[1], (1,) * 6)
        for axis, side in enumerate(self.spatial_size):
            nearest = torch.arange(-1, side + 1, dtype=torch.float32)
            nearest = torch.minimum(torch.maximum(nearest, limits[0, axis]), limits[1, axis]).long() + 1
            probability = probability.index_select(axis, nearest)
        return probability[None, None]


class Restore(nn.Module):
    """The probability (1, 1, Z, Y, X) at voxels of the scan's own grid, those of the indices x, y and z (N,).

    ``back`` (3, 4) maps voxels of the scan to voxels of the network's grid.
    """

    def forward(
        self, probability: torch.Tensor, back: torch.Tensor, x: torch.Tensor, y: torch.Tensor, z: torch.Tensor
    ) -> torch.Tensor:
        widened = torch.cat([back[:, :3], back[:, 3:] + 1], 1)
        return sample(probability, widened.flip(0)[:, [2, 1, 0, 3]], z, y, x)


def write_graphs(weights: Weights, folder: Path) -> None:
    """Write the graphs of one file of weights to ``folder``; the network's are compared with torch's answer.

    Raises:
        InputError: a card that the page cannot follow, or a network that gives another answer as a graph.
    """
    card, is_limited = weights.card | weights.settings, weights.settings["norm_shift_limit"] is not None
    choice = _write_adapted(weights, folder) if is_limited else {}
    _write_network(weights, folder, "network.onnx", 0 if is_limited else None)
    side = torch.export.Dim.DYNAMIC
    grid, views = card["spatial_size"], 2 if card["flip_averaging"] else 1
    scan, placed = torch.rand(1, 1, 12, 14, 16), {"limits": torch.rand(2, 3)}
    indices = {axis: torch.arange(n, dtype=torch.float32) for axis, n in zip("xyz", (16, 14, 12), strict=True)}
    affine, sides, head = torch.eye(3, 4, dtype=torch.float64), torch.ones(3, dtype=torch.float64) * 9, scan[0, 0] > 0.5
    parts = {
        "coarse": (Coarse(), {"scan": scan}, "means"),
        "place": (Place(card), {"affine": affine, "sides": sides, "head": head}, "to_scan back limits"),
        "midline": (Midline(), {"head": head, "affine": affine}, "middle"),
        "prepare": (Prepare(card), {"scan": scan, "to_scan": torch.rand(3, 4), **placed}, "image"),
        "agree": (Agree(card), {"logits": torch.rand(views, 2, *grid), **placed}, "probability"),
        "restore": (
            Restore(),
            {"probability": torch.rand(1, 1, *(n + 2 for n in grid)), "back": torch.rand(3, 4), **indices},
            "restored",
        ),
        **choice,
    }
    for name, (module, inputs, output) in parts.items():
        sides = {"scan": {2: side, 3: side, 4: side}, "head": {0: side, 1: side, 2: side}}
        sides |= {axis: {0: side} for axis in "xyz"}
        program = torch.onnx.export(
            module.eval(),
            tuple(inputs.values()),
            input_names=list(inputs),
            output_names=output.split(),
            dynamic_shapes=[sides.get(key) for key in inputs],
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
        program.save(folder / f"{name}.onnx")


def _write_adapted(weights: Weights, folder: Path) -> dict[str, tuple]:
    """Write ``adapted.onnx``, the network beyond the card's limit; what is to be known of the graph that chooses."""
    _write_network(weights, folder, "adapted.onnx", weights.settings["norm_adaptation"])
    (path,) = weights.members
    network = Weights(path, norm_adaptation=weights.settings["norm_adaptation"]).network().eval()
    return {"shift": (Shift(network), {"image": torch.rand(1, 1, *weights.spatial_size)}, "nats")}


def _write_network(weights: Weights, folder: Path, name: str, norm_adaptation: float | None) -> None:
    (path,) = weights.members
    with redirect_stdout(None):  # what it prints is about the unfinished folder
        export(path, str(folder), "onnx", norm_adaptation)
    (folder / f"{Path(path).stem}.onnx").rename(folder / name)
