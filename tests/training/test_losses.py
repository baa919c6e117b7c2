"""The loss is the weighted, label-smoothed cross-entropy that its docstring writes out."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import recipe

from scripts.training.losses import WeightedCrossEntropyLoss


def closed_form(logits: np.ndarray, labels: np.ndarray, weight: list[float], smoothing: float) -> float:
    """The docstring's formula, voxel by voxel; logits (V, C), labels (V,)."""
    log_probabilities = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    total = 0.0
    for lp, y in zip(log_probabilities, labels, strict=True):
        total += (1 - smoothing) * -weight[y] * lp[y]
        total += smoothing / len(weight) * sum(-w * p for w, p in zip(weight, lp, strict=True))
    return total / sum(weight[y] for y in labels)


@pytest.mark.parametrize("smoothing", [0.0, 0.01, 0.3])
@pytest.mark.parametrize("weight", [[0.5, 1.0], [1.0, 1.0], [0.0, 2.0], [0.2, 1.0, 3.0]])
def test_value_is_the_closed_form(weight: list[float], smoothing: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, len(weight), 3, 4, 5, generator=generator, dtype=torch.float64)
    labels = torch.randint(len(weight), (2, 1, 3, 4, 5), generator=generator)
    loss = WeightedCrossEntropyLoss(weight, smoothing).double()
    flat = logits.movedim(1, -1).reshape(-1, len(weight)).numpy()
    expected = closed_form(flat, labels.flatten().tolist(), loss.weight.tolist(), smoothing)
    assert loss(logits, labels).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("smoothing", [0.0, 0.01, 0.3])
