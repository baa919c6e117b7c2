"""Processes are connected by torchrun only, and what cannot be is one line."""

import pytest

from scripts.common.errors import InputError
from scripts.training.ranks import connect_ranks


def test_without_torchrun_there_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert connect_ranks({"evaluating": []}, "cpu") == 1


def test_an_evaluation_is_for_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match=r"^evaluating: one process does this; start it without torchrun$"):
        connect_ranks({"evaluating": []}, "cpu")


@pytest.mark.parametrize(("device", "local_rank"), [("cpu", 1), ("cuda:0", 1), ("cuda:2", 2)])
def test_a_process_has_a_gpu_of_its_own(device: str, local_rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("LOCAL_RANK", str(local_rank))
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with pytest.raises(InputError, match=rf"^device {device}: process {local_rank} .* cuda:{local_rank}, .* 2 GPUs; "):
        connect_ranks({}, device)
