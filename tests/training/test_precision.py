"""A CPU with bfloat16 computes in it, any other in float32; results stay float32."""

import pytest
import torch

from scripts.common.errors import InputError
from scripts.training.precision import AutocastInferer, has_bfloat16


def dtype_inside(precision: str) -> torch.dtype:
    seen = []

    class Network(torch.nn.Conv3d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append((out := super().forward(x)).dtype)
            return out

    out = AutocastInferer(precision)(torch.rand(1, 1, 4, 4, 4), Network(1, 1, 1))
    assert out.dtype == torch.float32
    return seen[0]


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_a_precision_that_is_asked_for_is_used(precision: str, dtype: torch.dtype) -> None:
    assert dtype_inside(precision) == dtype


@pytest.mark.parametrize("capability", [None, "avx512_bf16", "amx_bf16"])
def test_auto_is_bfloat16_where_the_cpu_has_it(capability: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {capability: True, "avx512_f": True})
    assert has_bfloat16() is (capability is not None)
    assert dtype_inside("auto") == (torch.bfloat16 if capability else torch.float32)


@pytest.mark.parametrize("precision", ["auto", "bf16", "fp16", "fp32"])
def test_on_cuda_it_leaves_the_precision_to_the_engine(precision: str) -> None:
    assert not AutocastInferer(precision, "cuda:0").enabled


def test_another_precision_is_one_line() -> None:
    with pytest.raises(InputError, match=r"^precision fp8: expected auto, bf16, fp16 or fp32$"):
        AutocastInferer("fp8")
    with pytest.raises(InputError, match=r"^precision fp16: CPUs have no fast float16"):
        AutocastInferer("fp16")
