"""The changed scan is the worst for a linear network, and leaves no trace in the network's statistics."""

import pytest
import torch
from monai.engines import SupervisedTrainer

from scripts.networks.meshnet import MeshNet
from scripts.techniques.adversarial import AdversarialLoss


def trainer_of(network: torch.nn.Module, handlers: list, loss: object, image: torch.Tensor) -> SupervisedTrainer:
    data = [{"image": image, "label": (image > 0.5).float()}]
    trainer = SupervisedTrainer(
        device="cpu", max_epochs=1, train_data_loader=data, network=network, decollate=False,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.0), loss_function=loss, train_handlers=handlers,
    )  # fmt: skip
    trainer.state.terms = {}
    return trainer


@pytest.mark.parametrize("weight", [0.0, 0.25, 1.0])
def test_of_a_linear_network_the_loss_grows_by_epsilon_times_the_weights(weight: float) -> None:
    network = torch.nn.Conv3d(1, 1, 1, bias=False)
    torch.nn.init.constant_(network.weight, -3.0)
    image = torch.rand(1, 1, 4, 4, 4)
    image.view(-1)[:2] = torch.tensor([-1.0, 2.0])  # so that no other voxel is kept in range
    trainer = trainer_of(network, [AdversarialLoss(0.1, weight)], lambda pred, label: pred.mean(), image)
    trainer.run()
    clean = -3 * image.mean().item()
    worst = clean + 3 * 0.1 * 63 / 64  # but the voxel that is the smallest already
    assert trainer.state.terms["adversarial_loss"] == pytest.approx(worst, abs=1e-5)
    assert trainer.state.output["loss"].item() == pytest.approx((1 - weight) * clean + weight * worst, abs=1e-5)


def test_running_statistics_come_from_clean_scans_alone() -> None:
    image, networks = torch.rand(1, 1, 16, 16, 16), []
    for handlers in ([], [AdversarialLoss(0.1, 0.5)]):
        torch.manual_seed(0)
        networks.append(MeshNet(channels=3))
        trainer_of(networks[-1], handlers, lambda pred, label: (pred[:, 1:] - label).square().mean(), image).run()
    for (name, ours), theirs in zip(networks[1].named_buffers(), networks[0].buffers(), strict=True):
        assert torch.equal(ours, theirs), name
