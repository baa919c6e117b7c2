"""The mean of several predictions is what their definition says, and so is how they agree."""

import itertools

import numpy as np
import pytest
import torch
from monai.inferers import SimpleInferer
from monai.transforms import Activations
from scipy.spatial.distance import dice

from scripts.execution.agreement import Agreed, PredictionsInferer, mean_pairwise_dice


def conv() -> torch.nn.Module:
    return torch.nn.Conv3d(1, 3, 3, padding=1)


@pytest.mark.parametrize(("orientation", "axis"), [("RAS", 2), ("LIA", 2), ("PSR", 4), ("ILP", 3)])
def test_the_answer_to_the_mirror_image_is_the_mirrored_answer(orientation: str, axis: int) -> None:
    torch.manual_seed(0)
    network, inferer = conv(), PredictionsInferer(SimpleInferer(), flip_averaging=True, orientation=orientation)
    x, agreed = torch.rand(1, 1, 6, 5, 4), Agreed("pred", views=2)
    one, other = (agreed({"pred": inferer(image, network)[0]})["pred"] for image in (x.flip(axis), x))
    torch.testing.assert_close(one, other.flip(axis - 1))
    torch.testing.assert_close(inferer(x, network), torch.cat([network(x), network(x.flip(axis)).flip(axis)], 1))


@pytest.mark.parametrize("views", [1, 2])
def test_one_member_gives_bit_for_bit_the_softmax_of_its_mean_logits(views: int) -> None:
    logits = torch.randn(2, 2, 7, 6, 5, generator=torch.Generator().manual_seed(1)) * 5
    item = Agreed("pred", views=views)({"pred": logits[:views].flatten(0, 1)})
    expected = Activations(softmax=True)(logits[0] if views == 1 else (logits[0] + logits[1]) / 2)
    assert torch.equal(item["pred"].as_tensor(), torch.as_tensor(expected)[1:2])
    assert (item["quality"] is None) == (views == 1)


def test_members_are_averaged_in_probability_and_views_in_logits() -> None:
    torch.manual_seed(0)
    members, x = torch.nn.ModuleList([conv(), conv()]), torch.rand(1, 1, 6, 5, 4)
    item = {"pred": PredictionsInferer(SimpleInferer(), flip_averaging=True)(x, members)[0]}
    result = Agreed("pred", members=2, views=2, threshold=0.4)(item)
    logits = [[m(x)[0], m(x.flip(2)).flip(2)[0]] for m in members]
    expected = torch.stack([((a + b) / 2).softmax(0) for a, b in logits]).mean(0)
    torch.testing.assert_close(result["pred"].as_tensor(), expected[1:2])
    lesion = np.stack([view.softmax(0)[1].detach().numpy() for views in logits for view in views])
    np.testing.assert_allclose(result["uncertainty"][0].detach(), lesion.std(0), atol=1e-6)
    pairs = itertools.combinations(lesion.reshape(4, -1) >= 0.4, 2)
    assert result["quality"] == pytest.approx(np.mean([1 - dice(a, b) for a, b in pairs]), abs=1e-6)


def test_uncertainty_is_a_half_where_half_are_sure_and_half_are_not() -> None:
    logits = torch.tensor([[-50.0, 50.0], [50.0, -50.0]]).reshape(4, 1, 1, 1)
    item = Agreed("pred", members=2)({"pred": logits})
    assert item["uncertainty"].item() == 0.5
    assert item["pred"].flatten().tolist() == [0.5]
    assert item["quality"] == 0


def test_quality_without_a_lesion_or_a_second_prediction_is_unknown() -> None:
    empty, full = torch.zeros(1, 4, 4, 4, dtype=torch.bool), torch.ones(1, 4, 4, 4, dtype=torch.bool)
    assert mean_pairwise_dice(full) is None
    assert mean_pairwise_dice(torch.cat([empty, empty])) is None
    assert mean_pairwise_dice(torch.cat([full, empty])) == 0
    assert mean_pairwise_dice(torch.cat([full, empty, empty])) == 0  # two empty masks are no pair
    assert mean_pairwise_dice(torch.cat([full, full, empty])) == pytest.approx(1 / 3)
