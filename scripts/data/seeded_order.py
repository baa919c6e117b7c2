"""Draw order and augmentation by a seed and the epoch, whatever ran before."""

from collections.abc import Iterator
from copy import copy
from itertools import islice

import ignite.distributed as idist
import numpy as np
from monai.data import DistributedSampler
from monai.data.utils import set_rnd
from torch.utils.data import Dataset


class SeededSampler(DistributedSampler):
    """Yields (index, seed of that item's random transforms), both functions of the sampler's seed and the epoch alone.

    So any epoch can be drawn again, by another process or with another number of workers. Processes that train together
    share an epoch. Ignite's engine tells it the epoch, as it does every ``DistributedSampler``, whose further arguments
    this takes.
    """

    def __init__(self, dataset: Dataset, seed: int, **kwargs) -> None:
        ours = {"num_replicas": idist.get_world_size(), "rank": idist.get_rank()}
        super().__init__(dataset, seed=seed, **ours | kwargs)
        self.skip = 0  # items of the next epoch that were trained on before a resume

    def __iter__(self) -> Iterator[tuple[int, int]]:
        *seeds, order = np.random.SeedSequence((self.seed, self.epoch)).generate_state(len(self.dataset) + 1)
        drawn = copy(self)  # torch draws by the sum of both, which other seeds have at other epochs
        drawn.seed, drawn.epoch = int(order), 0
        indices = list(DistributedSampler.__iter__(drawn))
        start, self.skip = self.skip, 0
        return islice(((index, int(seeds[index])) for index in indices), start, None)


class SeededDataset(Dataset):
    """Wraps a dataset with a ``transform``: takes what ``SeededSampler`` yields and seeds the transforms by it."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, item: tuple[int, int]) -> object:
        index, seed = item
        set_rnd(self.dataset.transform, seed)
        return self.dataset[index]
