"""MONAI saves masks but does not measure them: this prints every scan's lesion volume and writes a CSV."""

import csv
import logging
from pathlib import Path

import torch
from ignite.engine import Engine, Events
from tqdm import tqdm

logger = logging.getLogger("meshnet")


class LesionVolumes:
    """Lesion volume in mm3 of each mask an evaluator puts out, in the input's grid: a line and a row of a CSV.

    Args:
        output_dir: folder for ``lesion_volumes.csv``; rows are written as scans are done.
        facts: the weights' card, logged at the start; ``simulated`` adds a warning.
    """

    def __init__(self, output_dir: str, facts: dict) -> None:
        self.path, self.facts = Path(output_dir) / "lesion_volumes.csv", facts

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator, after its postprocessing."""
        engine.add_event_handler(Events.STARTED, self._started)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._iteration_completed)
        engine.add_event_handler(Events.COMPLETED, lambda: logger.info(f"Masks and volumes: {self.path.parent}"))

    def _started(self, engine: Engine) -> None:
        logger.info("Model: " + ", ".join(f"{name} {value}" for name, value in self.facts.items()))
        if self.facts.get("simulated"):
            logger.warning(
                "These weights were trained on SIMULATED lesions: try them, but draw no conclusions from them"
            )
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("w", newline="") as file:
            csv.writer(file).writerow(["image", "lesion_volume_mm3", "lesion_voxels"])

    def _iteration_completed(self, engine: Engine) -> None:
        for item in engine.state.output:
            mask = item["pred"]
            voxels = int((mask > 0).sum())
            volume = voxels * float(torch.linalg.det(mask.affine[:3, :3].double()).abs())
            image = mask.meta["filename_or_obj"]
            with self.path.open("a", newline="") as file:
                csv.writer(file).writerow([image, f"{volume:.1f}", voxels])
            tqdm.write(f"{Path(image).name}: lesion {volume:,.0f} mm3 ({volume / 1000:.1f} mL)")  # above the bar
