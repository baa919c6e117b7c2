"""A wider MeshNet that finds what a trained one does, to be trained on: Net2WiderNet, Chen et al., arXiv 1511.05641."""

import torch
from torch.nn.functional import one_hot

from scripts.common.errors import InputError
from scripts.networks.meshnet import MeshNet
from scripts.networks.model_card import CARD, ancestry, network_from_card, read_card, without_adaptation
from scripts.networks.weights import new_weights, read_checkpoint, refuse_other_weights, write_weights

NOISE = 0.25  # in standard deviations of a layer's weights
KEPT = {*CARD["properties"], "about", "cohort", "fold", "inner_fold", "license", "simulated"}


def widen(ckpt_path: str, channels: int, output: str, seed: int = 0) -> None:
    """Write the weights and the card of a wider MeshNet that finds what a narrower one does, to be fine-tuned.

    Args:
        ckpt_path: weights of a MeshNet, with their card.
        channels: the width of the new one.
        output: the weights to write, such as ``eval/wider.pt``; the card goes beside them. Neither is replaced.
        seed: of which channels are copied, and how they share what they weigh.

    Raises:
        InputError: no such weights, none of a MeshNet, one that is as wide already, or a file that is there.
    """
    weights = new_weights(output)
    card = without_adaptation(read_card(ckpt_path))
    network = network_from_card(card)
    if not isinstance(network, MeshNet):
        raise InputError(f"{ckpt_path}: of a {type(network).__name__}; only a MeshNet can be made wider")
    narrow = read_checkpoint(ckpt_path)
    refuse_other_weights(ckpt_path, network.state_dict(), narrow)
    old = network.classifier.in_channels
    if type(channels) is not int or channels <= old:
        raise InputError(f"--channels {channels}: expected an integer above {old}, the width of {ckpt_path}")
    card = {key: value for key, value in card.items() if key in KEPT}
    card |= {"network_def": {**card["network_def"], "channels": channels}, "channels": channels}
    card |= {"ancestry": ancestry(ckpt_path), "widened": {"from": old, "seed": seed}}
    network = network_from_card(card)
    network.load_state_dict(wider(narrow, channels, torch.Generator().manual_seed(seed)))
    write_weights(weights, network, card)
    print(f"Written: {weights} and its card ({old} -> {channels} channels)")


def wider(state: dict[str, torch.Tensor], channels: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """The state_dict of a MeshNet of ``channels`` channels that computes what one with the state_dict ``state`` does.

    A new channel is a copy of an old one, and what all copies of one weigh in the next layer adds up to what it
    weighed. In equal shares they would stay copies in training, so their shares differ by noise that adds up to zero.
    """
    old = state["classifier.weight"].shape[1]
    source = torch.cat([torch.arange(old), torch.randint(old, (channels - old,), generator=generator)])
    is_copy_of = one_hot(source, old).to(state["classifier.weight"])  # (channels, old)
    share = is_copy_of @ is_copy_of.T / is_copy_of.sum(0)[source]  # averages over the copies of one
    result = {}
    for key, value in state.items():
        if value.ndim and not key.startswith("classifier"):
            value = value[source]
        if value.ndim == 5 and not key.startswith("layers.0."):
            shape = (len(value), channels, *value.shape[2:])
            noise = NOISE * value.std() * torch.randn(shape, dtype=value.dtype, generator=generator)
            value = value[:, source] / is_copy_of.sum(0)[source].view(-1, 1, 1, 1)
            value = value + noise - torch.einsum("ij,oj...->oi...", share, noise)
        result[key] = value.clone()
    return result
