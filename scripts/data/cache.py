"""Compute deterministic transforms once: in memory, or on disk under a name that says what a file was made of."""

import json
import logging
import re
import sys
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial
from itertools import takewhile
from math import prod
from typing import ClassVar
from weakref import WeakValueDictionary

import monai
import torch
from monai.data import CacheDataset, Dataset, MetaTensor, PersistentDataset
from monai.data.utils import json_hashing
from monai.transforms import Compose, RandomizableTrait

from scripts.common.errors import InputError
from scripts.common.files import replace_file
from scripts.common.revision import revision

logger = logging.getLogger("meshnet")
LIBRARIES = ("torch", "numpy", *sys.stdlib_module_names)


def cached_dataset(
    data: list[dict], transform: Compose, cache: str, cache_dir: str, made_of: Sequence = (), values: dict | None = None
) -> Dataset:
    """A dataset whose deterministic transforms are computed once.

    Args:
        data: scans with ``image``, ``label`` and ``sha256``, as in a ``Cohort``.
        transform: its leading transforms that are not random are the ones whose result is kept.
        cache: "memory" (computed at the start of each run), "disk" (when first used, then by all runs) or "none".
        cache_dir: folder for "disk"; it may be deleted at any time.
        made_of: for "disk", the config of ``transform``'s transforms, nothing instantiated; hashed with the source
            of the modules that it names. What an expression calls is known by its name only.
        values: for "disk", JSON of what ``made_of`` refers to: {"spacing": [1, 1, 1]} for ``@spacing``.

    Raises:
        InputError: for "disk", if ``made_of`` and ``values`` do not tell what ``transform`` does, or if ``cache_dir``
            cannot be made.
    """
    recipe = partial(_hash_recipe, made_of, values or {})
    if cache == "disk":
        try:
            return DiskCacheDataset(data, transform, cache_dir, _hash_scan, hash_transform=recipe)
        except OSError as error:  # as beside the datalist of a dataset that is read-only
            line = f"cache_dir {cache_dir}: cannot be written ({error.strerror}); give another --cache_dir"
            raise InputError(f"{line}, or --cache none") from error
    return SharedCacheDataset(data, transform, recipe) if cache == "memory" else Dataset(data, transform)


def choose_cache(n_scans: int, spatial_size: Sequence[int], gigabytes: float) -> str:
    """Return "memory" if so many preprocessed scans, five bytes a voxel, fit into ``gigabytes``; else "disk"."""
    return "memory" if 5e-9 * prod(spatial_size) * n_scans <= gigabytes else "disk"


def workers_for(cache: str, augmentation_name: str, device: str) -> int:
    """Return how many processes load scans: two if the cache is on disk, or costly augmentation feeds a GPU."""
    is_costly = augmentation_name in ("heavy", "auto") and "cuda" in str(device)
    return 2 if cache == "disk" or is_costly else 0


class _Item(dict):
    """A preprocessed scan, which can be referred to weakly."""


class SharedCacheDataset(CacheDataset):
    """MONAI's, but a scan that another dataset of this process holds, made in the same way, is not held twice."""

    held: ClassVar[WeakValueDictionary[tuple, _Item]] = WeakValueDictionary()

    def __init__(self, data: list[dict], transform: Compose, recipe: Callable[[list], bytes]) -> None:
        leading = list(takewhile(lambda t: not isinstance(t, RandomizableTrait), transform.transforms))
        try:
            self.made_by = recipe(leading)
        except InputError:  # what made_of tells is something else
            self.made_by = object()
        super().__init__(data, transform, num_workers=None)

    def _load_cache_item(self, idx: int) -> dict:
        scan = self.data[idx]
        key = (self.made_by, _hash_scan(scan) if "sha256" in scan else object())
        if (item := self.held.get(key)) is None:
            item = self.held[key] = _Item(super()._load_cache_item(idx))
        return item


class DiskCacheDataset(PersistentDataset):
    """MONAI's raises on a file that is cut off, and a full disk can leave one; this makes it again, or leaves none.

    Of the metadata only affine and file name are kept.
    """

    def _cachecheck(self, item_transformed: dict) -> dict:
        path = self.cache_dir / f"{self.hash_func(item_transformed).decode()}{self.transform_hash}.pt"
        if path.is_file():
            try:
                return torch.load(path, weights_only=True)
            except Exception as error:  # torch raises unrelated types for a file that is cut off
                logger.warning(f"{path}: cannot be read ({type(error).__name__}), made again")
        item = self._pre_transform(deepcopy(item_transformed))
        for key, value in item.items():
            if isinstance(value, MetaTensor):
                meta = {"filename_or_obj": str(value.meta["filename_or_obj"])}
                item[key] = MetaTensor(value.as_tensor(), value.affine, meta)
        with replace_file(path, "wb") as file:  # other runs may make it, too
            torch.save(item, file)
        return item


def _hash_scan(scan: dict) -> bytes:
    return json_hashing([scan["image"], scan["label"], scan["sha256"]])[:32]


def _hash_recipe(made_of: Sequence, values: dict, transforms: list) -> bytes:
    """A hash of what ``transforms``, the first ones of ``made_of``, compute; a function may make what it likes."""
    recipe = [part for part in made_of if isinstance(part, dict) and not part.get("_disabled_")][: len(transforms)]
    told = [str(part.get("_target_")).rpartition(".")[2] for part in recipe]
    made = [type(transform).__name__ for transform in transforms]
    if len(told) != len(made) or any(t != m and t[:1].isupper() for t, m in zip(told, made, strict=True)):
        raise InputError(f"cache disk: the transforms are not those of made_of ({', '.join(told)}); use --cache none")
    if unknown := sorted(set(re.findall(r"@(\w+)", json.dumps(recipe))) - values.keys()):
        raise InputError(f"cache disk: the preprocessing refers to @{unknown[0]}; give it in values, or --cache none")
    targets = sorted({*re.findall(r'"(?:_target_|reader)": "(\w+\.[\w.]+)"', json.dumps(recipe))})
    tops = {target: target.partition(".")[0] for target in targets}
    code = [revision(target, top) for target, top in tops.items() if top not in ("monai", *LIBRARIES)]
    return json_hashing([monai.__version__, recipe, values, *code])[:32]
