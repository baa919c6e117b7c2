"""One call sets seeds and torch's switches."""

from collections.abc import Iterator

import pytest
import torch

from scripts.training.determinism import set_determinism


@pytest.fixture(autouse=True)
def switches_as_before() -> Iterator[None]:
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32
    yield
    cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32 = before


def test_a_seed_repeats_what_is_drawn() -> None:
    set_determinism(3)
    first = torch.rand(4)
    set_determinism(3)
    assert torch.equal(torch.rand(4), first)
    set_determinism(4)
    assert not torch.equal(torch.rand(4), first)


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("tf32", [True, False])
def test_each_switch_is_set(deterministic: bool, tf32: bool) -> None:
    set_determinism(0, deterministic=deterministic, tf32=tf32)
    assert torch.backends.cudnn.deterministic is deterministic
    assert torch.backends.cudnn.benchmark is not deterministic
    assert torch.backends.cudnn.allow_tf32 is torch.backends.cuda.matmul.allow_tf32 is tf32
