"""Train on coarser grids first; the epoch alone says on which, so a resume needs no state."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from ignite.engine import Engine
from monai.data import MetaTensor
from monai.engines import PrepareBatch, default_prepare_batch
from torch.nn.functional import interpolate

from scripts.networks.meshnet import is_meshnet


@dataclass(eq=False)
class CoarseToFine(PrepareBatch):
    """A trainer's ``prepare_batch``, and one of its handlers: resizes what is trained on, not what is validated.

    The epochs are split into equal parts, one for each of ``shares``, the last epoch being in the last part. Sides are
    rounded to multiples of 8 voxels, at least 16, since MeshNet dilates by 16; of 16, at least 32, for other networks,
    which halve them four times. Both image and label are averaged over the voxels that a coarser one covers; a label of
    class indices is then cut at 0.5, probabilities stay as they are.
    """

    shares: Sequence[float]  # of the side of the grid, above 0, at most 1

    def attach(self, engine: Engine) -> None:
        """Register with the trainer, whose epoch says how coarse."""
        self.trainer = engine

    @property
    def share(self) -> float:
        """The share of the epoch under way."""
        state = self.trainer.state
        return self.shares[-(-state.epoch * len(self.shares) // state.max_epochs) - 1]

    def __call__(
        self, batchdata: dict, device: str | torch.device | None = None, non_blocking: bool = False, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Image (B, C, D, H, W) and label (B, 1 or classes, D, H, W) on the epoch's grid, on ``device``."""
        image, label = default_prepare_batch(batchdata, device, non_blocking, **kwargs)
        multiple = 8 if is_meshnet(self.trainer.network) else 16
        size = [side_of(side, self.share, multiple) for side in image.shape[2:]]
        if size == [*image.shape[2:]]:
            return image, label
        resized = _averaged(label, size)
        return _averaged(image, size), resized if label.shape[1] > 1 else (resized >= 0.5).to(label.dtype)


def side_of(side: int, share: float, multiple: int = 8) -> int:
    """The side in voxels of ``share`` of a grid's: a multiple of ``multiple``, at least twice that."""
    return side if share == 1 else min(side, max(2 * multiple, multiple * round(side * share / multiple)))


def _averaged(volume: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    volume = volume.as_tensor() if isinstance(volume, MetaTensor) else volume  # the affine is the full grid's
    return interpolate(volume.float(), size, mode="area")
