"""Each term by which the checker counts rounding, where nothing else covers it: against exact rational arithmetic.

If one is dropped from the code, a test of this module fails.
"""

import operator
from fractions import Fraction
from math import isqrt

import numpy as np
import pytest
import torch
from oracles import exact
from torch import nn

from harness.checker.bounds import boxes, equilibrium, linear, maps
from harness.checker.bounds.boxes import TINY, Box, U, affine, ball, between, inside, widen_for_rounding
from harness.checker.bounds.equilibrium import NotProvedError
from harness.checker.bounds.linear import Region, minimum_over_box, pull_back, sum_rounded_down
from harness.checker.bounds.network import ReluStep, Step, read_network
from harness.checker.bounds.operators import VALUE, operation_of, operation_of_module
from harness.checker.bounds.relu_lines import LARGEST, Leaves, lines, rounding_loss

SMALLEST = 2.0**-1074
COUNT = 64  # terms of a sum whose rounding SLACK alone does not cover
LOST = np.array([1.0, *[U] * (COUNT - 1)])  # summed from the left, only the 1 is left


def holds(box, low, high):
    """Return whether a box of numbers contains all values between fractions low and high."""
    center, radius = exact(box.center.ravel()), exact(box.radius.ravel())
    low, high = np.ravel(low), np.ravel(high)
    return all((center - radius <= low) & (high <= center + radius))


def from_the_left(weight, x):
    """Return W x for x [B, n], summed in this order."""
    return np.stack([sum(w * v for w, v in zip(weight.T, row, strict=True)) for row in x])


def point(*values):
    center = np.array([values])
    return Box(center, np.zeros_like(center))


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def test_the_ends_of_a_box_are_rounded_outwards():
    box = Box(random(200), np.abs(random(200, seed=1)))
    assert all(exact(box.lower) <= exact(box.center) - exact(box.radius))
    assert all(exact(box.upper) >= exact(box.center) + exact(box.radius))


def test_boxes_between_two_ends_reach_both():
    low, high = -np.abs(random(200)), np.abs(random(200, seed=1))
    assert holds(between(low, high), exact(low), exact(high))
    assert holds(between(high, high + 2 * U), exact(high), exact(high + 2 * U))


def test_balls_count_the_division_and_a_radius_that_no_float_holds():
    pixels = np.arange(256.0)
    for eps in (Fraction(0), Fraction(1, 255), Fraction(2, 255), Fraction(8, 255), Fraction(1, 3), Fraction(1)):
        values = [Fraction(int(p), 255) for p in pixels]
        low, high = [max(v - eps, Fraction(0)) for v in values], [min(v + eps, Fraction(1)) for v in values]
        assert holds(ball(pixels, float(eps)), np.array(low, dtype=object), np.array(high, dtype=object))


@pytest.mark.parametrize("share", [-1, 0, 1])
def test_boxes_of_relu_hold_every_value(share):
    x = Box(random(300), np.abs(random(300, seed=1)))
    value = np.maximum(exact(x.center) + share * exact(x.radius), Fraction(0))
    assert holds(boxes.relu(x), value, value)


def test_intersections_hold_what_lies_in_both_and_what_is_inside_lies_in_the_outer_box():
    count, inside_both = 400, 0
    a, b = (Box(random(count, 2, seed=s), np.abs(random(count, 2, seed=s + 1)) * 2) for s in (0, 2))
    both, is_inside = boxes.intersect(a, b), inside(a, b)
    for share in (-1, Fraction(1, 3), 1):
        z = exact(a.center) + share * exact(a.radius)
        in_b = (abs(z - exact(b.center)) <= exact(b.radius)).all(1)
        assert holds(Box(both.center[in_b], both.radius[in_b]), z[in_b].ravel(), z[in_b].ravel())
        assert in_b[is_inside].all()
        inside_both += in_b.sum()
    assert is_inside.any() and inside_both > 100


@pytest.mark.parametrize("spoiled", [np.nan, np.inf])
def test_what_is_not_finite_is_inside_nothing_and_bounds_nothing(spoiled):
    good, bad = Box(np.zeros((1, 2)), np.ones((1, 2))), Box(np.zeros((1, 2)), np.array([[1.0, spoiled]]))
    assert not inside(bad, good)[0] and not inside(good, bad)[0]
    assert bad.lower[0, 1] == -np.inf and bad.upper[0, 1] == np.inf