@pytest.mark.parametrize("weight", [[0.5, 1.0], [0.0, 2.0], [0.2, 1.0, 3.0]])
def test_one_hot_targets_are_class_indices(weight: list[float], smoothing: float) -> None:
    generator = torch.Generator().manual_seed(7)
    logits = torch.randn(2, len(weight), 3, 4, 5, generator=generator)
    labels = torch.randint(len(weight), (2, 1, 3, 4, 5), generator=generator)
    one_hot = torch.nn.functional.one_hot(labels[:, 0], len(weight)).movedim(-1, 1)
    loss = WeightedCrossEntropyLoss(weight, smoothing)
    for target in (one_hot, one_hot.float(), one_hot.to(torch.uint8)):
        assert loss(logits, target).item() == pytest.approx(loss(logits, labels).item(), rel=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_a_soft_target_counts_each_class_by_its_share(smoothing: float) -> None:
    """A voxel that is 3/4 lesion is worth three voxels of lesion and one of background, of its own logits."""
    generator = torch.Generator().manual_seed(8)
    logits = torch.randn(1, 2, 2, 3, 4, generator=generator, dtype=torch.float64)
    quarters = torch.randint(5, (1, 1, 2, 3, 4), generator=generator)
    soft = torch.cat([4 - quarters, quarters], 1) / 4
    loss = WeightedCrossEntropyLoss([0.5, 1.0], smoothing)
    four = torch.cat([logits] * 4, 2)
    hard = torch.cat([quarters > k for k in range(4)], 2).long()
    assert loss(logits, soft).item() == pytest.approx(loss(four, hard).item(), rel=1e-12)


def test_soft_targets_under_autocast_and_their_gradient() -> None:
    logits = torch.randn(1, 2, 3, 3, 3, dtype=torch.float64, requires_grad=True)
    lesion = torch.rand(1, 1, 3, 3, 3, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    soft, loss = torch.cat([1 - lesion, lesion], 1), WeightedCrossEntropyLoss([0.5, 1.0], 0.01)
    assert torch.autograd.gradcheck(lambda x: loss(x, soft), logits)
    half = logits.detach().bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(half, soft.float())
    assert value.dtype == torch.float32
    assert torch.equal(value, loss(half.float(), soft.float()))


@pytest.mark.parametrize(("true", "pulled_to"), [(0, 0.00995), (1, 0.99749)])
def test_smoothing_pulls_to_the_probability_that_the_docs_say(true: int, pulled_to: float) -> None:
    logits = torch.zeros(1, 2, 1, 1, 1, requires_grad=True)
    loss = WeightedCrossEntropyLoss([0.5, 1.0], 0.01)
    optimizer = torch.optim.LBFGS([logits], max_iter=200, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        value = loss(logits, torch.full((1, 1, 1, 1), true))
        value.backward()
        return value

    optimizer.step(closure)
    assert logits.softmax(1)[0, 1].item() == pytest.approx(pulled_to, abs=2e-4)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32, torch.bool])
@pytest.mark.parametrize("channel", [True, False])
def test_labels_in_any_layout_and_type_give_the_same(dtype: torch.dtype, channel: bool) -> None:
    logits = torch.randn(2, 2, 3, 3, 3, generator=torch.Generator().manual_seed(1))
    labels = (torch.arange(54).reshape(2, 3, 3, 3) % 3 == 0).to(dtype)
    loss = WeightedCrossEntropyLoss([0.5, 1.0], 0.01)
    expected = loss(logits, labels.long())
    assert torch.equal(loss(logits, labels[:, None] if channel else labels), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_reduced_in_fp32_to_the_closed_form(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(4)
    logits = (4 * torch.randn(1, 2, 9, 9, 9, generator=generator)).to(dtype).requires_grad_()
    labels = torch.randint(2, (1, 1, 9, 9, 9), generator=generator)
    loss = WeightedCrossEntropyLoss([0.5, 1.0], 0.01)
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(logits, labels)
    assert value.dtype == torch.float32
    assert torch.equal(value, loss(logits.float(), labels))
    flat = logits.detach().double().movedim(1, -1).reshape(-1, 2).numpy()
    assert value.item() == pytest.approx(closed_form(flat, labels.flatten().tolist(), [0.5, 1.0], 0.01), rel=1e-5)
    value.backward()
    assert logits.grad.dtype == dtype
    assert logits.grad.any()


def test_double_precision_logits_are_not_rounded() -> None:
    logits = torch.randn(1, 2, 3, 3, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    labels = (torch.arange(27) % 2).reshape(1, 1, 3, 3, 3)
    value = WeightedCrossEntropyLoss([0.5, 1.0], 0.01)(logits, labels)  # the weights stay fp32: both are exact there
    flat = logits.movedim(1, -1).reshape(-1, 2).numpy()
    assert value.dtype == torch.float64
    assert value.item() == pytest.approx(closed_form(flat, labels.flatten().tolist(), [0.5, 1.0], 0.01), rel=1e-12)


@pytest.mark.parametrize("common", [1.0, 0.25])
def test_equal_weights_are_torchs_own_loss(common: float) -> None:
    generator = torch.Generator().manual_seed(6)
    logits = torch.randn(3, 2, 4, 3, 2, generator=generator)
    labels = torch.randint(2, (3, 1, 4, 3, 2), generator=generator)
    expected = torch.nn.functional.cross_entropy(logits, labels[:, 0], label_smoothing=0.01)
    torch.testing.assert_close(WeightedCrossEntropyLoss([common, common], 0.01)(logits, labels), expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weight", [[0.5, 1.0], [0.2, 1.0, 3.0]])
def test_gradient_is_the_numerical_one(weight: list[float], smoothing: float) -> None:
    classes = len(weight)
    logits = torch.randn(2, classes, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    labels = (torch.arange(16) % classes).reshape(2, 1, 2, 2, 2)
    loss = WeightedCrossEntropyLoss(weight, smoothing).double()
    assert torch.autograd.gradcheck(lambda x: loss(x, labels), logits)


def test_weights_are_a_buffer_that_moves_and_is_saved() -> None:
    loss = WeightedCrossEntropyLoss([0.5, 1.0])
    assert loss.state_dict()["weight"].tolist() == [0.5, 1.0]
    assert loss.to("meta").weight.device.type == "meta"
    assert not list(loss.parameters())
    loss = WeightedCrossEntropyLoss([0.5, 1.0]).to(torch.float64)
    assert loss.weight.dtype == torch.float64
    other = WeightedCrossEntropyLoss([1.0, 3.0])
    other.load_state_dict(loss.state_dict(), strict=True)
    assert other.weight.tolist() == [0.5, 1.0]


@pytest.mark.parametrize("weight", [[-0.1, 1.0], [0.0, 0.0]])
def test_impossible_weights_are_refused(weight: list[float]) -> None:
    with pytest.raises(ValueError, match="class weights must not be negative, nor all zero"):
        WeightedCrossEntropyLoss(weight)


def test_class_weights_can_come_from_the_data(cohort_dir: Path) -> None:
    parser = recipe(dataset_dir=cohort_dir, class_weights="balanced")
    weights = parser.get_parsed_content("loss").weight.tolist()
    assert weights == pytest.approx(parser.get_parsed_content("balanced"))
    assert 1 / weights[0] + 1 / weights[1] == pytest.approx(2)  # the two shares are a whole
    assert weights[1] > 5
    assert recipe().get_parsed_content("loss").weight.tolist() == [0.5, 1.0]  # the paper's, without reading a scan
