"""The average of configs/overlays/ema.json is of weights and of BatchNorm's statistics."""

import pytest
import torch
from conftest import recipe


def test_statistics_are_averaged_as_weights_are() -> None:
    parser = recipe("ema", channels=2, device="cpu", ema_decay=0.75)
    _, optimizer, network = map(parser.get_parsed_content, ("ema_update", "optimizer", "network"))
    averaged = parser.get_parsed_content("validate#network")
    (norm, *_), (theirs, *_) = (
        [m for m in net.modules() if isinstance(m, torch.nn.BatchNorm3d)] for net in (network, averaged)
    )
    expected = None
    for value in (1.0, 2.0, 4.0):
        with torch.no_grad():
            norm.running_mean.fill_(value)
            norm.bias.fill_(value)
        optimizer.step()
        expected = value if expected is None else 0.75 * expected + 0.25 * value
        assert theirs.bias.tolist() == pytest.approx([expected] * 2, rel=1e-6)
        assert theirs.running_mean.tolist() == pytest.approx([expected] * 2, rel=1e-6)
