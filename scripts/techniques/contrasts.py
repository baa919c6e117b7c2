"""Draw one contrast of each scan in every epoch, by the seed and the epoch alone."""

from collections.abc import Iterator, Mapping

import numpy as np
from torch.utils.data import Dataset

from scripts.common.errors import InputError
from scripts.data.seeded_order import SeededSampler


class ContrastSampler(SeededSampler):
    """A ``SeededSampler`` of scans that have several contrasts: an epoch has each scan once, in one of them.

    So the network, of one channel, learns to do with any of the contrasts, and a scan may lack some.

    Args:
        dataset: MONAI's, of scans with ``label`` and ``contrast``: those with one label are one scan's contrasts. A
            scan without ``contrast`` has no alternative.
        seed: of the order and of the draws.
        weights: of the contrasts by name; the probabilities of a scan's are in proportion.

    Raises:
        InputError: a weight is negative, or all of a scan's are 0.
    """

    def __init__(self, dataset: Dataset, seed: int, weights: Mapping[str, float], **kwargs) -> None:
        for name, weight in weights.items():
            if not 0 <= weight < np.inf:
                raise InputError(f"contrasts: {name} {weight}: expected a weight of at least 0")
        groups: dict[object, dict[int, float]] = {}
        for item, scan in enumerate(dataset.data):
            weight = weights[scan["contrast"]] if "contrast" in scan else 1
            groups.setdefault(scan["label"] if "contrast" in scan else item, {})[item] = weight
        for label, group in groups.items():
            if not sum(group.values()):
                raise InputError(f"contrasts: all that the scan of {label} has are of weight 0; give one a weight")
        self.groups = [([*group], np.array([*group.values()], float)) for group in groups.values()]
        super().__init__(self.groups, seed, **kwargs)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for index, seed in super().__iter__():
            items, weights = self.groups[index]
            drawn = np.random.default_rng([seed, 2]).choice(len(items), p=weights / weights.sum())
            yield items[drawn], seed
