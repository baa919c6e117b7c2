"""Add weighted terms to the loss right after it is computed, such as what is known of lesions."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from ignite.engine import Engine
from ignite.metrics import Average
from monai.engines import Evaluator
from monai.engines.utils import IterationEvents
from monai.utils import convert_to_tensor


class LossTerms(ABC):
    """Adds weighted terms to the loss of each step; their means over an epoch are columns of ``history.csv``.

    ``data_loss`` is the loss before any term, and ``<name>_weight`` the weight in force, if that changes. Attached to
    an evaluator, it measures the terms of each validation, ``val_<name>``.

    Args:
        weights: of each term, by its name; a term of weight 0 is not computed.
        weighting: "constant"; "scheduled": grows linearly from 0 to the weight in the first half of the epochs;
            "adaptive": the weight is the term's share of the other loss, whatever its scale.
    """

    def __init__(self, weights: dict[str, float], weighting: str = "constant") -> None:
        self.weights, self.weighting = weights, weighting

    def attach(self, engine: Engine) -> None:
        if not isinstance(engine, Evaluator):
            self.trainer = engine
            engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self)
            return
        engine.add_event_handler(IterationEvents.FORWARD_COMPLETED, self._validate)
        for name in [name for name, weight in self.weights.items() if weight]:
            Average(lambda _, name=name: self._validated[name]).attach(engine, f"val_{name}")

    def __call__(self, trainer: Engine) -> None:
        """Add; called between the loss and its gradients."""
        state = trainer.state
        loss = state.output["loss"]
        state.terms.setdefault("data_loss", loss.item())
        for name, weight in self.weights.items():
            if weight:
                with torch.autocast(loss.device.type, enabled=False):
                    term = self.term(name, state.output)
                factor = self._factor(weight, loss, term)
                state.output["loss"] = state.output["loss"] + factor * term
                state.terms[name] = term.item()
                if self.weighting != "constant":
                    state.terms[f"{name}_weight"] = float(factor)

    @torch.no_grad()
    def _validate(self, evaluator: Engine) -> None:
        output = evaluator.state.output
        self._validated = {name: self.term(name, output).item() for name, weight in self.weights.items() if weight}

    def _factor(self, weight: float, loss: torch.Tensor, term: torch.Tensor) -> torch.Tensor | float:
        if self.weighting == "adaptive":
            return weight * loss.detach().abs() / term.detach().abs().clamp(min=1e-8)
        state = self.trainer.state
        done = (state.iteration - 1) / (state.max_epochs * state.epoch_length)
        return weight * min(1.0, 2 * done) if self.weighting == "scheduled" else weight

    @abstractmethod
    def term(self, name: str, output: dict) -> torch.Tensor:
        """The term ``name``, a scalar, of the trainer's output: image, label and pred (logits), (B, C, D, H, W)."""


class LesionPriors(LossTerms):
    """What is known of lesions before a scan is seen, in terms of the probability p of lesion, (B, 1, D, H, W).

    - volume: a lesion's volume is log-normal: mean over scans of (ln(V + 1) - ln(median + 1))^2 / (2 log_sd^2), with V
      the sum of p in mL.
    - smoothness: total variation (Rudin et al., 1992, anisotropic): mean over voxels of the absolute differences of p
      from the next voxel along each axis, summed over the axes.
    - outside: nothing outside the head: mean of p where the image, averaged over 5x5x5 voxels, is below 0.02.
    - symmetry: what looks like its mirror image is healthy: mean of p exp(-|I - mirrored I| / 0.1) with I averaged over
      5x5x5 voxels.

    Args:
        weights: see ``LossTerms``, of the names above.
        weighting: see ``LossTerms``.
        spacing: of the grid, in mm.
        spatial_size: of the grid, in voxels; where training goes on a coarser one, its voxels are larger.
        orientation: of the grid, such as RAS.
        volume: median in mL, and standard deviation of the logarithm, of lesions' volumes. ARC's 228 masks have a
            median of 67.9 and quartiles of 33.6 and 128.3: ln(128.3 / 33.6) / 1.349 = 0.99.
    """

    def __init__(
        self,
        weights: dict[str, float],
        weighting: str,
        spacing: Sequence[float],
        spatial_size: Sequence[int],
        orientation: str,
        volume: Sequence[float],
    ) -> None:
        super().__init__(weights, weighting)
        self.grid_ml = math.prod(spacing) * math.prod(spatial_size) / 1000
        self.left_right = 2 + next(axis for axis, side in enumerate(orientation) if side in "LR")
        self.volume_median, self.volume_log_sd = volume

    def term(self, name: str, output: dict) -> torch.Tensor:
        """One of the terms above."""
        p = output["pred"].float().softmax(dim=1)[:, 1:]
        return getattr(self, name)(p, convert_to_tensor(output["image"], dtype=torch.float32))

    def volume(self, p: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        """How unlikely the lesion's volume is."""
        log_volume = torch.log1p(self.grid_ml * p.flatten(1).mean(dim=1))
        median = torch.log1p(torch.as_tensor(self.volume_median, dtype=p.dtype))
        return ((log_volume - median).square() / (2 * self.volume_log_sd**2)).mean()

    def smoothness(self, p: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        """Total variation, a voxel."""
        return sum(p.diff(dim=axis).abs().sum() for axis in (2, 3, 4)) / p.numel()

    def outside(self, p: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        """Probability where there is no head."""
        air = (_averaged(image).amax(dim=1, keepdim=True) < 0.02).to(p.dtype)
        return (p * air).sum() / air.sum().clamp(min=1)

    def symmetry(self, p: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        """Probability where a scan looks like its mirror image."""
        averaged = _averaged(image)
        difference = (averaged - averaged.flip(self.left_right)).abs().amax(dim=1, keepdim=True)
        return (p * torch.exp(-difference / 0.1)).mean()


def _averaged(image: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.avg_pool3d(image, 5, stride=1, padding=2, count_include_pad=False)