def test_what_widens_covers_its_centre_its_radius_and_underflow():
    sum_of = maps.add_values().box
    a, b = random(1, 200), random(1, 200, seed=1)
    zeros, wide = np.zeros_like(a), np.abs(b)
    assert holds(sum_of(Box(a, zeros), Box(b, zeros)), exact(a) + exact(b), exact(a) + exact(b))
    one, zero = np.ones(()), np.zeros(())
    assert holds(maps.elementwise(one, b).box(Box(a, zeros)), exact(a) + exact(b), exact(a) + exact(b))
    assert holds(affine(point(1.0), a.T * U / 8, b[0], maps.matrix, 1), *[exact(a[0] * U / 8) + exact(b[0])] * 2)
    reach = exact(np.abs(a)) + exact(wide)
    assert holds(sum_of(Box(zeros, np.abs(a)), Box(zeros, wide)), -reach, reach)
    assert holds(maps.elementwise(-one, b).box(Box(a, zeros)), exact(b) - exact(a), exact(b) - exact(a))
    half, value = maps.elementwise(one / 2, zero), [Fraction(3 * SMALLEST) / 2]
    assert holds(half.box(point(3 * SMALLEST)), value, value)
    products, size = maps.elementwise(b, zero).box, exact(np.abs(a)) * exact(np.abs(b))
    assert holds(products(Box(a, zeros)), exact(a) * exact(b), exact(a) * exact(b))
    assert holds(products(Box(zeros, np.abs(a))), -size, size)
    assert widen_for_rounding(np.ones(1), np.zeros(1), np.full(1, 1e9)).radius[0] >= 1e9 * U


def test_a_sum_of_products_counts_all_of_its_roundings():
    """Of its centre, and of its radius, which is a sum as well."""
    ones, value = np.ones((1, COUNT)), [sum(exact(LOST))]
    assert holds(affine(point(*LOST), ones, None, from_the_left, COUNT), value, value)
    assert holds(affine(Box(np.zeros((1, COUNT)), LOST[None]), ones, None, from_the_left, COUNT), -value[0], value)


def test_a_sum_of_products_counts_each_that_underflows_to_zero():
    """As processors do that flush subnormal numbers."""

    def flushed(weight, x):
        products = weight * x
        return np.where(np.abs(products) < TINY, 0, products).sum(1, keepdims=True)

    weight, x = np.full((1, COUNT), 0.9), point(*[TINY] * COUNT)
    value = [COUNT * Fraction(0.9) * Fraction(TINY)]
    assert holds(affine(x, weight, None, flushed, COUNT), value, value)


def test_inputs_so_small_that_the_share_of_their_rounding_underflows_are_counted():
    """Before weights so large that it matters, in pairs that cancel."""
    first, half = random(8, 20), SMALLEST * np.arange(1, 21)
    weight, x = 1e300 * np.concatenate([first, -first * (1 + 2 * U)], 1), point(*half, *half)
    value = exact(weight) @ exact(x.center[0])
    assert holds(affine(x, weight, None, maps.matrix, 40), value, value)


@pytest.mark.parametrize("weight", [3.7 * SMALLEST, 1e-200])
def test_a_factor_of_batch_norm_that_underflows_is_counted(weight):
    """Beside a large value, a large box, and a large mean."""
    large, zero, one = np.full((1, 1), 1e250), np.zeros(1), np.ones(1)
    variance = np.full(1, 1e256 if weight == 1e-200 else 3.0)
    root = Fraction(isqrt(int(Fraction(variance[0]) * 2**400)), 2**200)
    high = Fraction(1e250) * Fraction(weight) / root
    cases = (Box(large, 0 * large), zero, high), (Box(0 * large, large), zero, -high), (point(0.0), -large[0], high)
    for x, mean, low in cases:
        assert holds(maps.batch_norm(mean, variance, weight * one, zero, 0.0).box(x), [low], [high])


