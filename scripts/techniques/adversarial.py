"""Train also on each scan with the small change of its intensities that raises the loss most."""

from dataclasses import dataclass

import torch
from ignite.engine import Engine
from monai.engines.utils import IterationEvents
from monai.utils import convert_to_tensor

from scripts.networks.interleaved import spare_statistics


@dataclass(eq=False)
class AdversarialLoss:
    """Mixes in the loss on scans changed by the fast gradient sign method (Goodfellow et al., 2015).

        loss = (1 - w) L(x) + w L(x + e sign(dL/dx))

    L is the recipe's loss; what other handlers add to it stays as it is. The changed scan stays in the range of the
    clean one. The network's running statistics come from clean scans only. A step takes three times as long. The mean
    of the second part is the column ``adversarial_loss`` of ``history.csv``, that of L(x) ``data_loss``.
    """

    epsilon: float  # e, in units of the scaled intensities
    weight: float  # w, in [0, 1]

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self)

    def __call__(self, trainer: Engine) -> None:
        """Mix in; called between the loss and its gradients."""
        output, scaler = trainer.state.output, trainer.scaler
        clean = convert_to_tensor(output["image"]).detach()

        def loss_of(image: torch.Tensor) -> torch.Tensor:
            return trainer.loss_function(trainer.inferer(image, trainer.network), output["label"]).mean()

        with spare_statistics(trainer.network):
            image = clean.clone().requires_grad_()
            loss = loss_of(image)
            (gradient,) = torch.autograd.grad(loss if scaler is None else scaler.scale(loss), image)
            changed = image.detach() + self.epsilon * gradient.sign()
            adversarial = loss_of(changed.clamp(clean.amin(), clean.amax()))
        unchanged = trainer.loss_function(output["pred"], output["label"]).mean()  # without what others have added
        output["loss"] = output["loss"] + self.weight * (adversarial - unchanged)
        trainer.state.terms.setdefault("data_loss", unchanged.item())
        trainer.state.terms["adversarial_loss"] = adversarial.item()
