"""Terms by which whole passes count rounding, each where nothing else covers it: against exact rational arithmetic.

Passes: backward passes, ends of IBP, adjoints of equilibria, proofs of counterexamples. If a term is dropped, a test of
this module fails.
"""

from fractions import Fraction

import pytest
import torch
from lost_digits import assert_below, both_signs, box_of, lost, precisions, sound
from oracles import Exact, Lambda, encloses, fractions
from torch import nn

from cerdeq import Box, bound
from cerdeq.bounds import BOUNDS, Backward, trace, values_of
from cerdeq.bounds.backward import joint_lower_bound
from cerdeq.bounds.methods import lower_bounds
from cerdeq.bounds.patches import Patches, add_coefficients, dense, one_hot, rounding
from cerdeq.bounds.query import larger
from cerdeq.branch.counterexample import prove_point
from cerdeq.branch.leaves import Problem
from cerdeq.equilibrium import FixedPoint, adjoint, rules
from cerdeq.operators import relu

LONG = 200  # steps: more than the roundings that the slack of a few operators covers


def half_digits(dtype, sign=1):
    """Return a bit less than half of the last digit of 1: added to 1, or taken from -1, it is lost."""
    return sign * 0.49 * torch.finfo(dtype).eps


@precisions
def test_sums_of_coefficients_of_a_value_that_is_read_often_are_counted(dtype):
    """x + (h x + (h x + ...)), in which coefficients are added to 1 one by one."""
    h = half_digits(dtype)

    def sums(module, x):
        value = x * h
        for _ in range(LONG):
            value = torch.add(value, x, alpha=h)
        return value + x

    program, x = trace(Lambda(sums).eval(), linear=True), box_of(torch.ones(1, 1, dtype=dtype))
    values = values_of(program, x, sound())
    lower = joint_lower_bound(program, values, {program.output: -torch.ones(1, 1, 1, dtype=dtype)}, Backward(True))
    assert fractions(lower)[0][0] <= -1 - (LONG + 1) * Fraction(torch.tensor(h, dtype=dtype).item())


@precisions
@pytest.mark.parametrize("form", ["windows", "images"])
def test_sums_of_coefficients_count_their_rounding(form, dtype):
    windows = [
        Patches(torch.randn(1, 40, 2, 3, 3, dtype=dtype), *(torch.full((1, 40), start) for start in corner), (5, 5))
        for corner in ((0, 1), (1, 2))
    ]
    a, b = windows if form == "windows" else map(dense, windows)
    total, x = add_coefficients(a, b), torch.randn(1, 2, 5, 5, dtype=dtype)
    assert isinstance(total, Patches) == (form == "windows")
    cost, pixels = fractions(rounding(Backward(True), total, box_of(x)))[0], fractions(x.flatten())
    rows = zip(*(fractions(dense(part)[0].flatten(1)) for part in (a, b, total)), cost, strict=True)
    for first, second, both, allowed in rows:
        errors = [(i + j - k) * v for i, j, k, v in zip(first, second, both, pixels, strict=True)]
        assert abs(sum(errors)) <= allowed


def test_the_sum_of_all_constants_counts_each():
    """A unit whose bias is -1, which has no rounding of its own, and a small constant from each of many steps."""
    h, last = half_digits(torch.float64, -1), nn.Linear(1, 1).double()
    nn.init.constant_(last.weight, 1.0)
    nn.init.constant_(last.bias, -1.0)

    def steps(module, x):
        for _ in range(LONG):
            x = x + h
        return module.last(x)

    model = Lambda(steps)
    model.last = last
    program, x = trace(model.eval(), linear=True), box_of(torch.zeros(1, 1, dtype=torch.float64))
    unit = one_hot(torch.zeros(1, 1, dtype=torch.long), torch.ones(1, 1, dtype=torch.float64), torch.Size([1]))
    lower = joint_lower_bound(program, values_of(program, x, sound()), {program.output: unit}, Backward(True))
    assert fractions(lower)[0][0] <= -1 + LONG * Fraction(h)


@precisions
def test_ends_by_ibp_are_rounded_outwards(dtype):
    """Of a network that only moves values, whose box is that of its input."""
    box = Box(torch.randn(1, 50, dtype=dtype), torch.rand(1, 50, dtype=dtype))
    assert Exact.of(box).inside(*bound(nn.Identity().eval(), box))


def test_bounds_in_float64_are_rounded_down_to_float32():
    for other in (torch.randn(1, 50, dtype=torch.float64), torch.full((1, 1), -1e-46, dtype=torch.float64)):
        rounded = larger(torch.full_like(other, -torch.inf).float(), other)
        assert all(low <= value for low, value in zip(fractions(rounded[0]), fractions(other[0]), strict=True))


