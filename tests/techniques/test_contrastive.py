"""The supervised contrastive term has its closed form, and sees the voxels and classes that the network classifies."""

import math
from types import SimpleNamespace

import pytest
import torch
from monai.data import MetaTensor
from monai.networks.nets import UNet

from scripts.common.errors import InputError
from scripts.networks.interleaved import as_classified
from scripts.networks.meshnet import MeshNet
from scripts.techniques.contrastive import ContrastiveTerm, supervised_contrastive_loss


def test_classes_at_right_angles_have_the_closed_form() -> None:
    features = torch.tensor([[3.0, 0.0], [1.0, 0.0], [0.0, 2.0], [0.0, 5.0]])
    for temperature in (0.1, 1.0):
        # for each anchor one positive at similarity 1, and two negatives at 0
        expected = -math.log(math.exp(1 / temperature) / (math.exp(1 / temperature) + 2))
        loss = supervised_contrastive_loss(features, torch.tensor([0, 0, 1, 1]), temperature)
        assert loss.item() == pytest.approx(expected, abs=1e-6)
    loss = supervised_contrastive_loss(features, torch.tensor([0, 1, 0, 1]), 1.0)
    assert loss.item() == pytest.approx(-math.log(1 / (math.e + 2)), rel=1e-5)  # the positive is a stranger


@pytest.mark.parametrize("shape", [(16, 24, 32), (15, 18, 20)])
def test_features_are_those_of_the_plain_network_whatever_the_arrangement(shape: tuple) -> None:
    torch.manual_seed(0)
    network = MeshNet(channels=3).train()
    image, seen = torch.rand(2, 1, *shape), []
    network.classifier.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    network(image)
    network.plain(image)
    ours, plain = seen
    torch.testing.assert_close(ours, as_classified(network, plain), atol=1e-4, rtol=1e-4)


def test_the_term_pulls_classes_apart() -> None:
    torch.manual_seed(0)
    network = MeshNet(channels=4, dilations=[1, 2]).train()
    term = ContrastiveTerm(network, "classifier", weight=1.0, voxels=64)
    image = torch.rand(1, 1, 16, 16, 16)
    label = (image > 0.5).float()
    optimizer, values = torch.optim.Adam(network.parameters(), lr=0.02), []
    for _ in range(30):
        network(image)
        term._take(SimpleNamespace())
        values.append(term.term("contrastive", {"label": MetaTensor(label)}))
        optimizer.zero_grad()
        values[-1].backward()
        optimizer.step()
    assert values[-1] < 0.9 * values[0]
    assert network.layers[0][0].weight.grad.abs().sum() > 0


@pytest.mark.parametrize("lesion_voxels", [0, 1])
def test_a_batch_without_two_voxels_of_a_class_adds_nothing(lesion_voxels: int) -> None:
    network = UNet(3, 1, 2, (2, 2), (1,))
    layer = [name for name, module in network.named_modules() if not list(module.children())][-1]
    term = ContrastiveTerm(network, layer, weight=1.0)
    network(torch.rand(1, 1, 8, 8, 8))
    term._take(SimpleNamespace())
    label = torch.zeros(1, 1, 8, 8, 8)
    label.view(-1)[:lesion_voxels] = 1
    assert term.term("contrastive", {"label": MetaTensor(label)}).item() == 0


def test_a_layer_that_is_not_there_is_refused_and_the_last_one_named() -> None:
    with pytest.raises(InputError, match=r"^contrastive_layer head: no layer of a MeshNet; its last is classifier$"):
        ContrastiveTerm(MeshNet(channels=2), "head", 1.0)


@pytest.mark.parametrize("layer", ["layers.0.1", "layers.0.0"])
def test_a_layer_that_sees_other_voxels_is_refused(layer: str) -> None:
    network = MeshNet(channels=2, dilations=[4, 1]).train()
    term = ContrastiveTerm(network, layer, weight=1.0)
    network(torch.rand(1, 1, 16, 16, 16))
    term._take(SimpleNamespace())
    with pytest.raises(InputError, match=r"^contrastive_layer: does not see each voxel of the label"):
        term.term("contrastive", {"label": torch.ones(1, 1, 16, 16, 16)})
