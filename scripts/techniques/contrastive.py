"""Draw the features of voxels of one class together and those of lesion and background apart."""

import random

import torch
from ignite.engine import Engine
from monai.engines.utils import IterationEvents
from monai.utils import convert_to_tensor

from scripts.common.errors import InputError
from scripts.networks.interleaved import as_classified
from scripts.networks.meshnet import MeshNet
from scripts.techniques.loss_terms import LossTerms


def supervised_contrastive_loss(features: torch.Tensor, classes: torch.Tensor, temperature: float) -> torch.Tensor:
    """Khosla et al. (2020), equation 2: mean over anchors i and their positives p of

        -log( exp(z_i z_p / t) / sum_{a != i} exp(z_i z_a / t) )

    Args:
        features: (N, C), normalized here to z of length 1.
        classes: (N), at least two of each.
        temperature: t.
    """
    z = torch.nn.functional.normalize(features, dim=1)
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    log_probability = (z @ z.T / temperature).masked_fill(itself, -torch.inf).log_softmax(dim=1)
    positive = (classes[:, None] == classes[None]) & ~itself
    return -(log_probability.masked_fill(~positive, 0).sum(dim=1) / positive.sum(dim=1)).mean()


class ContrastiveTerm(LossTerms):
    """Draws the features of equal classes together: the same number of voxels of each class, drawn from a mini-batch.

    Args:
        network: what is trained.
        layer: name of its last layer, whose input are the features.
        weight: of the term.
        voxels: of each class, at most.
        temperature: see ``supervised_contrastive_loss``.

    Raises:
        InputError: the network has no such layer.
    """

    def __init__(
        self, network: torch.nn.Module, layer: str, weight: float, voxels: int = 256, temperature: float = 0.1
    ) -> None:
        super().__init__({"contrastive": weight})
        named = dict(network.named_modules())
        if layer not in named:
            last = [name for name, module in named.items() if not list(module.children())][-1]
            raise InputError(f"contrastive_layer {layer}: no layer of a {type(network).__name__}; its last is {last}")
        self.network = network
        self.voxels = voxels
        self.temperature = temperature
        self._last_seen: torch.Tensor | None = None
        named[layer].register_forward_pre_hook(self._keep)

    def attach(self, engine: Engine) -> None:
        super().attach(engine)
        engine.add_event_handler(IterationEvents.FORWARD_COMPLETED, self._take)

    def _keep(self, module: torch.nn.Module, inputs: tuple[torch.Tensor]) -> None:
        self._last_seen = inputs[0]

    def _take(self, trainer: Engine) -> None:
        self._features, self._last_seen = self._last_seen, None

    def term(self, name: str, output: dict) -> torch.Tensor:
        """0 where a mini-batch has fewer than two voxels of a class."""
        label = convert_to_tensor(output["label"])[:, -1:].float() > 0.5  # the last channel is the lesion, if soft
        label = as_classified(self.network, label) if isinstance(self.network, MeshNet) else label
        seen = () if self._features is None else (len(self._features), *self._features.shape[2:])
        if seen != (len(label), *label.shape[2:]):
            raise InputError("contrastive_layer: does not see each voxel of the label; give the network's last layer")
        features = self._features.movedim(1, -1).flatten(0, -2)
        drawn = [self._draw(label.flatten() == value) for value in (False, True)]
        n = min(map(len, drawn))
        if n < 2:
            return 0 * features[0].float().sum()
        chosen = torch.cat([voxels[:n] for voxels in drawn])
        classes = torch.arange(2, device=chosen.device).repeat_interleave(n)
        return supervised_contrastive_loss(features[chosen].float(), classes, self.temperature)

    def _draw(self, mask: torch.Tensor) -> torch.Tensor:
        voxels = mask.nonzero().flatten()
        drawn = random.sample(range(len(voxels)), min(self.voxels, len(voxels)))  # from a state that a resume restores
        return voxels[torch.tensor(drawn, dtype=torch.long, device=voxels.device)]
