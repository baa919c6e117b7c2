"""Clip gradients right before each optimizer step, when they are unscaled, and record their norm."""

import logging
import math
from dataclasses import dataclass, field
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch.nn.utils import clip_grad_norm_, clip_grad_value_, get_total_norm

from scripts.networks.meshnet import unwrapped

logger = logging.getLogger("meshnet")


@dataclass(eq=False)
class GradientClipping:
    """Clips the gradients of each optimizer step, by their 2-norm or by value, and records their norm before it.

    It is a hook of the optimizer, so it sees what accumulation has summed, unscaled; a fused optimizer unscales within
    its step, there the limit is scaled instead. ``history.csv`` has the mean norm of an epoch as ``gradient_norm``.
    """

    max_norm: float | None = 1.0  # largest 2-norm over all parameters; None does not limit it
    max_value: float | None = None  # largest absolute value of a gradient's element; None does not limit it
    warn_above: float | None = None  # norm before clipping that is worth a line in the log, once in an epoch
    warn_below: float | None = None  # norm that is too small to learn by, and worth a line likewise
    per_layer: bool = False  # whether each layer's norm has a column, too, such as ``gradient_norm_classifier``
    _warned_in: int = field(default=0, init=False)

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
        low = 0.0 if self.warn_below is None else self.warn_below
        high = math.inf if self.warn_above is None else self.warn_above
        if not low <= norm <= high and self._warned_in != state.epoch:
            self._warned_in = state.epoch
            vanishes = ", it vanishes" if norm < low else ""
            logger.warning(f"epoch {state.epoch}, iteration {state.iteration}: gradient norm {norm:.3g}{vanishes}")
