"""Training with bfloat16 products: close to float32, and float32 wherever bounds need it."""

import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F
from image_batches import batch_of
from steppers import BOUNDING, choices_of, stepper_of, take_steps

from baselines import build
from cerdeq.bounds import Context, Interval, trace, values_of
from cerdeq.equilibrium import FixedPoint
from harness.methods import METHODS
from harness.methods.certified import IBP
from harness.training.initialise import initialise

SAMPLE = [("cnn7", *BOUNDING[0]), ("cerdeq", *BOUNDING[1])]
BF16 = [
    pytest.param(*case, marks=() if case in SAMPLE else pytest.mark.slow)
    for case in [(model, *method) for model in ("cnn7", "cerdeq") for method in BOUNDING]
]


@pytest.mark.parametrize(("model", "method", "options"), BF16)
def test_steps_in_bf16_are_close_to_those_in_float32(tiny_training, model, method, options):
    rounded, exact = (
        stepper_of(tiny_training(model, method=method, method_options=options, train={"precision": precision}))
        for precision in ("bf16", "float32")
    )
    first, reference = (stepper(choices_of(stepper), 0.01, 0.0)[0] for stepper in (rounded, exact))
    assert float(first) == pytest.approx(float(reference), rel=0.01) and first != reference
    gradients, expected = (
        torch.cat([parameter.grad.flatten() for parameter in stepper.model.parameters()])
        for stepper in (rounded, exact)
    )
    assert float(F.cosine_similarity(gradients, expected, dim=0)) > 0.99
    after, reference = (take_steps(stepper, 8)[:, 0] for stepper in (rounded, exact))
    assert after.isfinite().all()
    torch.testing.assert_close(after, reference, rtol=0.3, atol=0)
    for parameter in rounded.model.parameters():
        assert parameter.dtype == parameter.grad.dtype == torch.float32 and parameter.grad.isfinite().all()
    assert {moment.dtype for state in rounded.optimiser.state.values() for moment in state.values()} == {torch.float32}


@pytest.mark.parametrize(("eps", "dead"), [(1e-6, False), (1.0, True)])
@pytest.mark.parametrize(("model", "method", "options"), BF16)
def test_every_box_in_bf16_has_a_radius(model, method, options, dead, eps):
    network = build(model, "digits", width=0.2).train()
    initialise(network)
    if dead:
        torch.nn.init.constant_(network.norm1.bias, -1e4)
    batch = dataclasses.replace(batch_of(progress=0.3), x=torch.rand(12, 1, 8, 8), eps=torch.tensor(eps))
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        losses = METHODS[method](**options).loss(trace(network, linear=True), batch)
    assert len(losses.preactivations) == sum(isinstance(m, torch.nn.ReLU | FixedPoint) for m in network.modules())
    for box in losses.preactivations.values():
        assert box.center.dtype == box.radius.dtype == torch.float32
        assert box.center.isfinite().all() and box.radius.isfinite().all() and (box.radius >= 0).all()
    assert (losses.lower <= losses.clean + 1e-2 * losses.clean.abs().amax()).all()
    assert losses.lower.dtype == losses.clean.dtype == losses.robust.dtype == torch.float32
    assert losses.robust.isfinite()


def test_margins_in_bf16_are_those_of_the_last_layer_in_float32():
    """Only their arguments are rounded."""
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    batch = dataclasses.replace(batch_of(progress=0.3), x=torch.rand(12, 1, 8, 8), eps=torch.tensor(0.05))
    exact = IBP().loss(trace(network), batch)
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        rounded = IBP().loss(trace(network), batch)
    torch.testing.assert_close(rounded.lower, exact.lower, rtol=0, atol=0)
    assert rounded.robust == exact.robust


def test_an_equilibrium_s_w_is_not_rounded_in_bf16():
    """Else the bound on rho(|W|) is not that of the W which is certified."""
    network, x = build("cerdeq", "digits", width=0.2).train(), torch.rand(4, 1, 8, 8)
    weights = []
    for in_bf16 in (False, True):
        ctx = Context(sound=False)
        with torch.autocast("cpu", torch.bfloat16, enabled=in_bf16, cache_enabled=False):
            values_of(trace(copy.deepcopy(network)), Interval(x, x / 100, x), ctx)
        weights.append(ctx.saved["equilibrium.recurrence"])
    torch.testing.assert_close(*weights, rtol=0, atol=0)
