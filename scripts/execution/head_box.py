"""Run a network on the box of the head only, as if the air around it were there."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from monai.inferers import Inferer
from monai.utils import convert_to_tensor

from scripts.data.placement import MARGIN, STEP, head_extent
from scripts.execution.air import can_skip_air, infer_in_air
from scripts.networks.interleaved import forward, infer

Box = tuple[slice, slice, slice]
WORTH = 0.5  # a grid that leaves less air than this was made for heads, and its network knows where it ends


class HeadInferer(Inferer):
    """Runs ``inferer`` on the box of the head and fills in the network's answer to air; on all, where that is wrong.

    Args:
        inferer: makes one prediction.
        crop_to_head: whether to; if not, or for networks that ``can_skip_air`` says no of, the volume is computed.
        run: runs the steps of a MeshNet, see ``choose_runtime``.
    """

    def __init__(self, inferer: Inferer, crop_to_head: bool = True, run: Callable = infer) -> None:
        super().__init__()
        self.inferer = inferer
        self.crop_to_head = crop_to_head
        self.run = run

    def __call__(self, inputs: torch.Tensor, network: torch.nn.Module, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Logits (B, classes, D, H, W) of an image (B, C, D, H, W)."""
        inputs = convert_to_tensor(inputs, track_meta=False)
        box = head_box(inputs.amax((0, 1))) if self.crop_to_head and can_skip_air(network) else None
        if box is not None:
            network = partial(infer_in_air, network, box=box, air=air_of(inputs, box), run=self.run)
        elif self.run is not infer:
            network = partial(forward, network, run=self.run)
        return self.inferer(inputs, network, *args, **kwargs)


def head_box(image: torch.Tensor) -> Box | None:
    """The box of the head in ``image`` (D, H, W), ``MARGIN`` voxels larger; None if it is ``WORTH`` of it or more."""
    box = []
    for (first, last), side in zip(head_extent(image), image.shape, strict=True):
        first = first - MARGIN
        last = last + MARGIN
        size = min(side, math.ceil((last - first) / STEP) * STEP)
        start = int(min(max(0, (first + last - size) // 2), side - size))
        box.append(slice(start, start + size))
    share = math.prod(part.stop - part.start for part in box) / image.numel()
    return tuple(box) if share < WORTH else None


def air_of(image: torch.Tensor, box: Box) -> torch.Tensor:
    """The median (C,) of what lies beyond ``box`` in an image (B, C, D, H, W)."""
    beyond = torch.ones(image.shape[2:], dtype=torch.bool, device=image.device)
    beyond[box] = False
    return image.movedim(1, 0)[:, :, beyond][..., ::7].flatten(1).median(1).values  # some are enough