def test_batch_norm_counts_every_rounding():
    """Where product and bias cancel, and where the bias is all that there is."""
    count = 200
    x, mean, weight = random(1, count), random(count, seed=1), random(count, seed=2)
    product = (x[0] - mean) * weight / 2
    for bias in (-product, 1e9 * random(count, seed=3)):
        value = (exact(x[0]) - exact(mean)) / 2 * exact(weight) + exact(bias)
        assert holds(maps.batch_norm(mean, np.full(count, 3.75), weight, bias, 0.25).box(Box(x, 0 * x)), value, value)


def test_inclusion_counts_the_rounding_of_its_own_sum():
    outer, barely_too_large = point(0.0), Box(np.ones((1, 1)), np.full((1, 1), 2.0**-54))
    assert not inside(barely_too_large, Box(outer.center, np.ones((1, 1))))[0]


def test_layers_say_how_many_terms_their_sums_have(monkeypatch):
    one, value = torch.ones(1, COUNT).double(), [sum(exact(LOST))]
    layer, conv = nn.Linear(COUNT, 1, bias=False).double(), nn.Conv2d(1, 1, 8, bias=False).double()
    layer.weight.data, conv.weight.data = one, one.reshape(1, 1, 8, 8)
    monkeypatch.setattr(maps, "matrix", from_the_left)
    monkeypatch.setattr(
        maps, "convolve", lambda w, x, *geometry: from_the_left(w.reshape(1, -1), x.reshape(1, -1))[..., None, None]
    )
    image = Box(LOST.reshape(1, 1, 8, 8), np.zeros((1, 1, 8, 8)))
    assert holds(operation_of_module(layer).box(point(*LOST)), value, value)
    assert holds(operation_of_module(conv).box(image), value, value)
    monkeypatch.setattr(np, "tensordot", lambda x, members, axes: from_the_left(members, x[0])[None])
    sequence = Box(LOST.reshape(1, 1, COUNT), np.zeros((1, 1, COUNT)))
    assert holds(operation_of_module(nn.AvgPool1d(COUNT)).box(sequence), [value[0] / COUNT], [value[0] / COUNT])


def test_margins_say_how_many_terms_their_sums_have():
    size = 4096
    model = nn.Sequential(nn.Flatten(), nn.Linear(size, 2, bias=False)).double().eval()
    model[1].weight.data = torch.stack([torch.ones(size), torch.zeros(size)]).double()
    network, x = read_network(model), np.array([[1.0, *[U] * (size - 1)]])
    value = [sum(exact(x.ravel()))]
    assert holds(network.margins([None, Box(x, 0 * x)], np.array([0])), value, value)


def test_pre_activations_count_the_recurrence_and_the_last_sum(monkeypatch):
    h, z = random(1, 200), point(*[1.0] * 200)
    weight = np.diag(2.0**-60 * random(200, seed=1))
    value = exact(h[0]) + exact(np.diag(weight))
    assert holds(equilibrium.preactivation_box(weight, Box(h, 0 * h), z), value, value)
    monkeypatch.setattr(equilibrium, "apply_recurrence", from_the_left)
    box = equilibrium.preactivation_box(np.ones((1, COUNT)), point(0.0), point(*LOST))
    assert holds(box, [sum(exact(LOST))], [sum(exact(LOST))])


def test_a_recurrence_of_rho_above_1_by_rounding_alone_is_refused():
    """Its float sum is below 1, however the kernel's 49 numbers are summed in eight parts."""
    kernel = np.full(49, 0.9 * 2.0**-57)
    kernel[:8] = 1 / 8
    kernel[7] -= 2 * U / 2
    assert kernel.sum() < 1 < sum(exact(kernel)), "what the test rests on"
    with pytest.raises(NotProvedError):
        equilibrium.contraction(kernel.reshape(1, 1, 7, 7))


def assert_below(pulled, a, values, sources):
    """Check that a functional of sources is at most a . values, fractions [n] each, at a point, less its rounding."""
    (coefficients,), constants, losses = pulled.coefficients, exact(pulled.constant), exact(pulled.rounding_loss)
    exactly = exact(a.reshape(len(a), -1)) @ values
    bounds = exact(coefficients.reshape(len(a), -1)) @ sources + constants - losses
    assert all(bounds <= exactly)


