"""MONAI's PersistentDataset knows a scan by its name and breaks on a cut-off file: this knows what was computed."""

import hashlib
import json
import logging
from collections.abc import Mapping
from copy import deepcopy
from enum import Enum
from types import CodeType, FunctionType
from typing import Any

import monai
import numpy as np
import torch
from monai.data import CacheDataset, Dataset, MetaTensor, PersistentDataset
from monai.transforms import Compose

from scripts.common.errors import InputError
from scripts.common.files import replace_file

logger = logging.getLogger("meshnet")


def cached_dataset(data: list[dict], transform: Compose, cache: str, cache_dir: str) -> Dataset:
    """A dataset whose deterministic transforms are computed once.

    Args:
        data: scans with ``image``, ``label`` and ``sha256``, as in a ``Cohort``.
        transform: its leading transforms that are not random are the ones whose result is kept.
        cache: "memory" (computed at the start of each run), "disk" (when first used, then by all runs) or "none".
        cache_dir: folder for "disk"; it may be deleted at any time.

    Raises:
        InputError: another ``cache``.
    """
    if cache == "memory":
        return CacheDataset(data, transform, num_workers=None)
    if cache == "disk":
        return DiskCacheDataset(data, transform, cache_dir)
    if cache == "none":
        return Dataset(data, transform)
    raise InputError(f"cache {cache}: expected memory, disk or none")


class DiskCacheDataset(PersistentDataset):
    """Finds a preprocessed scan by what it was made of: the files' content, the transforms and MONAI's version.

    Of the metadata only affine and file name are kept. A file that cannot be read is made again.
    """

    def __init__(self, data: list[dict], transform: Compose, cache_dir: str) -> None:
        super().__init__(data, transform, cache_dir)
        first_random = transform.get_index_of_first(lambda t: isinstance(t, monai.transforms.RandomizableTrait))
        self.recipe = [monai.__version__, describe(transform.transforms[:first_random])]

    def _cachecheck(self, item_transformed: dict) -> dict:
        made_of = [self.recipe, *(item_transformed[key] for key in ("image", "label", "sha256"))]
        path = self.cache_dir / f"{hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:32]}.pt"
        if path.is_file():
            try:
                return _unpack(*torch.load(path, weights_only=True))
            except Exception as error:  # torch raises unrelated types for a file that is cut off
                logger.warning(f"{path}: cannot be read ({type(error).__name__}), made again")
        item = self._pre_transform(deepcopy(item_transformed))
        volumes = {key: value for key, value in item.items() if isinstance(value, MetaTensor)}
        others = {key: value for key, value in item.items() if key not in volumes}
        parts = {k: (v.as_tensor(), v.affine, str(v.meta["filename_or_obj"])) for k, v in volumes.items()}
        with replace_file(path, "wb", unique=True) as file:  # other runs may make it, too
            torch.save((parts, others), file)
        return _unpack(parts, others)


def _unpack(volumes: dict[str, tuple], others: dict) -> dict:
    return others | {
        key: MetaTensor(values, affine=affine, meta={"filename_or_obj": name})
        for key, (values, affine, name) in volumes.items()
    }


def describe(value: Any) -> Any:
    """What ``value`` computes, in terms of JSON: equal for equal transforms, in any process; random states left out.

    Raises:
        InputError: a callable that cannot be looked into, so nobody could say whether it has changed.
    """
    if isinstance(value, Enum):
        return str(value.value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return [[describe(key), describe(value[key])] for key in value]
    if isinstance(value, list | tuple):
        return [describe(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted(json.dumps(describe(item)) for item in value)
    if isinstance(value, np.ndarray | np.generic | torch.Tensor):
        return [str(value.dtype), value.tolist()]
    if isinstance(value, type | torch.dtype | torch.device | np.dtype | range | slice):
        return str(value)
    if isinstance(value, CodeType):
        return [value.co_code.hex(), value.co_names, describe(value.co_consts)]
    if isinstance(value, FunctionType):
        closure = [cell.cell_contents for cell in value.__closure__ or ()]
        return [value.__qualname__, describe(value.__code__), describe(value.__defaults__), describe(closure)]
    if hasattr(value, "__dict__"):
        kind, state = type(value), {k: v for k, v in vars(value).items() if not isinstance(v, np.random.RandomState)}
        ours = kind.__module__.split(".")[0] != "monai"  # MONAI's code is known by its version
        code = [function for function in vars(kind).values() if ours and isinstance(function, FunctionType)]
        return [f"{kind.__module__}.{kind.__qualname__}", describe(code), describe(state)]
    raise InputError(f"cache disk: cannot tell whether {value!r} in the preprocessing changes; use --cache none")
