"""Let trained networks teach another one what they predict for each scan."""

from typing import Any

import torch
from ignite.engine import Engine
from monai.engines import default_prepare_batch
from monai.engines.utils import IterationEvents
from monai.transforms import RandomizableTrait
from monai.utils import convert_to_tensor
from torch.nn.functional import kl_div

from scripts.common.errors import InputError
from scripts.data.cohort import Cohort
from scripts.data.seeded_order import SeededDataset
from scripts.execution.agreement import each
from scripts.techniques.loss_terms import LossTerms
from scripts.weights.card import lineage
from scripts.weights.weights import Weights


class Distillation(LossTerms):
    """Adds what a student is from its teacher, with both softened by a temperature T (Hinton et al., 2015):

        T^2 KL(softmax(t / T) || softmax(s / T)), mean over voxels,

    t and s the logits; several teachers give their mean probability. With class weights, a voxel counts in the mean by
    the weight that the softened teacher expects of its class, as it counts in a weighted cross-entropy. The teacher
    sees what the student sees, augmented or mixed, and computes as validation does. Where each epoch shows the same
    scans, and there is room for it, its answers are kept.

    Args:
        teacher: one or several.
        weight: of the term.
        temperature: T.
        device: of the student.
        cohort: what the student is trained on.
        fold: its outer fold.
        sees: orientation, spacing, spatial_size and intensity of the student's scans, as a card has them.
        cache_gigabytes: most memory for answers that are kept.
        class_weight: (C,), of the classes, as the student's loss has them; None for equal ones.

    Raises:
        InputError: a teacher for which scans are prepared differently, or that was trained on the student's test fold.
    """

    def __init__(
        self,
        teacher: Weights,
        weight: float,
        temperature: float,
        device: torch.device | str,
        cohort: Cohort,
        fold: int,
        sees: dict[str, Any],
        cache_gigabytes: float = 0.0,
        class_weight: torch.Tensor | None = None,
    ) -> None:
        super().__init__({"distillation": weight})
        for path, card in teacher.members.items():
            _refuse_other_scans(path, card, sees, cohort, fold)
        with torch.random.fork_rng(devices=[]):  # the student begins as it would without a teacher
            self.network = teacher.network().to(device, memory_format=torch.channels_last_3d)
        self.network.eval().requires_grad_(False)
        self.temperature = temperature
        self.room = cache_gigabytes * 1e9
        self.class_weight = class_weight
        self.ancestry = teacher.ancestry
        self._kept: dict[str, torch.Tensor] = {}

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(IterationEvents.FORWARD_COMPLETED, self._forward_completed)
        super().attach(engine)

    def state_dict(self) -> dict:
        """Who teaches, for a training's state."""
        return {"sha256": [one.get("sha256") for one in self.ancestry]}

    def load_state_dict(self, state: dict) -> None:
        """Refuse to go on with another teacher."""
        if state != self.state_dict():
            raise InputError("teacher: other weights than this run began with; give those, or another --ckpt_dir")

    @torch.no_grad()
    def _forward_completed(self, trainer: Engine) -> None:  # where the student's autocast still holds
        if not self.weights["distillation"]:
            return
        image = convert_to_tensor(trainer.state.output["image"])
        if not self._sees_again(trainer, image):
            self._taught = self._ask(trainer, image)
            return
        names = trainer.state.batch["image"].meta["filename_or_obj"]
        for i, name in enumerate(names):  # one by one, so that rounding knows nothing of a scan's neighbours
            if name not in self._kept:
                self._kept[name] = self._ask(trainer, image[i : i + 1]).cpu()
        self._taught = torch.cat([self._kept[name] for name in names]).to(image.device)

    def _ask(self, trainer: Engine, image: torch.Tensor) -> torch.Tensor:
        answers = [
            trainer.inferer(image, network).div(self.temperature).softmax(dim=1) for network in each(self.network)
        ]
        return torch.stack(answers).mean(dim=0)

    def _sees_again(self, trainer: Engine, image: torch.Tensor) -> bool:
        """Whether all epochs show the same scans, and answers to them fit into memory: two float32 a voxel."""
        scans = trainer.data_loader.dataset
        if type(scans) is not SeededDataset or trainer.prepare_batch is not default_prepare_batch:
            return False
        changes = any(isinstance(t, RandomizableTrait) for t in scans.dataset.transform.flatten().transforms)
        return not changes and 8 * image[0, 0].numel() * len(scans) <= self.room

    def term(self, name: str, output: dict) -> torch.Tensor:
        """How far the student is from its teacher."""
        student = convert_to_tensor(output["pred"]).float()
        if student.shape != self._taught.shape:
            theirs = self._taught.shape[1]
            ours = student.shape[1]
            raise InputError(f"teacher: has {theirs} classes, its student {ours}; give a teacher with as many")
        soft = student.div(self.temperature).log_softmax(dim=1)
        apart = self.temperature**2 * kl_div(soft, self._taught, reduction="none").sum(dim=1)
        if self.class_weight is None:
            return apart.mean()
        weight = torch.einsum("c,bc...->b...", self.class_weight.to(self._taught), self._taught)
        return (weight * apart).sum() / weight.sum()


def _refuse_other_scans(path: str, card: dict, sees: dict[str, Any], cohort: Cohort, fold: int) -> None:
    for key, ours in sees.items():
        if list(card[key]) != list(ours):
            raise InputError(
                f"{path}: {key} is {card[key]} in its card and {ours} in this run; a teacher must see a scan as its "
                f"student does: give --{key}, or another teacher"
            )
    for one in lineage(card):
        if one.get("trained_on") and one.get("cohort") == cohort.name and one.get("fold", fold) != fold:
            raise InputError(
                f"{path}: was trained with fold {one['fold']} of this cohort held out, so it has seen test scans of "
                f"fold {fold}; give a teacher that was trained with --fold {fold}"
            )