@precisions
def test_a_sum_that_overflows_on_its_way_proves_nothing(dtype):
    """4 v - 3 v - 3 v, which is -2 v, where 4 v is infinite: not that it is positive, nor its negative negative."""
    x = torch.full((1, 3), 0.3 * torch.finfo(dtype).max, dtype=dtype)
    program, spec = trace(nn.Identity().eval(), linear=True), torch.tensor([[[4.0, -3.0, -3.0]]], dtype=dtype)
    for method in BOUNDS:
        assert not (lower_bounds(program, box_of(x), spec, method) > 0).any()
    assert prove_point(Problem(program, values_of(program, box_of(x), sound()), -spec[0]), x) is None


COUNTEREXAMPLES = {  # the centre and the radius of a box, and a point to be moved inside
    "a radius beside which the centre is lost": (2.0**-60, 1.0, -1.0),
    "a radius less than a digit of the centre": (1.0, 0.6 * 2.0**-53, 0.5),
}


@pytest.mark.parametrize("name", COUNTEREXAMPLES)
def test_counterexamples_lie_in_the_box(name):
    center, radius, start = (torch.tensor([[v]], dtype=torch.float64) for v in COUNTEREXAMPLES[name])
    program, x = trace(nn.Sequential(nn.Identity()).eval(), linear=True), box_of(center, radius)
    for sign in (1.0, -1.0):
        problem = Problem(program, values_of(program, x, sound()), torch.tensor([[sign]], dtype=torch.float64))
        point = prove_point(problem, start)
        if point is not None:
            assert abs(fractions(point)[0][0] - fractions(center)[0][0]) <= fractions(radius)[0][0]


@pytest.mark.parametrize("weight", [0.3, 0.9])
def test_boxes_of_equilibria_that_crown_tightens_are_rounded_up_to_float32(weight):
    """Of points, so that nothing but rounding is left after images in float64."""
    point, h = FixedPoint(torch.tensor([[weight]]), 1, 1).eval(), box_of(1 + torch.rand(30, 1))
    z = rules._interval(sound(), h, point)
    refined = rules._refine(lambda box, *arguments: box, z, h, point)
    for example, value in enumerate(fractions(h.center[:, 0])):
        exact = [value / (1 - fractions(point.weight.detach())[0][0])]
        assert encloses(refined.box, Exact(exact, exact), example)


def exact_adjoint(multiplier, preactivation, dtype, splits=None):
    """Return the adjoint's bound of a . z = multiplier . z for W = 0, where nothing is left to z's box."""
    z = box_of(torch.zeros_like(preactivation.center), torch.zeros_like(preactivation.center))
    around = relu.lines(Backward(True), preactivation)
    weight = torch.zeros(1, 1, dtype=dtype)
    return adjoint._bound(Backward(True), multiplier, multiplier, around, weight, z, preactivation, splits)


@precisions
def test_lines_of_an_adjoint_count_their_products(dtype):
    """Where a ReLU's sign is open; at both ends and at 0."""
    a = torch.randn(1, 60, 1, dtype=dtype)
    for _ in range(20):
        center, radius = 0.5 * torch.rand(1, 1, dtype=dtype), 0.5 + torch.rand(1, 1, dtype=dtype)
        pulled = exact_adjoint(a, Box(center, radius), dtype)
        (c,), (r,) = fractions(center)[0], fractions(radius)[0]
        for p in (c - r, Fraction(0), c + r):
            assert_below(pulled, a, [max(p, 0)], [p])


@precisions
def test_multipliers_of_an_adjoint_count_their_sum_with_those_of_splits(dtype):
    """Where the latter are small beside the former."""
    a, p = 1 + torch.rand(1, 60, 1, dtype=dtype), torch.ones(1, 1, dtype=dtype)
    splits = torch.finfo(dtype).eps / 3 * torch.rand(1, 60, 1, dtype=dtype)
    pulled = exact_adjoint(a, Box(p, 0 * p), dtype, splits)
    for row in range(60):
        below = fractions(pulled.coefficients[0][0, row])[0] + fractions(pulled.constant[0, row])
        assert below <= fractions(a[0, row])[0] - fractions(splits[0, row])[0]


def test_the_recurrence_of_an_adjoint_counts_all_of_its_terms():
    """In float32: W has one column of ones, z_0 = 1, and the others are too small to cover what is lost."""
    size = 1024
    weight, small = torch.zeros(size, size), 2.0**-20
    weight[:, 0] = 1
    multiplier = both_signs(lost(torch.float32, size)).roll(1, dims=2)  # nothing of it at z_0 but half a digit
    point = torch.full((1, size), small)
    point[0, 0] = 1
    z = box_of(point)
    around = relu.lines(Backward(True), z.box)
    pulled = adjoint._bound(Backward(True), 0 * multiplier, multiplier, around, weight, z, z.box)
    value = fractions(point[0])
    assert_below(pulled, 0 * multiplier, value, [v - value[0] for v in value])  # h = z - W z, all units active
