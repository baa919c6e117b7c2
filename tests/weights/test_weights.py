"""Weights that are used together are files, or all in a folder, and must see a scan alike."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from monai.networks.nets import UNet

from scripts.common.errors import InputError
from scripts.networks.meshnet import MeshNet
from scripts.weights.checkpoint import write_weights
from scripts.weights.weights import Weights

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
        write_weights(path, MeshNet(**DEFINITION), {**CARD, **changes})
        return path

    return write


def test_members_are_files_with_commas_a_list_or_all_below_a_folder(member: Callable) -> None:
    paths = [str(member(name, simulated=name == "b,2.pt")) for name in ("a.pt", "b,2.pt", "fold1/c.pt")]
    assert list(Weights(str(Path(paths[0]).parent)).members) == paths
    assert list(Weights(paths).members) == paths
    assert list(Weights(f" {paths[0]},{paths[2]} ").members) == paths[::2]
    assert list(Weights(paths[1]).members) == [paths[1]]
    assert Weights(paths).card["simulated"]
    assert not Weights(paths[::2]).card["simulated"]
    assert len(Weights(paths).network()) == Weights(paths).predictions == 3


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
        Weights(",".join(paths))
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("empty", ["", " ", [], None])
def test_an_empty_path_is_no_folder(empty: str | list | None) -> None:
    with pytest.raises(InputError, match=r"^ckpt_path: none is given; give weights"):
        Weights(empty)


def test_a_missing_member_is_told_by_the_key_of_the_config(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone.pt: no such file; train first, or give the weights with --teacher$"):
        Weights(str(tmp_path / "gone.pt"), "teacher")


def test_a_folder_without_weights_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"^{tmp_path}: no weights \(\*.pt\) there"):
        Weights(str(tmp_path))


def test_members_that_were_trained_on_what_is_held_out_are_refused(member: Callable) -> None:
    weights = Weights([str(member(f"{name}.pt", trained_on=[name * 16])) for name in "ab"])
    with pytest.raises(
        InputError, match=r"b\.pt: trained on 1 of the 1 scans that are the test set here, such as x.nii"
    ):
        weights.refuse_seen([{"image": "x.nii.gz", "sha256": {"image": "b" * 64}}])
    weights.refuse_seen([{"image": "x.nii.gz", "sha256": {"image": "c" * 64}}])


@pytest.mark.parametrize(
    ("seen", "refused"),
    [
        ({"trained_on": ["ab" * 8]}, True),
        ({"trained_on": ["cd" * 8], "ancestry": [{"trained_on": ["ef" * 8]}]}, False),
        ({"trained_on": []}, False),
        ({"trained_on": [], "ancestry": [{}, {"trained_on": ["ab" * 8]}]}, True),
    ],
)
def test_weights_trained_on_a_test_scan_are_refused_whatever_its_name(
    member: Callable, seen: dict, refused: bool
) -> None:
    weights = Weights(str(member("a.pt", cohort="ARC", fold=0, **seen)))
    held_out = [{"image": "/x/sub-1_T2w.nii.gz", "sha256": {"image": "ab" * 32}}]
    if refused:
        with pytest.raises(InputError, match=r"trained on 1 of the 1 scans .*, such as /x/sub-1_T2w.nii.gz; give the"):
            weights.refuse_seen(held_out)
    else:
        weights.refuse_seen(held_out)


def test_other_networks_have_no_share_of_the_scans_own_statistics(member: Callable) -> None:
    sizes = {"spatial_dims": 3, "in_channels": 1, "out_channels": 2, "channels": [2, 4], "strides": [2]}
    path = member("unet.pt", network_def={"_target_": "UNet", **sizes})
    torch.save(UNet(**sizes).state_dict(), path)
    with pytest.raises(InputError, match=r"^norm_adaptation 0.4: is for MeshNets only; leave it out"):
        Weights(str(path), norm_adaptation=0.4)
    assert type(Weights(str(path), norm_adaptation=0).network()).__name__ == "UNet"
    with pytest.raises(InputError, match=r"^frozen_layers 1: is for MeshNets only; leave it out"):
        Weights(str(path)).network(frozen_layers=1)


def test_what_is_given_goes_before_the_card_which_goes_before_the_defaults(member: Callable) -> None:
    path = str(member("a.pt", threshold=0.8))
    adaptation = {"norm_adaptation": 0, "norm_shift_limit": None}
    assert Weights(path).settings == {"threshold": 0.8, "min_volume": 0, "flip_averaging": False, **adaptation}
    given = {"threshold": 0.5, "min_volume": 9, "flip_averaging": True, "norm_adaptation": 0.25}
    own = Weights(path, **given)
    assert own.settings == {**given, "norm_shift_limit": None}
    assert own.predictions == 2
    assert own.network().norm_adaptation == 0.25


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("threshold", 2),
        ("threshold", 0),
        ("threshold", "half"),
        ("threshold", True),
        ("min_volume", -1),
        ("min_volume", float("inf")),
        ("flip_averaging", 1),
        ("norm_adaptation", 1.5),
    ],
)
def test_a_setting_that_cannot_be_is_named(member: Callable, key: str, value: object) -> None:
    with pytest.raises(InputError, match=f"^{key} {value!r}.*; see docs/segmenting.md$"):
        Weights(str(member("a.pt")), **{key: value})


def test_the_network_has_the_weights_of_the_file(member: Callable) -> None:
    path = member("a.pt")
    state, expected = Weights(str(path)).network().state_dict(), torch.load(path)
    assert all(torch.equal(state[key], expected[key]) for key in expected)
