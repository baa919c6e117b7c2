"""A student is drawn to what its teachers think of the scans that it sees, and its card tells who they were."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import EVALUATE, recipe, refused, train_here
from monai.bundle import ConfigParser
from scipy.special import rel_entr, softmax

from scripts.common.errors import InputError
from scripts.execution.agreement import each
from scripts.networks.meshnet import MeshNet
from scripts.techniques.distillation import Distillation
from scripts.weights.card import read_card
from scripts.weights.checkpoint import write_weights
from scripts.weights.weights import Weights

SEES = {"orientation": "RAS", "spacing": (8.0, 8.0, 8.0), "spatial_size": (32, 32, 32)}
SEES["intensity"] = [{"_target_": "ScaleIntensityd", "keys": "image", "minv": 0.0, "maxv": 1.0}]
COHORT = SimpleNamespace(name="a cohort")


@pytest.fixture
def teacher(tmp_path: Path) -> Callable:
    """A function that writes weights, not trained; ``changes`` are of their card."""

    def write(name: str = "teacher.pt", seed: int = 0, **changes: object) -> str:
        definition = {"channels": 3, "dilations": [1, 2]}
        path = tmp_path / "teachers" / name
        torch.manual_seed(seed)
        network = {"_target_": "scripts.networks.meshnet.MeshNet", **definition}
        write_weights(path, MeshNet(**definition), {"network_def": network, **SEES, **changes})
        return str(path)

    return write


def distillation(teacher: object, temperature: float = 2.0, **changes: object) -> Distillation:
    others = {"cohort": COHORT, "fold": 0, "sees": SEES, **changes}
    return Distillation(Weights(teacher, "teacher"), 1.0, temperature, "cpu", **others)


def term_of(taught: torch.Tensor, pred: torch.Tensor, teacher: str, temperature: float) -> torch.Tensor:
    one = distillation(teacher, temperature)
    one._taught = taught.div(temperature).softmax(dim=1)
    return one.term("distillation", {"pred": pred})


def test_the_term_is_the_divergence_of_the_softened_probabilities(teacher: Callable) -> None:
    """Against SciPy's relative entropy."""
    torch.manual_seed(0)
    theirs, ours = 5 * torch.randn(2, 1, 2, 3, 4, 5, dtype=torch.float64)[:, 0], torch.randn(2, 2, 3, 4, 5)
    p, q = (softmax(logits.numpy() / 3, axis=1) for logits in (theirs, ours))
    expected = 9 * rel_entr(p, q).sum(axis=1).mean()
    assert term_of(theirs.float(), ours, teacher(), 3.0).item() == pytest.approx(expected, rel=1e-5)
    assert term_of(ours, ours, teacher(), 3.0).item() == pytest.approx(0, abs=1e-6)


def test_voxels_count_by_the_class_weights_of_the_loss(teacher: Callable) -> None:
    """Against NumPy's weighted average."""
    torch.manual_seed(0)
    theirs, ours = torch.randn(1, 2, 3, 4, 5), torch.randn(1, 2, 3, 4, 5)
    one = distillation(teacher(), 3.0, class_weight=torch.tensor([0.5, 4.0]))
    one._taught = theirs.div(3).softmax(dim=1)
    p, q = (softmax(logits.numpy() / 3, axis=1) for logits in (theirs, ours))
    expected = np.average(9 * rel_entr(p, q).sum(axis=1), weights=0.5 * p[:, 0] + 4 * p[:, 1])
    assert one.term("distillation", {"pred": ours}).item() == pytest.approx(expected, rel=1e-5)


def test_the_overlay_gives_the_weights_of_the_loss(cohort_dir: Path, teacher: Callable, tmp_path: Path) -> None:
    given = {"dataset_dir": cohort_dir, "output_dir": tmp_path, "teacher": teacher()}
    parser = recipe("distill", **given, background_weight=0.25, lesion_weight=3.0)
    assert parser.get_parsed_content("distillation").class_weight.tolist() == [0.25, 3.0]


def test_at_a_high_temperature_its_gradient_is_the_difference_of_the_logits(teacher: Callable) -> None:
    """Hinton et al. (2015), equation 4: (z - v) / C for logits of mean zero, whatever the temperature."""
    v, z = torch.tensor([1.5, -1.5]).view(1, 2, 1, 1, 1), torch.tensor([-0.5, 0.5]).view(1, 2, 1, 1, 1)
    z.requires_grad_()
    term_of(v, z, teacher(), 300.0).backward()
    torch.testing.assert_close(z.grad, (z - v).detach() / 2, rtol=1e-2, atol=1e-3)


def test_several_teachers_give_their_mean_probability(teacher: Callable) -> None:
    paths = [teacher("a.pt"), teacher("b.pt", seed=1)]
    one, image = distillation(",".join(paths), 1.0), torch.rand(1, 1, 8, 8, 8)
    for network, path in zip(each(one.network), paths, strict=True):
        network.load_state_dict(torch.load(path))
    found = one._ask(SimpleNamespace(inferer=lambda image, network: network(image)), image)
    expected = sum(network(image).softmax(dim=1) for network in each(one.network)) / 2
    torch.testing.assert_close(found, expected)
    assert not any(module.training for module in one.network.modules())


