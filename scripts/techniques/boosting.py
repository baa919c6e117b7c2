"""Train boosted trees: an epoch draws voxels of each scan, and fits the trees to them at its end."""

from collections.abc import Sequence

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.engines import default_prepare_batch
from monai.engines.utils import IterationEvents
from monai.utils import convert_to_tensor
from sklearn.base import clone
from sklearn.ensemble import HistGradientBoostingClassifier
from tqdm import tqdm

from scripts.common.errors import InputError
from scripts.networks.boosted_trees import BoostedTrees
from scripts.training.training_state import TrainingState

TOGETHER = 10  # trees between two steps of the progress bar


class TreeBoosting:
    """A trainer's ``iteration_update``, one of its handlers, and a part of its state: what ``BoostedTrees`` learn from.

    Of each scan ``voxels`` of either class are drawn, or as many as there are. Each counts as many times as there are
    voxels of its class for one drawn, times the weight of its class, so that what is minimized is, but for the draw,
    the sum over all voxels. At the end of an epoch the trees are fitted anew to all that has been drawn so far; further
    epochs draw more, of scans augmented differently. The ``loss`` of an epoch is that of the trees it began with.

    Args:
        network: what is trained.
        validated: what is validated, which must be the same.
        booster: how trees are fitted.
        voxels: of each class and scan, at most.
        class_weights: background's and the lesion's.

    Raises:
        InputError: a network without trees, no voxels, or what cannot be combined with them.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        validated: torch.nn.Module,
        booster: HistGradientBoostingClassifier,
        voxels: int,
        class_weights: Sequence[float],
    ) -> None:
        if not isinstance(network, BoostedTrees):
            raise InputError(
                f"baseline.json: fits trees, the network is a {type(network).__name__}; leave one of the two out"
            )
        if validated is not network:
            raise InputError("baseline.json: trees have no weights to average; leave ema.json out")
        if voxels < 1:
            raise InputError(f"voxels_per_scan {voxels}: expected at least 1")
        if idist.get_world_size() > 1:
            raise InputError("baseline.json: trees are fitted by one process; start it without torchrun")
        self.network = network
        self.booster = booster
        self.voxels = voxels
        self.class_weights = class_weights
        self._drawn: dict[str, list[torch.Tensor]] = {"features": [], "classes": [], "weights": []}

    def attach(self, engine: Engine) -> None:
        """Register with the trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._refuse_gradients)  # all others are attached then

    def state_dict(self) -> dict[str, torch.Tensor]:
        """All voxels drawn so far."""
        return {name: torch.cat(parts) if parts else torch.zeros(0) for name, parts in self._drawn.items()}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Go on with the voxels of a state."""
        self._drawn = {name: [part] if len(part) else [] for name, part in state.items()}

    @torch.no_grad()
    def __call__(self, trainer: Engine, batch: dict) -> dict:
        """Draw voxels of a mini-batch, and fit the trees if it is the epoch's last."""
        image, label = trainer.prepare_batch(batch, trainer.state.device, trainer.non_blocking)
        pred = trainer.inferer(image, self.network)
        trainer.state.output = {"image": image, "label": label, "pred": pred}
        trainer.state.output["loss"] = trainer.loss_function(pred, label).mean()
        lesion = convert_to_tensor(label)[:, -1] > 0.5  # the last of two channels is the lesion, if soft
        for features, mask in zip(self.network.features(image), lesion, strict=True):
            self._draw(features.flatten(1), mask.flatten())
        if trainer.state.iteration % trainer.state.epoch_length == 0:
            self._fit()
        trainer.fire_event(IterationEvents.MODEL_COMPLETED)
        return trainer.state.output

    def _draw(self, features: torch.Tensor, mask: torch.Tensor) -> None:
        for value, weight in enumerate(self.class_weights):
            voxels = (mask == bool(value)).nonzero().flatten().cpu()
            drawn = voxels[torch.randperm(len(voxels))[: self.voxels]]  # from a state that a resume restores
            counts = torch.full((len(drawn),), weight * len(voxels) / max(1, len(drawn)))
            new = {"features": features[:, drawn].T.cpu(), "classes": torch.full_like(drawn, value), "weights": counts}
            for name, part in new.items():
                self._drawn[name].append(part)

    def _fit(self) -> None:
        features, classes, weights = (part.numpy() for part in self.state_dict().values())
        if len(np.unique(classes)) < 2:
            raise InputError("baseline.json: no voxel of a lesion was drawn; train on scans with lesions")
        booster = clone(self.booster)
        trees = len(self.network.number)
        for n in tqdm(range(TOGETHER, trees + TOGETHER, TOGETHER), f"Fitting to {len(classes):,} voxels", leave=False):
            booster.set_params(warm_start=True, max_iter=min(n, trees)).fit(features, classes, weights)
        self.network.learn(booster)

    def _refuse_gradients(self, trainer: Engine) -> None:
        events = (IterationEvents.FORWARD_COMPLETED, IterationEvents.LOSS_COMPLETED, IterationEvents.BACKWARD_COMPLETED)
        others = [handler for event in events for handler, *_ in trainer._event_handlers[event]]
        others += trainer.optimizer._optimizer_step_pre_hooks.values()
        if trainer.prepare_batch is not default_prepare_batch:
            others.append(trainer.prepare_batch)
        for other in others:
            owner = getattr(other, "__self__", other)
            if not isinstance(owner, TrainingState):
                raise InputError(
                    f"baseline.json: trees are fitted without gradients and on one grid, and {type(owner).__name__} "
                    "changes these; leave its overlay out"
                )
