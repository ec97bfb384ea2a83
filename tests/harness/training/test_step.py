"""The training step: what it minimises, and that every way of running it gives the same."""

import pytest
import torch
import torch.nn.functional as F

from baselines import build
from cerdeq import LinfBall, bound, margin_spec
from cerdeq.bounds import trace
from harness.data import load
from harness.training.augment import draw
from harness.training.initialise import initialise
from harness.training.losses import ibp
from harness.training.step import Stepper, make_optimiser


def _stepper(config, device: str = "cpu", dtype=torch.float32) -> Stepper:
    data = load(config.dataset)
    torch.manual_seed(0)
    model = build(config.model, config.dataset, config.width)
    initialise(model)
    model.to(device, dtype, memory_format=torch.channels_last).train()
    optimiser = make_optimiser(model, torch.device(device))
    return Stepper(config, model, optimiser, data.train.images.to(device), data.train.labels.to(device))


def _take_steps(stepper: Stepper, count: int, batch: int) -> torch.Tensor:
    draws = draw(len(stepper.images), 2, True, 0, 1, stepper.images.device)
    return torch.stack([stepper(draws.batch(batch * i, batch), 0.01 * i + 1e-6, 5e-4) for i in range(count)])


def test_the_ibp_loss_is_the_cross_entropy_of_the_worst_logits():
    """Against the public bounds, in float64, with batch norm's running statistics set to the batch's."""
    model = build("cnn5", "digits", width=0.2).double()
    x, labels, eps = torch.rand(20, 1, 8, 8).double(), torch.randint(0, 10, (20,)), 0.02
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d | torch.nn.BatchNorm1d):
            module.momentum = 1.0
    model.train()
    losses = ibp(trace(model), x, labels, 10, torch.tensor(eps).double())
    for module in model.modules():  # torch keeps the unbiased variance; the step normalises by the biased one
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_var *= 1 - 1 / (20 * (16 if module is model.norm3 else 64))
        elif isinstance(module, torch.nn.BatchNorm1d):
            module.running_var *= 1 - 1 / 20
    model.eval()
    lower, _ = bound(model, LinfBall(x, eps), spec=margin_spec(labels, 10))
    worst = torch.zeros(20, 10).double()
    for row, label in enumerate(labels):
        others = [k for k in range(10) if k != label]
        worst[row, others] = -lower[row]
    assert losses.robust.item() == pytest.approx(F.cross_entropy(worst, labels).item(), rel=1e-6)
    torch.testing.assert_close(losses.lower, lower, rtol=1e-6, atol=1e-9)


def test_the_regularisers_fade_with_eps(tiny_trial):
    config = tiny_trial(eps="1/20")
    weighted, free = _stepper(config), _stepper(tiny_trial(eps="1/20", train={"regularisation": 0.0}))
    choices = draw(64, 0, False, 0, 1, torch.device("cpu")).batch(0, 64)
    for eps, same in ((0.02, False), (0.05, True)):
        with torch.no_grad():
            first, second = (
                stepper.loss(stepper.images[choices[0]] / 255, stepper.labels[choices[0]], torch.tensor(eps))[0]
                for stepper in (weighted, free)
            )
        assert (abs(float(first - second)) < 1e-5) == same


def test_gradients_are_clipped(tiny_trial):
    stepper = _stepper(tiny_trial(train={"clip_norm": 0.1}))
    _take_steps(stepper, 1, 64)
    norm = torch.stack([p.grad.norm() for p in stepper.model.parameters()]).norm()
    assert float(norm) == pytest.approx(0.1, rel=1e-3)


@pytest.mark.parametrize("model", ["cnn5", "resnet9", "cerdeq"])
def test_the_compiled_loss_takes_the_same_steps(tiny_trial, model):
    """The whole loss is one graph: fullgraph refuses anything that is not."""
    eager, compiled = _stepper(tiny_trial(model)), _stepper(tiny_trial(model))
    compiled.loss = torch.compile(compiled.loss, fullgraph=True, dynamic=False, backend="aot_eager")
    torch.testing.assert_close(_take_steps(eager, 4, 64), _take_steps(compiled, 4, 64), rtol=1e-3, atol=1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("model", ["cnn7", "resnet9", "cerdeq"])
def test_the_captured_step_is_the_eager_one(tiny_trial, model):
    """On CUDA: compiled and captured against eager, state included; warming up must leave no trace."""
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    captured = _stepper(tiny_trial(model), "cuda")
    eager = _stepper(tiny_trial(model), "cuda")
    eager.graph = None
    torch.testing.assert_close(_take_steps(captured, 6, 64), _take_steps(eager, 6, 64), rtol=2e-2, atol=2e-2)
    for (name, mine), theirs in zip(
        captured.model.state_dict().items(), eager.model.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=5e-2, atol=5e-3, msg=name)
