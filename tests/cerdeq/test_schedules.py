"""How an equilibrium is solved in training: counts, starts, unrolled gradients; and what a count leaves out."""

import pytest
import torch
from equilibria import random_weight
from torch import nn

from cerdeq.bounds import Context, Interval, propagate, trace
from cerdeq.equilibrium import Equilibrium, FixedPoint, fold, interval_equilibrium
from cerdeq.equilibrium.certificate import verified_box


def layer(kernel, rho=0.7, **options):
    """An Equilibrium around the identity with a plain weight, float64, in training."""
    model = Equilibrium(3, nn.Identity(), kernel_size=kernel, **options)
    fold(model.double())
    with torch.no_grad():
        model.recurrence.weight.copy_(random_weight(3, kernel, rho=rho))
    return model.train()


def region(kernel, batch=4):
    shape = (batch, 3) if kernel is None else (batch, 3, 4, 4)
    center = torch.randn(shape, dtype=torch.float64)
    return Interval(center, 0.2 * torch.rand_like(center), center)


def training_pass(model, x):
    """The lifted pass of training: its result and the gradients of a fixed functional in all weights."""
    result = propagate(trace(nn.Sequential(model)), x, Context(sound=False))
    generator = torch.Generator().manual_seed(0)
    parts = (result.center, result.radius, result.clean)
    loss = sum((torch.randn(part.shape, generator=generator, dtype=part.dtype) * part).sum() for part in parts)
    return result, torch.autograd.grad(loss, list(model.parameters()))


@pytest.mark.parametrize("kernel", [None, 3])
def test_unrolled_and_implicit_gradients_agree_when_both_have_converged(kernel):
    torch.manual_seed(1)
    x, passes = region(kernel), []
    for gradient in ("implicit", "unrolled"):
        torch.manual_seed(2)
        passes.append(training_pass(layer(kernel, iterations=150, backward_iterations=150, gradient=gradient), x))
    torch.testing.assert_close(passes[0][0].radius, passes[1][0].radius)
    torch.testing.assert_close(passes[0][0].clean, passes[1][0].clean)
    torch.testing.assert_close(passes[0][1], passes[1][1], rtol=1e-8, atol=1e-8)


def test_unrolled_gradients_are_those_of_so_many_steps():
    """Of two steps, by hand."""
    torch.manual_seed(0)
    model, x = layer(None, iterations=2, gradient="unrolled"), region(None)
    weight = model.recurrence.weight
    z = torch.relu(x.clean)
    for _ in range(2):
        z = torch.relu(z @ weight.T + x.clean)
    cotangent = torch.randn_like(z)
    expected = torch.autograd.grad((z * cotangent).sum(), weight)[0]
    gradient = torch.autograd.grad((model(x.clean) * cotangent).sum(), weight)[0]
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("kernel", [None, 3])
@pytest.mark.parametrize("warm", [False, True])
def test_both_starts_end_at_the_same_boxes(warm, kernel):
    x = region(kernel)
    model = layer(kernel, rho=0.9, iterations=300, warm_start=warm)
    result = propagate(trace(nn.Sequential(model)), x, Context(sound=False))
    exact = verified_box(model.recurrence.weight, x.box)
    torch.testing.assert_close(result.center, exact.center, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(result.radius, exact.radius, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kernel", [None, 3])
def test_a_warm_start_is_ahead_where_boxes_are_small(kernel):
    x, errors = region(kernel), []
    for warm in (False, True):
        torch.manual_seed(2)
        model = layer(kernel, rho=0.9, iterations=3, warm_start=warm)
        points = Interval(x.center, torch.full_like(x.radius, 1e-6), x.clean)
        result = propagate(trace(nn.Sequential(model)), points, Context(sound=False))
        exact = verified_box(model.recurrence.weight, points.box)
        errors.append((result.center - exact.center).abs().mean().item())
    assert errors[1] < errors[0] / 2


def test_a_count_that_is_too_small_misses_part_of_the_radius():
    """Design: 16 steps at rho .9 can miss a fifth."""
    weight = random_weight(6, rho=0.9, signed=False)
    h = Interval(torch.rand(20, 6, dtype=torch.float64) + 1, torch.full((20, 6), 0.1, dtype=torch.float64))
    full_radius = interval_equilibrium(weight, h.box).radius.mean()
    missing_share = []
    for count in (1, 4, 16, 64):
        point = FixedPoint(weight, count, 1).train()
        radius = propagate(trace(nn.Sequential(point)), h, Context(sound=False)).radius.mean()
        missing_share.append((1 - radius / full_radius).item())
    assert missing_share[0] > missing_share[1] > missing_share[2] > 0.1 and abs(missing_share[3]) < 0.01
