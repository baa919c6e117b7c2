"""Gradients are clipped before each step as torch does it, whatever scales or sums them."""

import logging
import math

import pytest
import torch
from ignite.engine import Events
from monai.engines import SupervisedTrainer

from scripts.techniques.gradients import GradientClipping


def trainer_of(clipping: GradientClipping, batches: list[float], fused: bool = False, **options: object) -> tuple:
    """A trainer of one weight w, whose loss on a batch x is the mean of w x."""
    network = torch.nn.Conv3d(1, 1, 1, bias=False)
    torch.nn.init.ones_(network.weight)
    data = [{"image": torch.full((1, 1, 2, 2, 2), x), "label": torch.zeros(1, 1, 2, 2, 2)} for x in batches]
    trainer = SupervisedTrainer(
        device="cpu", max_epochs=1, train_data_loader=data, network=network, decollate=False,
        optimizer=torch.optim.SGD(network.parameters(), lr=1.0, fused=fused),
        loss_function=lambda pred, label: pred.mean(), train_handlers=[clipping], **options,
    )  # fmt: skip
    trainer.state.terms = {}
    return trainer, network.weight


@pytest.mark.parametrize(
    ("limits", "batches", "moved"),
    [
        ({"max_norm": 1.0}, [3.0], -1.0),
        ({"max_norm": 5.0}, [3.0], -3.0),
        ({"max_norm": None, "max_value": 0.5}, [3.0], -0.5),
        ({"max_norm": None}, [3.0], -3.0),
    ],
)
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("scaled", [False, True])
def test_a_step_is_no_longer_than_allowed(limits: dict, batches: list, moved: float, fused: bool, scaled: bool) -> None:
    trainer, weight = trainer_of(GradientClipping(**limits), batches, fused, amp=scaled)
    if scaled:  # MONAI makes one on CUDA only

        @trainer.on(Events.STARTED)
        def enable(engine: SupervisedTrainer) -> None:
            engine.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)

    trainer.run()
    assert weight.item() == pytest.approx(1 + moved, abs=1e-4)
    assert trainer.state.terms["gradient_norm"] == pytest.approx(3.0, rel=1e-4)


def test_what_accumulation_has_summed_is_clipped_once() -> None:
    trainer, weight = trainer_of(GradientClipping(1.0), [6.0, -2.0], accumulation_steps=2)
    trainer.run()
    assert weight.item() == pytest.approx(1 - 1.0, abs=1e-5)  # of the mean, 2; each alone would give 1 - 0.5 + 0.5
    assert trainer.state.terms["gradient_norm"] == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("limit", "batches", "said"), [("above", [2.0, 3.0, 4.0], "3"), ("below", [3.0, 2.0, 1.0], "2, it vanishes")]
)
def test_a_norm_beyond_a_limit_is_a_line_once_an_epoch(
    limit: str, batches: list[float], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        trainer_of(GradientClipping(1.0, **{f"warn_{limit}": 2.5}), batches)[0].run()
    lines = [message for message in caplog.messages if "norm" in message]
    assert lines == [f"epoch 1, iteration 2: gradient norm {said}"]


@pytest.mark.parametrize("max_norm", [0.01, None])
def test_layers_have_their_norms_on_request_and_their_squares_sum_up(max_norm: float | None) -> None:
    trainer, _ = trainer_of(GradientClipping(max_norm, per_layer=True), [3.0])
    trainer.network = torch.nn.Sequential(torch.nn.Conv3d(1, 4, 1), torch.nn.ReLU(), torch.nn.Conv3d(4, 2, 1))
    trainer.optimizer = torch.optim.SGD(trainer.network.parameters(), lr=0.0)
    trainer.run()
    terms, layers = trainer.state.terms, {"0": trainer.network[0], "2": trainer.network[2]}
    assert set(terms) == {"gradient_norm", "gradient_norm_0", "gradient_norm_2"}
    assert terms["gradient_norm"] == pytest.approx(math.hypot(terms["gradient_norm_0"], terms["gradient_norm_2"]))
    if max_norm is None:
        for name, layer in layers.items():
            grads = torch.cat([p.grad.flatten() for p in layer.parameters()])
            assert terms[f"gradient_norm_{name}"] == pytest.approx(grads.norm().item(), rel=1e-5)