def asked(monkeypatch: pytest.MonkeyPatch) -> list:
    calls, ask = [], Distillation._ask
    monkeypatch.setattr(Distillation, "_ask", lambda *a: [calls.append(a), ask(*a)][1])
    return calls


@pytest.mark.slow
def test_answers_are_kept_where_scans_come_again_and_change_nothing(
    cohort_dir: Path, teacher: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With two scans a batch, whose neighbours change; without room the teacher is asked about the batch as it is."""
    options = {"teacher": teacher(), "epochs": 2, "report": False, "amp": False, "batch_size": 2, "val_interval": 2}
    options["learning_rate"] = 3e-4  # what rounding makes of a step grows with it
    calls, times = asked(monkeypatch), []
    for name, more in (("kept", {}), ("asked", {"cache_gigabytes": 1e-9})):
        before = len(calls)
        train_here(cohort_dir, tmp_path / name, "distill", **options, **more)
        times.append(sum(len(image) for _, _, image in calls[before:]))
    assert 2 * (times[0] - 6) == times[1] - 6  # six are validated, once
    kept, again = (torch.load(tmp_path / name / "checkpoint_last.pt")["network"] for name in ("kept", "asked"))
    for key, value in kept.items():
        torch.testing.assert_close(value, again[key], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_augmented_scans_are_shown_to_the_teacher_as_the_student_sees_them(
    cohort_dir: Path, teacher: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = asked(monkeypatch)
    options = {"teacher": teacher(), "epochs": 2, "report": False, "augmentation_name": "light"}
    train_here(cohort_dir, tmp_path / "run", "distill", **options)
    images = [hashlib.sha256(image.numpy().tobytes()).hexdigest() for _, _, image in calls]
    assert len(set(images)) > len(images) / 2  # most scans differ from the other epoch's


def test_the_card_tells_of_the_teacher_whose_scans_the_student_is_not_tested_on(
    cohort_dir: Path, teacher: Callable, tmp_path: Path
) -> None:
    def evaluated() -> ConfigParser:
        parser = recipe("distill", EVALUATE, dataset_dir=cohort_dir, output_dir=tmp_path / "run", report=False)
        parser.get_parsed_content("run")
        return parser

    path = teacher()
    train_here(cohort_dir, tmp_path / "run", "distill", teacher=path, epochs=1, report=False, channels=2)
    assert (tmp_path / "run" / "history.csv").read_text().splitlines()[0].endswith("distillation")
    card = read_card(str(tmp_path / "run" / "model.pt"))
    (told,) = card["teachers"]
    assert told == Weights(path).ancestry[0]
    assert told["sha256"] == hashlib.sha256(Path(path).read_bytes()).hexdigest()
    test = evaluated().get_parsed_content("cohort").test
    told["trained_on"] = [test[0]["sha256"]["image"][:16]]
    (tmp_path / "run" / "model.json").write_text(json.dumps(card))
    with refused(f"trained on 1 of the {len(test)} scans that are the test set here"):
        evaluated()


def test_a_run_does_not_go_on_with_another_teacher(cohort_dir: Path, teacher: Callable, tmp_path: Path) -> None:
    options = {"epochs": 1, "report": False, "resume": True}
    train_here(cohort_dir, tmp_path, "distill", teacher=teacher(), **options)
    with refused("^teacher: other weights than this run began with; give those, or"):
        train_here(cohort_dir, tmp_path, "distill", teacher=teacher("b.pt", seed=1), **options)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"spacing": [2.0, 2.0, 2.0]}, r"spacing is \[2.0, 2.0, 2.0\] in its card and \(8.0, 8.0, 8.0\) in this run"),
        ({"orientation": "LPS"}, "orientation is LPS in its card and RAS in this run"),
        ({"intensity": [{"_target_": "NormalizeIntensityd"}]}, "intensity is .*Normalize.*Scale.* in this run"),
        (
            {"cohort": "a cohort", "fold": 1, "trained_on": ["ab"]},
            "was trained with fold 1 of this cohort held out, so it has seen test scans of fold 0; give a teacher",
        ),
        (
            {"ancestry": [{"cohort": "a cohort", "fold": 2, "trained_on": ["ab"]}]},
            "was trained with fold 2 of this cohort held out",
        ),
    ],
)
def test_a_teacher_that_does_not_fit_is_one_line(teacher: Callable, changes: dict, line: str) -> None:
    path = teacher(**changes)
    with pytest.raises(InputError, match=f"^{path}: {line}") as error:
        distillation(path)
    assert len(str(error.value).splitlines()) == 1


def test_a_teacher_of_other_classes_is_one_line(teacher: Callable) -> None:
    with pytest.raises(InputError, match=r"^teacher: has 3 classes, its student 2"):
        term_of(torch.zeros(1, 3, 2, 2, 2), torch.zeros(1, 2, 2, 2, 2), teacher(), 2.0)


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        ({}, "teacher: none is given; give weights, several with commas between, or a folder"),
        ({"teacher": "gone.pt"}, "gone.pt: no such file; train first, or give the weights with --teacher"),
    ],
)
def test_a_run_that_cannot_be_taught_says_so(cohort_dir: Path, tmp_path: Path, overrides: dict, line: str) -> None:
    parser = recipe("distill", dataset_dir=cohort_dir, output_dir=tmp_path, **overrides)
    with refused(f"^{line}$"):
        parser.get_parsed_content("distillation")
