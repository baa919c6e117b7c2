"""Clip gradients right before each optimizer step, when they are unscaled, and record their norm."""

import logging
import math
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch.nn.utils import clip_grad_norm_, clip_grad_value_, get_total_norm

from scripts.networks.meshnet import unwrapped

logger = logging.getLogger("meshnet")


class GradientClipping:
    """Clips the gradients of each optimizer step, by their 2-norm or by value, and records their norm before it.

    It is a hook of the optimizer, so it sees what accumulation has summed, unscaled; a fused optimizer unscales within
    its step, there the limit is scaled instead. ``history.csv`` has the mean norm of an epoch as ``gradient_norm``.

    Args:
        max_norm: largest 2-norm over all parameters; None does not limit it.
        max_value: largest absolute value of a gradient's element; None does not limit it.
        warn_above: norm before clipping that is worth a line in the log, once in an epoch; None says nothing.
        warn_below: norm that is too small to learn by, and worth a line likewise.
        per_layer: whether each layer's norm has a column, too, such as ``gradient_norm_classifier``.
    """

    def __init__(
        self,
        max_norm: float | None = 1.0,
        max_value: float | None = None,
        warn_above: float | None = None,
        warn_below: float | None = None,
        per_layer: bool = False,
    ) -> None:
        self.max_norm = max_norm
        self.max_value = max_value
        self.per_layer = per_layer
        self.low = 0.0 if warn_below is None else warn_below
        self.high = math.inf if warn_above is None else warn_above
        self._warned_in = 0

    def attach(self, engine: Engine) -> None:
        """Register with the trainer's optimizer."""
        self.trainer = engine
        engine.add_event_handler(Events.STARTED, lambda: engine.optimizer.register_step_pre_hook(self))

    def __call__(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """Clip; called before a step."""
        scale = getattr(optimizer, "grad_scale", None)  # set by GradScaler for fused optimizers only
        scale = 1.0 if scale is None else float(scale)
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        layers: dict[str, list[torch.Tensor]] = {}
        for name, p in unwrapped(self.trainer.network).named_parameters() if self.per_layer else ():
            layers.setdefault(name.rpartition(".")[0], []).extend([] if p.grad is None else [p.grad])
        norms = {f"gradient_norm_{name}": float(get_total_norm(grads)) / scale for name, grads in layers.items()}
        norm = float(clip_grad_norm_(parameters, scale * (self.max_norm or math.inf))) / scale
        if self.max_value is not None:
            clip_grad_value_(parameters, scale * self.max_value)
        state = self.trainer.state
        if math.isfinite(norm):  # else GradScaler leaves the step out
            state.terms |= {"gradient_norm": norm, **norms}
        if not self.low <= norm <= self.high and self._warned_in != state.epoch:
            self._warned_in = state.epoch
            vanishes = ", it vanishes" if norm < self.low else ""
            logger.warning(f"epoch {state.epoch}, iteration {state.iteration}: gradient norm {norm:.3g}{vanishes}")
