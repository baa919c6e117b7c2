"""Weights that do not fit are one line that says why."""

import os
import signal
from pathlib import Path

import pytest
import torch
from weights.saved import save

from scripts.common.errors import InputError
from scripts.networks.meshnet import MeshNet
from scripts.weights.checkpoint import load_weights, write_weights


def test_loader_loads(tmp_path: Path) -> None:
    weights, network = save(tmp_path), MeshNet(channels=2)
    load_weights(tmp_path / "model.pt", network)
    assert all(torch.equal(network.state_dict()[key], weights[key]) for key in weights)


def test_loader_takes_the_network_out_of_a_file_with_more(tmp_path: Path) -> None:
    trained, network = MeshNet(channels=2), MeshNet(channels=2)
    torch.save({"network": trained.state_dict(), "format": 1}, tmp_path / "checkpoint_last.pt")
    load_weights(tmp_path / "checkpoint_last.pt", network)
    assert all(torch.equal(value, trained.state_dict()[key]) for key, value in network.state_dict().items())


def test_a_checkpoint_that_was_cut_short_is_one_line(tmp_path: Path) -> None:
    save(tmp_path)
    content = (tmp_path / "model.pt").read_bytes()
    (tmp_path / "model.pt").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"model.pt: not a torch checkpoint \(") as error:
        load_weights(tmp_path / "model.pt", MeshNet(channels=2))
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("network", "line"),
    [
        (MeshNet(channels=5), r"weights of another network, layers.0.0.weight is \(2, .*\(--channels, \.\.\.\)$"),
        (MeshNet(channels=2, dilations=(1, 2)), r"not weights of this network \(the network has no layers.2"),
        (torch.nn.Linear(2, 2), r"not weights of this network \(the file has no weight\)"),
    ],
)
def test_weights_of_another_network_are_one_line(tmp_path: Path, network: torch.nn.Module, line: str) -> None:
    save(tmp_path)
    with pytest.raises(InputError, match=f"model.pt: {line}") as error:
        load_weights(tmp_path / "model.pt", network)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (None, "no such file; train first, or give the weights with --ckpt_path"),
        (b"", "not a torch checkpoint"),
        (b"hello", "not a torch checkpoint"),
        (b"PK\x03\x04 and no more", "not a torch checkpoint"),
    ],
)
def test_files_that_are_no_weights_are_one_line(tmp_path: Path, content: bytes | None, line: str) -> None:
    if content is not None:
        (tmp_path / "model.pt").write_bytes(content)
    with pytest.raises(InputError, match=f"model.pt: {line}") as error:
        load_weights(tmp_path / "model.pt", MeshNet(channels=2))
    assert len(str(error.value).splitlines()) == 1


class Mine:
    """Not a weight."""


class Calls:
    """Runs a function when it is read."""

    def __reduce__(self) -> tuple:
        return os.system, ("touch hacked",)


@pytest.mark.parametrize("held", [Mine(), Calls()])
def test_weights_that_hold_code_are_refused_by_that_name(
    tmp_path: Path, held: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"network": held}, tmp_path / "model.pt")
    with pytest.raises(InputError, match=r"model.pt: contains more than weights, such as code; refused; save a state_"):
        load_weights(tmp_path / "model.pt", MeshNet(channels=2))
    assert not (tmp_path / "hacked").exists()


def test_an_archive_of_torchscript_is_told_as_that(tmp_path: Path) -> None:
    torch.jit.script(torch.nn.Linear(1, 1)).save(tmp_path / "model.pt")
    with pytest.raises(InputError, match=r"model.pt: a TorchScript archive, not weights; save a state_dict$"):
        load_weights(tmp_path / "model.pt", MeshNet(channels=2))


@pytest.mark.parametrize("content", [[1, 2], 3.0])
def test_a_file_that_holds_something_else_is_one_line(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(InputError, match=r"model.pt: not weights but a (list|float); save a state_dict$"):
        load_weights(tmp_path / "model.pt", MeshNet(channels=2))


@pytest.mark.skipif(os.name != "posix", reason="only POSIX can limit the size of files")
def test_a_disk_that_the_card_does_not_fit_on_keeps_no_weights_either(tmp_path: Path) -> None:
    import resource

    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))
    try:
        with pytest.raises(InputError, match=r"mine.json: cannot be written \(File too large\)"):
            write_weights(tmp_path / "mine.pt", torch.nn.Conv3d(1, 1, 1), {"about": "x" * 6000})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert list(tmp_path.iterdir()) == []
