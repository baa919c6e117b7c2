"""Networks of more than two classes: their maps of labels are kept as masks are, but nothing of them is measured."""

import logging
from pathlib import Path

import numpy as np

from scripts.data.volumes import Volume
from scripts.inference.derivative import LABELS, Derivative
from scripts.inference.masks import Masks
from scripts.inference.scan_header import encode

logger = logging.getLogger("meshnet")


class LabelMaps(Masks):
    """Which scans the weights of this ``card`` label, and their maps."""

    def __init__(self, derivative: Derivative, card: dict) -> None:
        self.dtype = np.min_scalar_type(card["network_def"].get("out_channels", 2) - 1)
        self._begin(derivative, card, [LABELS])

    def _results(self, scan: str, volume: Volume, item: dict) -> tuple[dict, dict[str, bytes], str]:
        labels = item["pred"][0].cpu().numpy().astype(self.dtype)
        return {}, {LABELS: encode(labels, volume)}, f"{Path(scan).name}: {len(np.unique(labels))} classes found"

    def _conclude(self) -> None:
        logger.info(f"Maps of labels: {self.derivative.folder}")
