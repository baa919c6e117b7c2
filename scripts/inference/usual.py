"""Weights answer any volume: what their training scans looked like is kept in their card, and an odd scan is named."""

import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from torch.nn.functional import avg_pool3d
from torch.utils.data import Dataset

from scripts.common.errors import InputError
from scripts.common.files import replace_file
from scripts.data.placement import head_of
from scripts.weights.card import read_card
from scripts.weights.weights import SHARED

logger = logging.getLogger("meshnet")
COARSE = 3.0  # mm: what is finer depends on the scanner
# How far the limits lie below and above the median, in deviations of that side, chosen on simulated scans: T1w come
# close in detail only; noise, blobs and volumes without contrast are far off in the others, where patients vary more.
REACH = {"detail": (2.5, 6.0), "roughness": (4.0, 4.0), "contrast": (3.0, 4.0)}


def appearance(image: np.ndarray, spacing: Sequence[float]) -> dict[str, float]:
    """What a scan (D, H, W), prepared for the network, looks like in the inner half of its head.

    The head is ``head_of`` with its holes filled, its inner half what lies deepest in it. Voxels are averaged to about
    ``COARSE`` mm. Neither the unit of the intensities nor the air around the head matters.

    - ``detail``: skewness of the negative Laplacian of Gaussian (sigma one voxel): above 0 where what is fine is
      bright, as fluid is in T2w, below 0 where it is dark, as in T1w and FLAIR.
    - ``roughness``: root mean square of neighbouring voxels' differences by the standard deviation; noise has 1.41.
    - ``contrast``: standard deviation by mean.

    A volume without contrast has NaN.
    """
    block = [min(side, max(1, round(COARSE / size))) for side, size in zip(image.shape, spacing, strict=True)]
    image = avg_pool3d(torch.as_tensor(image, dtype=torch.float32)[None], block)[0].numpy()
    depth = ndimage.distance_transform_edt(np.pad(ndimage.binary_fill_holes(head_of(image)), 1))[1:-1, 1:-1, 1:-1]
    inner = depth >= np.median(depth[depth > 0])
    bright = -ndimage.gaussian_laplace(image, 1.0)[inner].astype(float)
    steps = [np.diff(image, axis=axis, append=np.nan)[inner].astype(float) for axis in range(3)]
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "detail": float(np.mean((bright - bright.mean()) ** 3) / bright.std() ** 3),
            "roughness": float(np.sqrt(np.nanmean(np.square(steps))) / image[inner].std()),
            "contrast": float(image[inner].std() / image[inner].mean()),
        }


def unusual(image: np.ndarray, card: dict, name: str = "") -> str | None:
    """In words, how a scan (D, H, W), prepared for the network, is unlike those it was trained on; None if it is not.

    A card without ``usual`` knows no limits. With it, the weights are for its ``contrasts``, by default T2w; a BIDS
    suffix at the end of the scan's ``name``, without ending, may tell another.
    """
    if "usual" not in card:
        return None
    contrasts = card.get("contrasts", ["T2w"])
    suffix = re.search(r"_(T1w|T2w|FLAIR|PDw|T2starw|UNIT1|dwi|bold)$", name)
    odd = [] if suffix is None or suffix[1] in contrasts else [f"a {suffix[1]} (usual {', '.join(contrasts)})"]
    found = appearance(image, card["spacing"])
    odd += [
        f"{key} {found[key]:.2f} (usual {low:.2f} to {high:.2f})"
        for key, (low, high) in card["usual"].items()
        if not low <= found[key] <= high  # nor is NaN
    ]
    return ", ".join(odd) or None


def limits_of(found: list[dict[str, float]]) -> dict[str, list[float]]:
    """The lower and the upper limit of what is usual, where this is what ``appearance`` found in training scans."""
    limits = {}
    for name, reaches in REACH.items():
        from_median = np.array([one[name] for one in found]) - (median := np.median([one[name] for one in found]))
        sides = np.minimum(from_median, 0), np.maximum(from_median, 0)
        down, up = (reach * np.sqrt(2 * np.mean(side**2)) for side, reach in zip(sides, reaches, strict=True))
        limits[name] = [round(float(median - down), 3), round(float(median + up), 3)]
    return limits


def write_usual(ckpt_path: str, card: dict, dataset: Dataset, scans: int = 100) -> None:
    """Measure ``scans`` training scans and write the limits into the card beside ``ckpt_path``, as its ``usual``.

    Args:
        ckpt_path: the weights.
        card: as training would write it: what it says of how a scan is prepared must be in the weights' card, too.
        dataset: takes an index and a seed, as ``SeededDataset``, and gives items with an ``image`` (1, D, H, W).
        scans: each is another index, or where there are fewer, the same with another seed.

    Raises:
        InputError: no weights, no card, or one of weights for other scans.
    """
    if scans < 10:
        raise InputError(f"scans {scans}: expected 10 or more, to tell what is usual")
    path, written = Path(ckpt_path).with_suffix(".json"), read_card(ckpt_path)
    for key in SHARED:
        ours, theirs = json.loads(json.dumps({"orientation": "RAS", **card}[key])), written[key]
        if ours != theirs:
            raise InputError(f"{path}: {key} is {theirs}, but {ours} here; give the options that the weights had")
    found = [appearance(dataset[i % len(dataset), i]["image"][0], card["spacing"]) for i in range(scans)]
    limits = limits_of(found)
    text = json.dumps({**json.loads(path.read_text()), "usual": limits}, indent=4, allow_nan=False) + "\n"
    with replace_file(path) as file:
        file.write(text)
    logger.info(f"{path}: of {scans} scans, usual is {limits}")
