"""What ``configs/inference.json`` does to one scan, as ONNX graphs, so that the page computes little by itself.

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
from scripts.networks.adaptive_norm import norm_shift
from scripts.networks.meshnet import MeshNet
from scripts.sharing.export import export
from scripts.weights.weights import Weights

SCALINGS = ("ScaleIntensityd", "ScaleIntensityRangePercentilesd")
OPSET = 20  # the first whose GridSample takes volumes


class Prepare(nn.Module):
    """A scan made into what the network of this ``card`` sees: as MONAI's Orientation, Spacing, ResizeWithPadOrCrop and
    the card's scaling do.

    What the three come to for a scan, ``page/geometry.js`` reads from its header: ``to_scan`` (3, 4) maps voxels of the
    grid to voxels of the scan, ``limits`` (2, 3) are the first and the last voxel of the grid on which the scan lies.
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
    parts = {
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
        sides = {"scan": {2: side, 3: side, 4: side}} | {axis: {0: side} for axis in "xyz"}
        program = torch.onnx.export(
            module.eval(),
            tuple(inputs.values()),
            input_names=list(inputs),
            output_names=[output],
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
