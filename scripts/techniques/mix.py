"""Mix scans with others (mixup, cutmix) by the item's seed, so that a resumed run mixes the same ones."""

import numpy as np
import torch
from torch.utils.data import Dataset

from scripts.common.errors import InputError
from scripts.data.seeded_order import SeededDataset


class MixedDataset(SeededDataset):
    """Mixes some of the scans with another one, drawn, like everything else, as a function of the item's seed.

    mixup (Zhang et al. 2018): image and label become ``t * scan + (1 - t) * other`` with t ~ Beta(alpha, alpha).
    cutmix (Yun et al. 2019): a box of the other scan is put into the scan, in image and label. Its share of the volume
    is uniform (the paper's alpha of 1), its centre too; what lies outside of the grid is cut off.

    Every item, mixed or not, has a soft ``label``: (2, D, H, W) float32, the probabilities of background and lesion.

    Args:
        dataset: scans with ``image`` (1, D, H, W) and ``label`` (1, D, H, W; 0 or 1), all of one size.
        mixup_probability: share of the scans that mixup is done to.
        mixup_alpha: of the Beta distribution; small values mix little: half of the mixtures with 0.2 have less than
            2.4 % of one of the scans.
        cutmix_probability: share that cutmix is done to, never to the same.

    Raises:
        InputError: the probabilities add up to more than 1, or there is no other scan to mix with.
    """

    def __init__(
        self, dataset: Dataset, mixup_probability: float, mixup_alpha: float, cutmix_probability: float
    ) -> None:
        super().__init__(dataset)
        if (both := mixup_probability + cutmix_probability) > 1:
            raise InputError(f"mixup_probability + cutmix_probability is {both:g}: a scan has one of them, at most 1")
        if both and len(dataset) < 2:
            raise InputError(f"mixup and cutmix need another scan, there are {len(dataset)} to train on")
        if any("contrast" in scan for scan in dataset.data):
            raise InputError("mix.json: does not mix scans of several contrasts; leave it or contrasts.json out")
        self.mixup = mixup_probability
        self.alpha = mixup_alpha
        self.mixed = both

    def __getitem__(self, item: tuple[int, int]) -> dict:
        """The item (index, seed), mixed or not, with its soft label."""
        index, seed = item
        scan = self._soft(item)
        rng = np.random.default_rng([seed, 1])
        kind = rng.random()
        if kind >= self.mixed:
            return scan
        n = len(self)
        other = self._soft(((index + int(rng.integers(1, n))) % n, int(rng.integers(2**32))))
        if kind < self.mixup:
            t = float(rng.beta(self.alpha, self.alpha))
            mixed = {key: t * scan[key] + (1 - t) * other[key] for key in ("image", "label")}
        else:
            shape = scan["image"].shape[1:]
            box = (slice(None), *_box(shape, rng))
            mixed = {key: scan[key].clone() for key in ("image", "label")}  # the cache keeps what it gave
            for key, volume in mixed.items():
                volume[box] = other[key][box]
        return scan | mixed

    def _soft(self, item: tuple[int, int]) -> dict:
        scan = super().__getitem__(item)
        lesion = scan["label"].float()
        return {**scan, "label": torch.cat([1 - lesion, lesion])}


def _box(shape: tuple[int, ...], rng: np.random.Generator) -> tuple[slice, ...]:
    """A box of the grid's proportions around a random voxel."""
    half = rng.random() ** (1 / len(shape)) / 2
    middles = [rng.uniform(0, side) for side in shape]
    edges = ((max(0, round(m - half * side)), round(m + half * side)) for m, side in zip(middles, shape, strict=True))
    return tuple(slice(*edge) for edge in edges)