def pulled_through(operation, a, *boxes_of_sources):
    step = Step("it", operation, tuple(range(len(boxes_of_sources))))
    return pull_back(step, a, Region(list(boxes_of_sources), {}), len(boxes_of_sources), None)


def test_the_sum_over_many_outputs_is_counted():
    """Of coefficients, and of the constant; each as large as rounding makes it."""
    size = 4096
    layer = nn.Linear(1, size).double()
    a = np.array([[-1.0, *[-U] * (size - 1)]])
    for weight, bias in ((1.0, 0.0), (0.0, 1.0)):
        nn.init.constant_(layer.weight, weight)
        nn.init.constant_(layer.bias, bias)
        assert_below(pulled_through(operation_of_module(layer), a, point(1.0)), a, exact(np.ones(size)), exact([1.0]))
        assert_below(pulled_through(operation_of_module(layer), -a, point(1.0)), -a, exact(np.ones(size)), exact([1.0]))


@pytest.mark.parametrize("kind", ["list", "tuple", "windows"])
def test_the_sum_over_copies_is_counted(kind):
    size = 4096
    conv = nn.Conv2d(1, 1, 64, padding=63, bias=False).double()
    nn.init.ones_(conv.weight)
    operation, shape, one = {
        "list": (operation_of(operator.getitem, (VALUE, (slice(None), [0] * size)), {}), (size,), point(1.0)),
        "tuple": (operation_of(operator.getitem, (VALUE, (slice(None), (0,) * size)), {}), (size,), point(1.0)),
        "windows": (operation_of_module(conv), (1, 64, 64), Box(np.ones((1, 1, 1, 1)), np.zeros((1, 1, 1, 1)))),
    }[kind]
    a = np.array([[-1.0, *[-U] * (size - 1)]]).reshape(1, *shape)
    for rows in (a, -a):
        pulled = pulled_through(operation, rows, one)
        assert_below(pulled, rows, exact(np.ones(size)), exact([1.0]))


def norm_of(mean, bias):
    layer = nn.BatchNorm2d(len(mean), eps=0.25).double()
    layer.running_mean, layer.running_var = torch.from_numpy(mean), torch.full((len(mean),), 3.75).double()
    layer.bias.data = torch.from_numpy(bias)
    return layer


@pytest.mark.parametrize(
    "kind", ["linear", "convolution", "bias of a norm", "mean of a norm", "constant", "difference"]
)
def test_constants_of_maps_are_counted_where_images_are_zero(kind):
    size, b = 50, random(50)
    zero = Box(np.zeros((1, size, 1, 1)), np.zeros((1, size, 1, 1)))
    layer, conv = nn.Linear(size, size).double(), nn.Conv2d(size, size, 1).double()
    layer.bias.data = conv.bias.data = torch.from_numpy(b)
    value, shape = exact(b), (size, 1, 1)
    match kind:
        case "linear":
            operation, shape, zero = operation_of_module(layer), (size,), point(*[0.0] * size)
        case "convolution":
            operation = operation_of_module(conv)
        case "bias of a norm":
            operation = operation_of_module(norm_of(np.zeros(size), b))
        case "mean of a norm":
            operation, value = operation_of_module(norm_of(b, np.zeros(size))), exact(-b) / 2
        case "constant":
            operation = maps.elementwise(np.ones(()), b.reshape(shape))
        case "difference":
            operation = maps.elementwise(-np.ones(()), b.reshape(shape))
    rows = random(40, size, seed=3)
    rows -= (rows @ b)[:, None] * b / (b @ b)  # all that is left is rounding
    assert_below(pulled_through(operation, rows.reshape(-1, *shape), zero), rows, value, exact(np.zeros(size)))


