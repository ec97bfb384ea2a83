"""Bounds of networks with an equilibrium, and how they are handed on in float32."""

from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from equilibria import saved_tensors, small_network
from oracles import Exact, assert_contains, encloses
from torch import nn

from cerdeq import Box, LinfBall, bound
from cerdeq.bounds import Context, Interval, propagate, trace
from cerdeq.equilibrium import FixedPoint


@pytest.mark.parametrize("size", [2**-149, 1.0, 1e30])
@pytest.mark.parametrize("weight", [0.3, 0.9, -0.5])
def test_float32_boxes_contain_the_exact_equilibrium(weight, size):
    """The proof is in float64; its box is handed on in float32, where it may round or underflow."""
    point = nn.Sequential(FixedPoint(torch.tensor([[weight]]), 1, 1)).eval()
    h = size * (torch.ones(20, 1) if size < 1e-30 else torch.rand(20, 1) + 0.5)
    w = Fraction(point[0].weight.item())
    with torch.no_grad():
        region = Interval(h, torch.zeros_like(h))
        box = propagate(trace(point), region, Context(sound=True)).box
        lower, upper = bound(point, Box(h, torch.zeros_like(h)))
    assert box.center.dtype == lower.dtype == torch.float32
    for example, value in enumerate(h.flatten().tolist()):
        z = [Fraction(value) / (1 - w)]
        assert encloses(box, Exact(z, z), example) and Exact(z, z).inside(lower[example], upper[example])


def test_preactivations_contain_those_of_forward_passes():
    model, size = small_network(3, 0.9)
    x = torch.rand(2, *size, dtype=torch.float64)
    ctx, region = Context(sound=True), LinfBall(x, 0.1)
    propagate(trace(model), Interval(region.center, region.radius), ctx)
    box = ctx.preactivations["0.recurrence"]
    point, seen = model[0].recurrence, []
    with torch.no_grad():
        for _ in range(20):
            sample = (x + 0.1 * torch.sign(torch.randn_like(x))).clamp(0, 1)
            h = model[0].inject(sample)
            seen.append(F.conv2d(point(h), point.weight, padding=1) + h)
    assert_contains(box.lower, box.upper, torch.stack(seen), tolerance=1e-8)


def test_bounds_do_not_remember_the_solver():
    """Memory of a bound must not grow with the solver's iterations, with gradients enabled or not."""
    counts = []
    for rho in (0.1, 0.97):
        model, size = small_network(None, rho)
        region = LinfBall(torch.rand(2, *size, dtype=torch.float64), 0.1)
        counts.append(saved_tensors(lambda model=model, region=region: bound(model, region))[0])
    assert counts[1] <= counts[0] + 20, counts


@pytest.mark.parametrize(("kernel", "rho"), [(None, 0.97), (3, 0.9)])
def test_bounds_of_a_point_are_the_solver_s_error_and_no_more(kernel, rho):
    """The guess is of float32; what is handed out must not be."""
    model, size = small_network(kernel, rho)
    x = torch.rand(3, *size, dtype=torch.float64)
    with torch.no_grad():
        lower, upper = bound(model, LinfBall(x, 0))
        assert (upper - lower).max() < 1e-9 / (1 - rho)
        assert_contains(lower, upper, model(x)[None], tolerance=1e-8)
