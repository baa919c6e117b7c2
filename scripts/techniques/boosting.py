"""Fit boosted trees by MONAI's trainer: an epoch draws voxels of each scan, and its end fits the trees to them."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine
from monai.engines import default_prepare_batch
from monai.engines.utils import IterationEvents
from monai.utils import convert_to_tensor
from sklearn.ensemble import HistGradientBoostingClassifier

from scripts.common.errors import InputError
from scripts.networks.boosted_trees import BoostedTrees
from scripts.training.training_state import TrainingState

GRADIENTS = (IterationEvents.FORWARD_COMPLETED, IterationEvents.LOSS_COMPLETED, IterationEvents.BACKWARD_COMPLETED)


@dataclass(eq=False)
class TreeBoosting:
    """A trainer's ``iteration_update``, and a part of its state: the voxels that ``BoostedTrees`` learn from.

    Of each scan ``voxels`` of either class are drawn, or as many as there are. Each counts as many times as there are
    voxels of its class for one drawn, times the weight of its class, so that what is minimized is, but for the draw,
    the sum over all voxels. At the end of an epoch the trees are fitted anew to all that has been drawn so far; further
    epochs draw more, of scans augmented differently. The ``loss`` of an epoch is that of the trees it began with.

    Raises:
        InputError: a network without trees, or what cannot be combined with them.
    """

    network: torch.nn.Module
    validated: torch.nn.Module  # which must be the same
    booster: HistGradientBoostingClassifier  # fits as many trees of as many leaves as the network has
    voxels: int  # of each class and scan, at most
    class_weights: Sequence[float]  # background's and the lesion's
    drawn: dict[str, torch.Tensor] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        if not isinstance(self.network, BoostedTrees):
            kind = type(self.network).__name__
            raise InputError(f"baseline.json: fits trees, the network is a {kind}; leave one of the two out")
        if self.validated is not self.network:
            raise InputError("baseline.json: trees have no weights to average; leave ema.json out")
        if idist.get_world_size() > 1:
            raise InputError("baseline.json: trees are fitted by one process; start it without torchrun")

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return all voxels drawn so far."""
        return self.drawn

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Go on with the voxels of a state."""
        self.drawn = state

    @torch.no_grad()
    def __call__(self, trainer: Engine, batch: dict) -> dict:
        """Draw voxels of a mini-batch, and fit the trees if it is the epoch's last."""
        _refuse_gradients(trainer)
        image, label = trainer.prepare_batch(batch, trainer.state.device, trainer.non_blocking)
        pred = trainer.inferer(image, self.network)
        loss = trainer.loss_function(pred, label).mean()
        trainer.state.output = {"image": image, "label": label, "pred": pred, "loss": loss}
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
            self.drawn = {name: torch.cat([self.drawn.get(name, part[:0]), part]) for name, part in new.items()}

    def _fit(self) -> None:
        features, classes, weights = (self.drawn[name].numpy() for name in ("features", "classes", "weights"))
        if len(np.unique(classes)) < 2:
            raise InputError("baseline.json: no voxel of a lesion was drawn; train on scans with lesions")
        self.booster.fit(features, classes, weights)
        self.network.load_state_dict(as_weights(self.booster, self.network))


def as_weights(booster: HistGradientBoostingClassifier, network: BoostedTrees) -> dict[str, torch.Tensor]:
    """Return the weights with which ``network`` says what ``booster`` says, once fitted to the network's features."""
    weights = {name: torch.zeros_like(part) for name, part in network.state_dict().items()}
    weights["prior"] += float(booster._baseline_prediction.item())
    for i, (tree,) in enumerate(booster._predictors):  # no public attribute has the trees
        nodes = {name: tree.nodes[name].astype(float) for name in tree.nodes.dtype.names}
        inner = nodes["is_leaf"] == 0
        # The largest float32 that is not above: x <= threshold stays as true as in scikit-learn's float64.
        threshold = nodes["num_threshold"].astype(np.float32)
        threshold = np.where(threshold > nodes["num_threshold"], np.nextafter(threshold, -np.inf), threshold)
        parts = {"feature": nodes["feature_idx"], "left": nodes["left"], "right": nodes["right"], "number": threshold}
        for name, values in parts.items():
            leaf = nodes["value"] if name == "number" else 0
            weights[name][i, : len(inner)] = torch.from_numpy(np.where(inner, values, leaf))
    return weights


def _refuse_gradients(trainer: Engine) -> None:
    others = [handler for event in GRADIENTS for handler, *_ in trainer._event_handlers[event]]
    others += [*trainer.optimizer._optimizer_step_pre_hooks.values(), trainer.prepare_batch]
    for other in others:
        owner = getattr(other, "__self__", other)
        if owner is not default_prepare_batch and not isinstance(owner, TrainingState):
            raise InputError(
                f"baseline.json: trees are fitted without gradients and on one grid, and {type(owner).__name__} "
                "changes these; leave its overlay out"
            )