@pytest.mark.parametrize("kind", ["linear", "convolution", "norm", "quotient", "product"])
def test_products_with_values_are_counted(kind):
    size, x, rows = 20, random(20), random(60, 20, seed=1)
    weight, factor = random(size, size, seed=2), 1 + np.abs(random(size, seed=3))
    layer, conv, norm = (
        nn.Linear(size, size, bias=False).double(),
        nn.Conv2d(size, size, 1, bias=False).double(),
        norm_of(np.zeros(size), np.zeros(size)),
    )
    layer.weight.data, conv.weight.data = torch.from_numpy(weight), torch.from_numpy(weight)[..., None, None]
    norm.weight.data = torch.from_numpy(factor)
    operation, value = {
        "linear": (operation_of_module(layer), exact(weight) @ exact(x)),
        "convolution": (operation_of_module(conv), exact(weight) @ exact(x)),
        "norm": (operation_of_module(norm), exact(factor) / 2 * exact(x)),
        "quotient": (operation_of(operator.truediv, (VALUE, factor.reshape(-1, 1, 1)), {}), exact(x) / exact(factor)),
        "product": (operation_of(operator.mul, (VALUE, factor.reshape(-1, 1, 1)), {}), exact(x) * exact(factor)),
    }[kind]
    shape = (size,) if kind == "linear" else (size, 1, 1)
    box = Box(x.reshape(1, *shape), np.zeros((1, *shape)))
    assert_below(pulled_through(operation, rows.reshape(-1, *shape), box), rows, value, exact(x))


def test_pooling_counts_its_values():
    x, a = Box(random(1, 1, 6, 6), np.zeros((1, 1, 6, 6))), random(100, 1, 2, 2, seed=1)
    windows = exact(x.center).reshape(2, 3, 2, 3).sum((1, 3)).ravel() / 9
    assert_below(pulled_through(operation_of_module(nn.AvgPool2d(3)), a, x), a, windows, exact(x.center.ravel()))


@pytest.mark.parametrize("point_of_relu", [0.0, 1.0])
def test_a_leaky_relu_counts_both_of_its_products(point_of_relu):
    slope, a = -1 / 3, random(100, 1)
    pulled = pulled_through(maps.leaky(slope), a, point(point_of_relu), point(1 - point_of_relu))
    value = (1 - Fraction(slope)) * Fraction(point_of_relu) + Fraction(slope) * Fraction(1 - point_of_relu)
    of_relu, of_x = (exact(part)[:, 0] for part in pulled.coefficients)
    total = of_relu * Fraction(point_of_relu) + of_x * Fraction(1 - point_of_relu) + exact(pulled.constant)
    assert all(total - exact(pulled.rounding_loss) <= exact(a)[:, 0] * value)


class Thrice(nn.Module):
    def forward(self, x):
        return torch.cat([x, x, x], 1)


def test_coefficients_of_a_value_that_is_used_often_count_their_sum():
    """The first two are rounded, and the third cancels what is left of them."""
    network = read_network(nn.Sequential(nn.Flatten(), Thrice(), nn.Linear(3, 2)).double().eval())
    one, rows = np.ones((1, 1, 1, 1)), np.array([[1.0, 1.5 * U, -1.0], [1.0, 0.5 * U, -1.0]])
    region = Region(network.boxes(Box(one, 0 * one)), {})
    for sign in (1.0, -1.0):
        lower = linear.lower_bounds(network, region, {2: sign * rows}, {})
        assert all(exact(lower) <= exact(sign * rows).sum(1))


def activation(weight, p, z, a, multiplier, monkeypatch, leaves=None):
    """Pull a back through z = relu(W z + h) with this multiplier, since any is sound."""
    monkeypatch.setattr(linear, "_find_multiplier", lambda *arguments: multiplier)
    step = Step("it", ReluStep(weight), (0,))
    return pull_back(step, a, Region([p, z], {1: p}), 1, leaves)


def split_at(signs, multipliers):
    return Leaves(np.full_like(signs, np.nan), signs, multipliers, np.ones_like(signs))


@pytest.mark.parametrize("weight", [None, np.zeros((1, 1))])
def test_lines_around_activations_count_their_products(weight, monkeypatch):
    """Where the offset is small, so that its own rounding covers little."""
    p, a = Box(np.array([[0.4995]]), np.array([[0.5005]])), -np.abs(random(400, 1))
    pulled = activation(weight, p, boxes.relu(p), a, a, monkeypatch)
    for end in (exact(p.center[0]) - exact(p.radius[0]), exact(p.center[0]) + exact(p.radius[0])):
        assert_below(pulled, a, np.maximum(end, 0), end)


