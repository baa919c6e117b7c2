"""A wider MeshNet that computes what a trained one does, to train on: Net2WiderNet, Chen et al., arXiv 1511.05641."""

import torch
from torch.nn.functional import one_hot

from scripts.common.errors import InputError
from scripts.networks.meshnet import MeshNet
from scripts.weights.card import CARD, network_from_card
from scripts.weights.checkpoint import new_weights, write_weights
from scripts.weights.weights import Weights

NOISE = 0.25  # in standard deviations of a layer's weights
KEPT = {*CARD["properties"]} - {"teachers"}  # those are in the ancestry
KEPT |= {"about", "anatomies", "classes", "cohort", "fold", "inner_fold", "lesion_shapes", "license", "simulated"}


def widen(ckpt_path: str, channels: int, output: str, seed: int = 0) -> None:
    """Write the weights and the card of a wider MeshNet that answers as a narrower one, to be fine-tuned.

    Its card has no ``norm_adaptation``: the limit beyond which that is used is of a mean over channels, and copies
    change it.

    Args:
        ckpt_path: weights of a MeshNet, with their card.
        channels: the width of the new one, more than it has.
        output: the weights to write, such as ``eval/wider.pt``; the card goes beside them. Neither is replaced.
        seed: of which channels are copied, and how copies share what they weigh; an integer.

    Raises:
        InputError: no such weights, or none of a narrower MeshNet whose activation takes a channel at a time; an
            ``output`` that is there, is no name of weights, or cannot be written.
    """
    weights = new_weights(output)
    if type(seed) is not int or not 0 <= seed < 2**63:
        raise InputError(f"--seed {seed}: expected an integer of at least 0")
    trained = Weights(ckpt_path, norm_adaptation=0, single=True)
    if (kind := trained.card["network_def"]["_target_"].rpartition(".")[2]) != MeshNet.__name__:
        raise InputError(f"{ckpt_path}: of a {kind}; only a MeshNet can be made wider")
    network = trained.network().eval()
    old = network.classifier.in_channels
    if type(channels) is not int or channels <= old:
        raise InputError(f"--channels {channels}: expected an integer above {old}, the width of {ckpt_path}")
    card = {key: value for key, value in trained.card.items() if key in KEPT}
    card |= {"network_def": {**card["network_def"], "channels": channels}, "ancestry": trained.ancestry}
    wide = network_from_card(card).eval()
    generator = torch.Generator().manual_seed(seed)
    wide.load_state_dict(wider(network.state_dict(), channels, generator))
    x = torch.rand(1, card["network_def"].get("in_channels", 1), 6, 6, 6, generator=generator)
    with torch.inference_mode():
        if not torch.allclose(wide.plain(x), network.plain(x), rtol=1e-3, atol=1e-3):
            raise InputError(f"{ckpt_path}: not to be made wider, its activation mixes channels")
    write_weights(weights, wide, {**card, "widened": {"from": old, "seed": seed}})
    print(f"Written: {weights} and its card ({old} -> {channels} channels)")


def wider(state: dict[str, torch.Tensor], channels: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """The state_dict of a MeshNet of ``channels`` channels that computes what one with the state_dict ``state`` does.

    A new channel is a copy of an old one, and what all copies of one weigh in the next layer adds up to what it
    weighed. In equal shares they would stay copies in training, so their shares differ by noise that adds up to zero.
    """
    old = state["classifier.weight"].shape[1]
    source = torch.cat([torch.arange(old), torch.randint(old, (channels - old,), generator=generator)])
    is_copy_of = one_hot(source, old).to(state["classifier.weight"])  # (channels, old)
    copies = is_copy_of.sum(0)[source]
    average = is_copy_of @ is_copy_of.T / copies  # over the copies of a channel
    result = {}
    for key, value in state.items():
        if value.ndim and len(value) == old and not key.startswith("classifier"):
            value = value[source]
        if value.ndim == 5 and not key.startswith("layers.0."):
            shape = (len(value), channels, *value.shape[2:])
            std = value.std(correction=int(value.numel() > 1))  # of one weight it is 0
            noise = torch.randn(shape, dtype=value.dtype, generator=generator) * NOISE * std
            value = value[:, source] / copies.view(-1, 1, 1, 1)
            value = value + noise - torch.einsum("ij,oj...->oi...", average, noise)
        result[key] = value
    return result
