"""Weights that are used together are files, or all in a folder, and must see a scan alike."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from ignite.engine import Engine

from scripts.common.errors import InputError
from scripts.networks.ensemble import MembersLoader, card_of, network_of, read_members
from scripts.networks.meshnet import MeshNet

DEFINITION = {"channels": 1, "dilations": [1]}
CARD = {
    "network_def": {"_target_": "scripts.networks.meshnet.MeshNet", **DEFINITION},
    "intensity": [{"_target_": "ScaleIntensityd", "keys": "image"}],
    "spacing": [3.0, 3.0, 3.0],
    "spatial_size": [24, 32, 24],
}


@pytest.fixture
def member(tmp_path: Path) -> Callable:
    """A function that writes weights; ``changes`` are of their card."""

    def write(name: str, **changes: object) -> Path:
        path = tmp_path / "members" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(MeshNet(**DEFINITION).state_dict(), path)
        path.with_suffix(".json").write_text(json.dumps({**CARD, **changes}))
        return path

    return write


def test_members_are_files_with_commas_a_list_or_all_below_a_folder(member: Callable) -> None:
    paths = [str(member(name, simulated=name == "b,2.pt")) for name in ("a.pt", "b,2.pt", "fold1/c.pt")]
    assert list(read_members(str(Path(paths[0]).parent))) == paths
    assert list(read_members(paths)) == paths
    assert list(read_members(f" {paths[0]},{paths[2]} ")) == paths[::2]
    assert list(read_members(paths[1])) == [paths[1]]
    assert card_of(read_members(paths))["simulated"]
    assert not card_of(read_members(paths[::2]))["simulated"]
    assert len(network_of(read_members(paths))) == 3


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"spacing": [2.0, 2.0, 2.0]}, r"spacing is \[2.0, 2.0, 2.0\] in its card and \[3.0, 3.0, 3.0\] in that of"),
        ({"spatial_size": [24, 32, 32]}, r"spatial_size is \[24, 32, 32\] in its card and"),
        (
            {"intensity": [{"_target_": "NormalizeIntensityd", "keys": "image"}]},
            "intensity is .*Normalize.* and .*Scale.*that of",
        ),
        ({"network_def": {"_target_": "SegResNet", "out_channels": 3}}, "classes is 3 in its card and 2 in that of"),
        ({"orientation": "LPS"}, "orientation is LPS in its card and RAS in that of"),
    ],
)
def test_members_that_see_a_scan_differently_are_one_line(member: Callable, changes: dict, line: str) -> None:
    paths = [str(member("a.pt")), str(member("b.pt", **changes))]
    with pytest.raises(InputError, match=f"^{paths[1]}: {line} .*{paths[0]}; members of an ensemble") as error:
        read_members(",".join(paths))
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("empty", ["", " ", []])
def test_an_empty_path_is_no_folder(empty: str | list) -> None:
    with pytest.raises(InputError, match=r"^ckpt_path: is empty"):
        read_members(empty)


def test_a_missing_member_is_told_by_the_key_of_the_config(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone.pt: no such file; train first, or give the weights with --teacher$"):
        read_members(str(tmp_path / "gone.pt"), "teacher")


def test_a_folder_without_weights_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"^{tmp_path}: no weights \(\*.pt\) there"):
        read_members(str(tmp_path))


def test_members_that_were_trained_on_what_is_held_out_are_refused(member: Callable) -> None:
    known = [str(member(f"{name}.pt", trained_on=[name * 16])) for name in "ab"]
    cards = read_members(known)
    scans = [{"image": "x.nii.gz", "sha256": {"image": "b" * 64}}]
    loader = MembersLoader(cards, network_of(cards), "cpu", held_out=scans)
    engine = Engine(lambda engine, batch: None)
    loader.attach(engine)
    with pytest.raises(InputError, match=r"b\.pt: trained on 1 of the 1 scans that are the test set here"):
        engine.run([0])