@pytest.mark.parametrize("weight", [None, np.zeros((1, 1))])
def test_multipliers_of_splits_count_their_product(weight, monkeypatch):
    """Where the functional is 0, and where a small one is lost beside the multiplier."""
    one = np.ones((1, 1))
    p = Box(one, np.zeros((1, 1)))
    a, multipliers = U * np.abs(random(50, 1)), 1 + np.abs(random(50, 1, seed=1))
    leaves = split_at(np.ones((50, 1)), multipliers)
    pulled = activation(weight, p, p, a, a, monkeypatch, leaves)
    exactly = exact(a)[:, 0] - exact(multipliers)[:, 0]  # what the lines and the splits say at p = 1
    bounds = exact(pulled.coefficients[0])[:, 0] + exact(pulled.constant) - exact(pulled.rounding_loss)
    assert all(bounds <= exactly)


def test_the_residual_of_an_equilibrium_is_counted(monkeypatch):
    """All of the functional is left to the box of z, by a multiplier of 0."""
    size = 50
    z = Box(np.abs(random(1, size)), np.abs(random(1, size, seed=1)) * 1e-9)
    a = random(40, size, seed=2)
    pulled = activation(np.zeros((size, size)), z, z, a, np.zeros_like(a), monkeypatch)
    low, high = exact(z.center) - exact(z.radius), exact(z.center) + exact(z.radius)
    minima = (np.where(a > 0, low, high) * exact(a)).sum(1)
    assert all(exact(pulled.constant) - exact(pulled.rounding_loss) <= minima)


def test_minima_over_boxes_and_sums_of_constants_are_rounded_down():
    wide, a = Box(random(1, 30), np.abs(random(1, 30, seed=1))), random(100, 30, seed=2)
    minimum, loss = minimum_over_box(a, wide)
    ends = exact(wide.center) - exact(wide.radius), exact(wide.center) + exact(wide.radius)
    assert all(exact(minimum) - exact(loss) <= (np.where(a > 0, *ends) * exact(a)).sum(1))
    terms, zeros = np.abs(random(7, 200)), np.zeros((1, 200))
    for constants, losses in ((terms, zeros), (-terms, zeros), (zeros, terms)):
        assert all(exact(sum_rounded_down(constants, losses)) <= exact(constants).sum(0) - exact(losses).sum(0))


@pytest.mark.parametrize("kind", ["normal", "subnormal"])
def test_the_chord_lies_above_both_ends(kind):
    """Also where the offset is a product that underflows."""
    low, high = -np.abs(random(400)), np.abs(random(400, seed=1))
    if kind == "subnormal":
        low, high = np.floor(9 * low) * SMALLEST, np.ceil(9 * high) * SMALLEST
    p = between(low[None], high[None])
    around = lines(p, None)
    chord, offset = exact(around.chord[0]), exact(around.offset[0])
    assert all(chord * exact(p.upper[0]) + offset >= exact(p.upper[0]))
    assert all(chord * exact(p.lower[0]) + offset >= 0)


def test_a_single_product_counts_the_roundings_of_its_factor():
    """A root, a quotient and two products, in a norm of one channel; the root is exact to 200 digits."""
    digits = 10**200
    for number in range(300):
        variance, weight, a, x = np.abs(np.random.default_rng(number).normal(size=4)) + 0.1
        layer = norm_of(np.zeros(1), np.zeros(1))
        layer.running_var[0], layer.weight.data[0] = variance, weight
        root = Fraction(isqrt(int((Fraction(variance) + Fraction(0.25)) * digits**2)), digits)
        value = [Fraction(weight) / root * Fraction(x)]
        for sign in (1, -1):
            rows = np.full((1, 1, 1, 1), sign * a)
            pulled = pulled_through(
                operation_of_module(layer), rows, Box(np.full((1, 1, 1, 1), x), np.zeros((1, 1, 1, 1)))
            )
            assert_below(pulled, rows, np.array(value, dtype=object), exact([x]))


def test_functionals_count_underflow():
    layer = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(layer.weight, 1e-200)
    a, x = np.array([[-1e-200]]), LARGEST / 10
    value = exact([1e-200]) * Fraction(x)
    assert_below(pulled_through(operation_of_module(layer), a, point(x)), a, value, exact([x]))
    assert np.isinf(rounding_loss(np.array([[10 * LARGEST]]), np.ones((1, 1))))
