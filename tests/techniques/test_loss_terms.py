"""Each term of knowledge has its closed form, its weight in time, its gradient and its column."""

import math
from types import SimpleNamespace

import pytest
import torch
from conftest import recipe, refused
from ignite.engine import Engine, State
from monai.data import DataLoader, MetaTensor
from monai.engines import SupervisedEvaluator

from scripts.techniques.loss_terms import LesionPriors, LossTerms

ONE = dict.fromkeys(("volume", "smoothness", "outside", "symmetry"), 1.0)
PRIORS = LesionPriors(ONE, "constant", [1.0, 2.0, 5.0], [8, 10, 12], orientation="RAS", volume=[10.0, 2.0])


def output_of(p: torch.Tensor, image: torch.Tensor | None = None) -> dict:
    """What a network gives that is this sure of lesion."""
    logits = torch.cat([torch.zeros_like(p), torch.logit(p)], dim=1)
    return {"pred": logits, "image": MetaTensor(torch.ones_like(p) if image is None else image)}


def constant(p: float, *shape: int) -> torch.Tensor:
    return torch.full(shape or (1, 1, 8, 10, 12), p)


def test_the_likeliest_volume_costs_nothing_and_a_standard_deviation_costs_one_half() -> None:
    grid_ml = 8 * 10 * 12 * 0.01
    for shape in ((1, 1, 8, 10, 12), (1, 1, 4, 5, 6)):  # of the grid, and of a coarser one of the same head
        assert PRIORS.term("volume", output_of(constant(9.0 / grid_ml, *shape))).item() < 0.002
        assert PRIORS.term("volume", output_of(constant(0.5, *shape))).item() == pytest.approx(
            (math.log(grid_ml / 2 + 1) - math.log(11)) ** 2 / 8, rel=1e-4
        )
    wide = LesionPriors(ONE, "constant", [10.0, 10.0, 10.0], [8, 10, 12], "RAS", [math.e - 1, 2.0])
    volume = math.exp(1 + 2) - 1  # ln(V + 1) is two above that of the median, a standard deviation
    assert wide.term("volume", output_of(constant(volume / 960))).item() == pytest.approx(0.5, rel=1e-5)
    assert wide.term("volume", output_of(constant((math.e - 1) / 960))).item() == pytest.approx(0, abs=1e-6)


def test_total_variation_of_half_a_volume_is_the_area_of_its_face() -> None:
    p = constant(0.25)
    p[:, :, 4:] = 0.75
    assert PRIORS.term("smoothness", output_of(p)).item() == pytest.approx(0.5 * 10 * 12 / (8 * 10 * 12), rel=1e-5)
    assert PRIORS.term("smoothness", output_of(constant(0.3))).item() == 0


def test_only_lesion_in_the_air_is_outside() -> None:
    image, p = constant(0.0, 1, 1, 20, 10, 10), constant(0.1, 1, 1, 20, 10, 10)
    image[:, :, 10:] = 1.0  # its average over 5 voxels reaches 2 voxels into the air
    p[:, :, :8] = 0.4
    assert PRIORS.term("outside", output_of(p, image)).item() == pytest.approx(0.4, rel=1e-5)
    assert PRIORS.term("outside", output_of(p)).item() == 0  # there is no air


@pytest.mark.parametrize(("orientation", "axis"), [("RAS", 2), ("LIA", 2), ("PSR", 4)])
def test_lesion_costs_where_the_two_sides_are_alike(orientation: str, axis: int) -> None:
    priors = LesionPriors(ONE, "constant", [1.0] * 3, [12] * 3, orientation, [10.0, 2.0])
    image, p = constant(0.5, 1, 1, 12, 12, 12), constant(0.3, 1, 1, 12, 12, 12)
    assert priors.term("symmetry", output_of(p, image)).item() == pytest.approx(0.3, rel=1e-5)
    image.narrow(axis, 0, 6).fill_(0.3)  # 0.2 apart, but near the middle, where the average sees both sides
    within = [0.2] * 4 + [0.12, 0.04, 0.04, 0.12] + [0.2] * 4
    expected = 0.3 * sum(math.exp(-d / 0.1) for d in within) / 12
    assert priors.term("symmetry", output_of(p, image)).item() == pytest.approx(expected, rel=1e-4)


class Two(LossTerms):
    """A term whose value is 2 w."""

    def term(self, name: str, output: dict) -> torch.Tensor:
        return 2 * output["w"]


@pytest.mark.parametrize(
    ("weighting", "factors"),
    [("constant", [0.5] * 4), ("scheduled", [0, 0.25, 0.5, 0.5]), ("adaptive", [0.5 * 3 / 2] * 4)],
)
def test_weights_are_constant_grow_or_follow_the_loss(weighting: str, factors: list[float]) -> None:
    terms, trainer = Two({"two": 0.5, "off": 0.0}, weighting), Engine(lambda *_: None)
    terms.trainer = SimpleNamespace(state=trainer.state)
    for iteration, factor in enumerate(factors, 1):
        w = torch.tensor(1.0, requires_grad=True)
        trainer.state = State(iteration=iteration, epoch_length=2, max_epochs=2, terms={})
        trainer.state.output = {"w": w, "loss": torch.tensor(3.0)}
        terms.trainer = trainer
        terms(trainer)
        assert trainer.state.output["loss"].item() == pytest.approx(3 + factor * 2)
        trainer.state.output["loss"].backward() if factor else None
        assert (w.grad.item() if factor else 0) == pytest.approx(factor * 2)  # an adaptive weight is no part of it
        in_force = {} if weighting == "constant" else {"two_weight": factor}
        assert trainer.state.terms == {"data_loss": 3.0, "two": 2.0, **in_force}


def test_a_validation_has_the_mean_of_each_term_and_changes_no_loss() -> None:
    scans = [{"image": torch.full((1, 4, 4, 4), value), "label": torch.zeros(1, 4, 4, 4)} for value in (1.0, 2.0, 6.0)]

    class Mean(LossTerms):
        def term(self, name: str, output: dict) -> torch.Tensor:
            return output["pred"].mean()

    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(scans),
        network=torch.nn.Identity(),
        val_handlers=[Mean({"mean": 0.1, "off": 0.0}, "scheduled")],
    )
    evaluator.run()
    assert evaluator.state.metrics == {"val_mean": 3.0}


def test_the_volume_of_the_priors_is_two_keys_and_their_earlier_name_says_so() -> None:
    volume = {"lesion_volume_median": 5.0, "lesion_volume_log_sd": 2.0}
    parser = recipe("priors", spacing=[1.0] * 3, spatial_size=[8] * 3, **volume)
    priors = parser.get_parsed_content("priors")
    assert (priors.volume_median, priors.volume_log_sd) == (5.0, 2.0)
    parser.update({"lesion_volume": [5.0, 2.0]})
    with refused("^lesion_volume: nothing reads this key, did you mean lesion_volume_median?"):
        parser.get_parsed_content("config")
