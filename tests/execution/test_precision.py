"""A CPU with bfloat16 computes in it, any other in float32; results stay float32."""

import pytest
import torch
from monai.networks.nets import UNet

from scripts.common.errors import InputError
from scripts.execution.precision import AutocastInferer, autocast_dtype, has_bfloat16


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_the_network_computes_in_the_type_asked_for_and_answers_in_float32(dtype: torch.dtype | None) -> None:
    seen = []

    class Network(torch.nn.Conv3d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append((out := super().forward(x)).dtype)
            return out

    out = AutocastInferer(dtype)(torch.rand(1, 1, 48, 48, 48), Network(1, 1, 1))
    assert out.dtype == torch.float32
    assert seen == [dtype or torch.float32]


def test_gradients_of_networks_that_make_small_volumes_smaller_are_those_of_float32() -> None:
    network, image = UNet(3, 1, 2, (2, 4, 4, 4, 4), (2, 2, 2, 2)), torch.rand(1, 1, 32, 48, 32)
    for p in network.parameters():
        p.requires_grad_()
    inferer, expected = AutocastInferer(torch.bfloat16), network(image)
    assert torch.equal(inferer(image, network), expected)
    with torch.no_grad():
        assert not torch.equal(inferer(image, network), expected)


@pytest.mark.parametrize(("side", "smallest"), [(32, 2), (48, 3), (64, 4)])
def test_what_decides_is_the_smallest_side_that_is_convolved(
    side: int, smallest: int, caplog: pytest.LogCaptureFixture
) -> None:
    network, image = UNet(3, 1, 2, (2, 4, 4, 4, 4), (2, 2, 2, 2)).train(), torch.rand(1, 1, side, 64, 64)
    state = {key: value.clone() for key, value in network.state_dict().items()}
    inferer = AutocastInferer(torch.bfloat16)
    with caplog.at_level("INFO"):
        out, expected = inferer(image, network), network(image)
    assert torch.equal(out, expected) is (smallest < 3)
    assert caplog.messages == [f"Training in float32: UNet convolves volumes with a side of {smallest}"] * (
        smallest < 3
    )
    assert inferer.sides == {image.shape: smallest}
    assert network.training
    assert {*state} == {*network.state_dict()}


def test_a_network_that_halves_five_times_is_trained_in_float32_at_64() -> None:
    """As SwinUNETR: of a side of 64 its last stage convolves 2."""
    network, image = UNet(3, 1, 2, (2, 2, 2, 2, 2, 2), (2, 2, 2, 2, 2)), torch.rand(1, 1, 64, 64, 64)
    assert torch.equal(AutocastInferer(torch.bfloat16)(image, network), network(image))


@pytest.mark.parametrize("capability", [None, "avx512_bf16", "amx_bf16"])
def test_auto_is_bfloat16_where_the_cpu_has_it(capability: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {capability: True, "avx512_f": True})
    assert has_bfloat16() is (capability is not None)
    assert autocast_dtype(True, "cpu") == (torch.bfloat16 if capability else None)


@pytest.mark.parametrize(
    ("amp", "device", "dtype", "expected"),
    [
        (False, "cpu", "auto", None),
        (False, "cpu", "bfloat16", None),
        (False, "cuda:0", "auto", None),
        (True, "cpu", "bfloat16", torch.bfloat16),
        (True, "cuda", "auto", torch.float16),
        (True, torch.device("cuda:1"), "bfloat16", torch.bfloat16),
    ],
)
def test_amp_false_is_float32_everywhere(
    amp: bool, device: str | torch.device, dtype: str, expected: torch.dtype | None
) -> None:
    assert autocast_dtype(amp, device, dtype) == expected


def test_another_type_is_one_line() -> None:
    with pytest.raises(InputError, match=r"^amp_dtype fp8: expected auto, bfloat16 or float16"):
        autocast_dtype(True, "cpu", "fp8")
    with pytest.raises(InputError, match=r"^amp_dtype float16: CPUs have no fast float16"):
        autocast_dtype(True, "cpu", "float16")


def test_a_device_without_mixed_precision_computes_in_float32_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        assert autocast_dtype(True, "mps") is None
    assert caplog.messages == ["Computing in float32: mixed precision is for CUDA and CPUs, not for mps"]
