"""The average over a scan and its mirror image has no preference for a side."""

import torch
from monai.inferers import SimpleInferer

from scripts.inference.flip_inferer import FlipInferer


def test_the_answer_to_the_mirror_image_is_the_mirrored_answer() -> None:
    torch.manual_seed(0)
    network, inferer = torch.nn.Conv3d(1, 2, 3, padding=1), FlipInferer(SimpleInferer())
    x = torch.rand(2, 1, 6, 5, 4)
    torch.testing.assert_close(inferer(x.flip(2), network), inferer(x, network).flip(2))
    torch.testing.assert_close(inferer(x, network), (network(x) + network(x.flip(2)).flip(2)) / 2)
    assert not torch.allclose(network(x.flip(2)), network(x).flip(2))
