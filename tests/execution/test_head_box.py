"""A network is run on the head's box alone, and the answer has the volume's size."""

import pytest
import torch
from monai.inferers import SimpleInferer

from scripts.execution import head_box
from scripts.execution.agreement import PredictionsInferer
from scripts.execution.head_box import MARGIN, STEP, HeadInferer, air_of
from scripts.networks.interleaved import infer
from scripts.networks.meshnet import MeshNet


def scan(shape: tuple[int, int, int] = (96, 112, 130)) -> torch.Tensor:
    """Noise of a scanner's air, a head in it, and a spot that is no head."""
    torch.manual_seed(0)
    x = 0.01 * torch.rand(1, 1, *shape)
    x[..., 30:70, 40:80, 50:90] += 0.5 + 0.5 * torch.rand(40, 40, 40)
    x[..., 5, 5, 5] = 1
    return x


def test_the_box_holds_the_head_and_its_margin_but_no_spot_of_noise() -> None:
    box = head_box.head_box(scan()[0, 0])
    for side, (first, last) in zip(box, ((30, 70), (40, 80), (50, 90)), strict=True):
        assert (side.stop - side.start) % STEP == 0
        assert side.start <= first - MARGIN
        assert side.stop >= last + MARGIN
        assert side.stop - side.start <= 40 + 2 * MARGIN + STEP + 4


def test_a_box_that_saves_little_is_none() -> None:
    assert head_box.head_box(scan()[0, 0, 20:84, 30:94, 40:104]) is None
    assert head_box.head_box(torch.rand(40, 40, 40)) is None
    assert head_box.head_box(torch.ones(40, 40, 40)) is None


def test_air_is_the_median_beyond_the_box() -> None:
    x = scan()
    assert float(air_of(x, head_box.head_box(x[0, 0]))) == pytest.approx(0.005, abs=2e-4)


def test_within_the_head_the_answer_is_the_networks() -> None:
    """With dilations that see no farther than the margin."""
    torch.manual_seed(1)
    x, network = scan(), MeshNet(channels=3, dilations=(1, 2, 1)).eval()
    x[..., 5, 5, 5] = 0
    with torch.no_grad():
        whole, cut = network(x), HeadInferer(SimpleInferer())(x, network)
    assert cut.shape == whole.shape
    torch.testing.assert_close(cut[..., 30:70, 40:80, 50:90], whole[..., 30:70, 40:80, 50:90], rtol=1e-4, atol=2e-3)
    assert len(torch.unique(cut[0, 0, :, :, 120:])) == 1 < len(torch.unique(whole[0, 0, :, :, 120:]))


def test_it_is_not_cropped_where_that_is_switched_off_or_would_be_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    boxes = []
    monkeypatch.setattr(head_box, "infer_in_air", lambda network, x, box, air, run: boxes.append(box) or network(x))
    network, instance = (MeshNet(channels=2, dilations=(1,), norm=norm).eval() for norm in ("batch", "instance"))
    with torch.no_grad():
        for one, crop in ((network, False), (instance, True), (torch.nn.Conv3d(1, 2, 1), True), (network, True)):
            expected = one(scan())
            torch.testing.assert_close(HeadInferer(SimpleInferer(), crop)(scan(), one), expected)
    assert boxes == [head_box.head_box(scan()[0, 0])]


@pytest.mark.parametrize("limit", [0.0, 1e6])
def test_a_scan_beyond_the_limit_is_adapted_to_and_computed_in_its_box(limit: float) -> None:
    torch.manual_seed(1)
    network = MeshNet(channels=2, dilations=(1, 2), norm_adaptation=0.5, norm_shift_limit=limit).eval()
    always, plain = (MeshNet(channels=2, dilations=(1, 2), norm_adaptation=share).eval() for share in (0.5, 0))
    steps, inferer = [], PredictionsInferer(HeadInferer(SimpleInferer(), run=lambda *x: steps.append(x) or infer(*x)))
    with torch.no_grad():
        for other in (always, plain):
            other.load_state_dict(network.state_dict())
        found, (beyond, within) = inferer(scan(), network), (inferer(scan(), other) for other in (always, plain))
        assert torch.equal(found, beyond if limit == 0 else within)
        assert not torch.allclose(beyond, within, atol=0.01)
        head = (..., slice(30, 70), slice(40, 80), slice(50, 90))
        torch.testing.assert_close(beyond[head], always.plain(scan())[head], rtol=1e-4, atol=2e-3)
    assert [x.numel() < scan().numel() / 2 for x, *_ in steps] == [True] * 3
