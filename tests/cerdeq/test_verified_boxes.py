"""Verified boxes contain the equilibria, whatever the solver did: samples, exact rationals, mixed-integer programs."""

from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from equilibria import (
    GARBAGE,
    RHOS,
    channels,
    check_box,
    equilibrium_of,
    random_h,
    random_weight,
    small_network,
    spectral_radius,
    wide_interval_equilibrium,
    with_one,
)
from milp import Encoding, Graph, Node
from oracles import Exact, assert_contains, dense_operator, encloses, fractions
from pairs import every_pair
from torch import nn

from cerdeq import Box, LinfBall, bound
from cerdeq.bounds import Context, Interval, propagate, trace
from cerdeq.equilibrium import FixedPoint, certificate, verified_box


@pytest.mark.parametrize(
    ("kernel", "rho", "eps", "signed"), every_pair([None, 3], RHOS, [0.0, 1e-6, 0.1, 10.0], [True, False])
)
def test_boxes_contain_sampled_equilibria(kernel, rho, eps, signed):
    weight = random_weight(4, kernel, rho=rho, signed=signed)
    h = random_h((3, 4) if kernel is None else (2, 4, 4, 3), eps)
    check_box(weight, h, verified_box(weight, h))


@pytest.mark.parametrize("kernel", [None, 3])
@pytest.mark.parametrize("rho", RHOS)
def test_non_negative_w_gives_the_two_equilibria_at_the_ends(rho, kernel):
    """The map is monotone: no interval is lost in the recurrence."""
    weight = random_weight(3, kernel, rho=rho, signed=False)
    h = random_h((3, 3) if kernel is None else (3, 3, 3, 3), 0.3)
    matrix = dense_operator(weight, h.center.shape[1:])
    low = torch.from_numpy(equilibrium_of(matrix, h.lower.flatten(1).numpy())).view_as(h.center)
    high = torch.from_numpy(equilibrium_of(matrix, h.upper.flatten(1).numpy())).view_as(h.center)
    box = verified_box(weight, h)
    size = 1 + high.max()
    assert (box.lower <= low + 1e-12 * size).all() and (high - 1e-12 * size <= box.upper).all()
    torch.testing.assert_close(box.lower, low, rtol=0, atol=3e-4 * size.item())
    torch.testing.assert_close(box.upper, high, rtol=0, atol=3e-4 * size.item())


def exact_equilibrium(weight, h):
    """z = relu(W z + h) in Fractions: the pattern from the float solution, proved by the exact solve."""
    matrix, h = fractions(weight), list(h)
    pattern = equilibrium_of(weight.numpy(), [[float(value) for value in h]])[0] > 0
    alive = [i for i, active in enumerate(pattern) if active]
    rows = [[Fraction(int(i == j)) - matrix[i][j] for j in alive] + [h[i]] for i in alive]
    for pivot in range(len(rows)):  # Gauss and Jordan
        best = max(range(pivot, len(rows)), key=lambda row: abs(rows[row][pivot]))
        rows[pivot], rows[best] = rows[best], rows[pivot]
        rows[pivot] = [value / rows[pivot][pivot] for value in rows[pivot]]
        for other in range(len(rows)):
            if other != pivot:
                factor = rows[other][pivot]
                rows[other] = [a - factor * b for a, b in zip(rows[other], rows[pivot], strict=True)]
    z = [Fraction(0)] * len(h)
    for i, row in zip(alive, rows, strict=True):
        z[i] = row[-1]
    assert z == [max(sum(w * v for w, v in zip(row, z, strict=True)) + b, 0) for row, b in zip(matrix, h, strict=True)]
    return z


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("rho", [0.3, 0.9, 0.99])
def test_boxes_contain_the_exact_rational_equilibria(rho, signed):
    """Of a point, and for W >= 0 of both ends of a box."""
    weight, h = random_weight(4, rho=rho, signed=signed), random_h((1, 4), 0.0 if signed else 0.3)
    ends = Exact.of(h)
    exact = Exact(exact_equilibrium(weight, ends.low), exact_equilibrium(weight, ends.high))
    assert encloses(verified_box(weight, h), exact)


@pytest.mark.parametrize(("seed", "rho"), [*enumerate([0.5, 0.9, 0.9])])
def test_boxes_contain_the_exact_range(seed, rho):
    """The whole range over the box, not samples of it."""
    torch.manual_seed(seed)
    weight, h = random_weight(4, rho=rho), random_h((1, 4), 0.5, shift=0.3)
    box = verified_box(weight, h)
    graph = Graph([Node(FixedPoint(weight, 1, 1), (0,), "equilibrium")])
    encoding = Encoding(graph, h.lower[0], h.upper[0])
    for unit, row in enumerate(np.eye(4)):
        low, high = encoding.minimum(row)[0], -encoding.minimum(-row)[0]
        assert box.lower[0, unit] <= low + 1e-6 and high - 1e-6 <= box.upper[0, unit]


@pytest.mark.parametrize(("name", "kernel", "rho"), every_pair(GARBAGE, [None, 3], [0.3, 0.97]))
def test_garbage_from_the_solver_never_makes_an_unsound_box(name, kernel, rho, monkeypatch):
    weight = random_weight(3, kernel, rho=rho)
    h = random_h((2, 3) if kernel is None else (2, 3, 3, 3), 0.2)
    solve = certificate.interval_equilibrium
    monkeypatch.setattr(certificate, "interval_equilibrium", lambda weight, h: GARBAGE[name](solve(weight, h)))
    check_box(weight, h, verified_box(weight, h))


def test_without_any_proof_the_radius_is_infinite(monkeypatch):
    weight, h = random_weight(3, rho=0.5), random_h((2, 3), 0.2)
    monkeypatch.setattr(certificate, "verify_inclusion", lambda *arguments: torch.tensor([True, False]))
    radius = verified_box(weight, h).radius
    assert radius[0].isfinite().all() and radius[1].isinf().all()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300])
def test_h_out_of_range_bounds_nothing_and_spares_its_neighbours(value):
    weight, h = random_weight(3, rho=0.5), random_h((2, 3), 0.2)
    broken = Box(with_one(h.center, value), h.radius)
    box = verified_box(weight, broken)
    assert value == 1e300 or not (box.lower[0] > -torch.inf).any()
    check_box(weight, Box(h.center[1:], h.radius[1:]), Box(box.center[1:], box.radius[1:]))


@pytest.mark.parametrize("kernel", [None, 3])
def test_badly_scaled_channels_cost_no_tightness(kernel):
    """One channel hardly depends on any other: no Perron vector is even."""
    weight = random_weight(5, kernel, 0.9, signed=False)
    weight[4] *= 1e-7
    weight *= 0.9 / spectral_radius(channels(weight))
    h = random_h((3, 5) if kernel is None else (3, 5, 4, 4), 0.1, shift=0.5)
    box, (low, high) = verified_box(weight, h), wide_interval_equilibrium(weight, h)
    check_box(weight, h, box)
    assert (box.radius <= (high - low) / 2 + 1e-4 * high.max()).all()


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
