"""Verified boxes contain the equilibria, whatever the solver did: samples, exact rationals, mixed-integer programs."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from equilibria import (
    GARBAGE,
    RHOS,
    channels,
    check_box,
    equilibrium_of,
    hard_matrices,
    random_h,
    random_weight,
    spectral_radius,
    wide_interval_equilibrium,
    with_one,
)
from oracles import Exact, dense_operator, encloses, fractions
from pairs import every_pair
from scipy.optimize import Bounds, LinearConstraint, milp

from cerdeq import Box
from cerdeq.equilibrium import certificate, verified_box


@pytest.mark.parametrize(
    ("kernel", "rho", "eps", "signed"), every_pair([None, 3], RHOS, [0.0, 1e-6, 0.1, 10.0], [True, False])
)
def test_boxes_contain_sampled_equilibria(kernel, rho, eps, signed):
    weight = random_weight(4, kernel, rho=rho, signed=signed)
    h = random_h((3, 4) if kernel is None else (2, 4, 4, 3), eps)
    check_box(weight, h, verified_box(weight, h))


@pytest.mark.parametrize("scale", [1e-20, 1e-3, 1e3, 1e20])
def test_boxes_are_proved_at_any_scale(scale):
    weight, h = random_weight(5, rho=0.9), random_h((3, 5), 0.2)
    box = verified_box(weight, Box(scale * h.center, scale * h.radius))
    check_box(weight, h, Box(box.center / scale, box.radius / scale))


def test_examples_of_different_scales_share_a_batch():
    weight, h = random_weight(5, rho=0.9), random_h((4, 5), 0.2)
    scales = torch.tensor([1e-8, 1.0, 1e8, 0.0], dtype=torch.float64)[:, None]
    h = Box(scales * h.center, scales * h.radius)
    box = verified_box(weight, h)
    for example in range(4):
        one = slice(example, example + 1)
        alone = verified_box(weight, Box(h.center[one], h.radius[one]))
        torch.testing.assert_close(box.center[one], alone.center, rtol=1e-4, atol=1e-30)
        check_box(weight, Box(h.center[one], h.radius[one]), Box(box.center[one], box.radius[one]))


SPECIAL = {
    "dead": lambda shape: Box(torch.full(shape, -5.0).double(), torch.full(shape, 0.1).double()),
    "nearly dead": lambda shape: Box(torch.full(shape, -0.1).double(), torch.full(shape, 0.1).double()),
    "all equal": lambda shape: Box(torch.full(shape, 0.7).double(), torch.full(shape, 0.05).double()),
    "zero": lambda shape: Box(torch.zeros(shape).double(), torch.zeros(shape).double()),
    "around zero": lambda shape: Box(torch.zeros(shape).double(), torch.full(shape, 0.1).double()),
    "one pixel": lambda shape: Box(
        torch.zeros(shape).double().index_fill_(1, torch.tensor([0]), 3.0), torch.zeros(shape).double()
    ),
    "half dead": lambda shape: Box(torch.randn(shape).double().sign() * 3, torch.full(shape, 0.5).double()),
}


@pytest.mark.parametrize(("kernel", "kind", "rho"), every_pair([None, 3], SPECIAL, [0.3, 0.97]))
def test_special_boxes_of_h_have_proved_boxes(kernel, kind, rho):
    weight = random_weight(3, kernel, rho=rho)
    h = SPECIAL[kind]((2, 3) if kernel is None else (2, 3, 3, 3))
    box = verified_box(weight, h)
    check_box(weight, h, box)
    if kind == "dead":
        assert box.upper.abs().max() <= 1e-12


@pytest.mark.parametrize("name", ["zero", "nilpotent", "diagonal", "dead row", "block"])
def test_degenerate_w_have_boxes(name):
    weight = hard_matrices()[name].double()
    h = random_h((3, len(weight)), 0.3)
    check_box(weight, h, verified_box(weight, h))


@pytest.mark.parametrize(("rho", "eps"), [(0.3, 1e-6), (0.9, 0.01), (0.97, 1.0)])
def test_boxes_are_as_tight_as_intervals_can_be(rho, eps):
    weight, h = random_weight(6, rho=rho), random_h((3, 6), eps)
    low, high = wide_interval_equilibrium(weight, h)
    box = verified_box(weight, h)
    slack = 1e-13 * (1 + high.max())
    assert (box.lower <= low + slack).all() and (high - slack <= box.upper).all()
    assert (box.radius - (high - low) / 2).max() <= 1e-3 * eps + 1e-4 * (1 + high.max())


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


@pytest.mark.parametrize(("seed", "rho"), [*enumerate([0.3, 0.9, 0.99])])
def test_boxes_of_points_contain_the_exact_rational_equilibrium(seed, rho):
    torch.manual_seed(seed)
    weight = random_weight(4, rho=rho)
    h = Box(torch.randn(1, 4, dtype=torch.float64), torch.zeros(1, 4, dtype=torch.float64))
    z = exact_equilibrium(weight, fractions(h.center[0]))
    assert encloses(verified_box(weight, h), Exact(z, z))


@pytest.mark.parametrize(("seed", "rho"), [*enumerate([0.3, 0.9, 0.99])])
def test_non_negative_w_contains_the_exact_rational_ends(seed, rho):
    torch.manual_seed(seed)
    weight, h = random_weight(4, rho=rho, signed=False), random_h((1, 4), 0.3)
    ends = Exact.of(h)
    exact = Exact(exact_equilibrium(weight, ends.low), exact_equilibrium(weight, ends.high))
    assert encloses(verified_box(weight, h), exact)


def exact_range(weight, h, unit):
    """Minimum and maximum of one unit of the equilibrium over the box h, by a mixed-integer program in (z, h, on)."""
    n, w = len(weight), weight.numpy()
    low, high = h.lower[0].numpy(), h.upper[0].numpy()
    reach = np.linalg.solve(np.eye(n) - np.abs(w), np.maximum(np.maximum(high, -low), 0)) + 1  # z <= reach
    drop = np.abs(w) @ reach + np.maximum(-low, 0) + 1  # -(W z + h) <= drop
    eye, zero = np.eye(n), np.zeros((n, n))
    above = LinearConstraint(np.hstack([eye - w, -eye, zero]), lb=0)  # z >= W z + h
    tight = LinearConstraint(np.hstack([eye - w, -eye, np.diag(drop)]), ub=drop)  # z <= W z + h + drop (1 - on)
    off = LinearConstraint(np.hstack([eye, zero, -np.diag(reach)]), ub=0)  # z <= reach on
    limits = Bounds(np.concatenate([np.zeros(n), low, np.zeros(n)]), np.concatenate([reach, high, np.ones(n)]))
    integrality = np.concatenate([np.zeros(2 * n), np.ones(n)])
    ends = []
    for sign in (1, -1):
        cost = np.zeros(3 * n)
        cost[unit] = sign
        result = milp(cost, constraints=[above, tight, off], bounds=limits, integrality=integrality)
        assert result.success, result.message
        ends.append(sign * result.fun)
    return ends


@pytest.mark.parametrize(("seed", "rho"), [*enumerate([0.5, 0.9, 0.9])])
def test_boxes_contain_the_exact_range(seed, rho):
    """The whole range over the box, not samples of it."""
    torch.manual_seed(seed)
    weight, h = random_weight(4, rho=rho), random_h((1, 4), 0.5, shift=0.3)
    box = verified_box(weight, h)
    for unit in range(4):
        low, high = exact_range(weight, h, unit)
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
    nothing = torch.tensor([True, False])
    monkeypatch.setattr(certificate, "verify_inclusion", lambda *arguments: nothing)
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
