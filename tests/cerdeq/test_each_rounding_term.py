"""Terms by which bounds count rounding, each where nothing else covers it: against exact rational arithmetic.

If one is dropped from its rule, a test of this module fails.
"""

from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from oracles import DTYPES, Exact, encloses, fractions, root_below_and_above
from torch import nn

from cerdeq import Box
from cerdeq.bounds import Backward, Context, Interval
from cerdeq.bounds.backward import joint_lower_bound
from cerdeq.bounds.float32 import float32_box_around
from cerdeq.bounds.graph import trace
from cerdeq.boxes import LinfBall, narrowed, outward_ends
from cerdeq.equilibrium import adjoint, certificate
from cerdeq.equilibrium.rules import _rounded_up
from cerdeq.rules import batch_norm, interval, linear, relaxation
from cerdeq.rules.activations import max_pool2d, relu_box

COUNT = 4096  # terms of a sum: more than lanes of a processor add up apart

precisions = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def lost(dtype, count=COUNT):
    """Return 1 and many halves of its last digit: summed in few parts, most of them are lost."""
    values = torch.full((count,), torch.finfo(dtype).eps / 2, dtype=dtype)
    values[0] = 1
    return values


def box_of(center, radius=None):
    return Interval(center, torch.zeros_like(center) if radius is None else radius)


def contains(rule, low, high=None):
    """Return whether an Interval contains the fractions from low to high."""
    return encloses(rule.box, Exact(low, low if high is None else high))


def sound():
    return Context(sound=True)


@precisions
def test_sums_count_all_of_their_terms_in_centre_and_radius(dtype):
    values, ones = lost(dtype)[None], torch.ones(1, COUNT, dtype=dtype)
    total = sum(fractions(values[0]))
    image, kernel, spec = values.view(1, 1, 64, 64), ones.view(1, 1, 64, 64), torch.ones(1, 1, 1, dtype=dtype)
    for center, radius, low in ((values, 0 * values, total), (0 * values, values, -total)):
        x, pixels = box_of(center, radius), box_of(center.view_as(image), radius.view_as(image))
        assert contains(interval.linear(sound(), x, ones), [low], [total])
        assert contains(interval.conv2d(sound(), pixels, kernel), [low], [total])
        assert contains(interval.specified_linear(sound(), x, spec, ones), [low], [total])
        assert contains(interval.specified(sound(), x, ones[None]), [low], [total])
        assert contains(interval.avg_pool2d(sound(), pixels, 64), [low / COUNT], [total / COUNT])
        assert contains(interval.adaptive_avg_pool2d(sound(), pixels, 1), [low / COUNT], [total / COUNT])


@precisions
def test_biases_are_counted(dtype):
    """Where one added to a tiny product is all that is rounded."""
    bias = torch.randn(50, dtype=dtype)
    tiny = torch.finfo(dtype).eps / 8 * torch.randn(50, 1, dtype=dtype)
    one, value = (
        torch.ones(1, 1, dtype=dtype),
        [a + b for a, b in zip(fractions(tiny[:, 0]), fractions(bias), strict=True)],
    )
    assert contains(interval.linear(sound(), box_of(one), tiny, bias), value)
    pixel = box_of(one.view(1, 1, 1, 1))
    assert contains(interval.conv2d(sound(), pixel, tiny.view(50, 1, 1, 1), bias), value)
    statistics = torch.zeros(50, dtype=dtype), torch.full((50,), 0.75, dtype=dtype)
    normed = batch_norm.interval(sound(), box_of(tiny.T), *statistics, None, bias, eps=0.25)
    assert contains(normed, value)


@precisions
def test_sums_of_two_count_either_where_the_other_is_small(dtype):
    large, small = torch.randn(1, 50, dtype=dtype), torch.finfo(dtype).eps / 3 * torch.randn(1, 50, dtype=dtype)
    value = [a + b for a, b in zip(fractions(large[0]), fractions(small[0]), strict=True)]
    assert contains(interval.add(sound(), box_of(large), box_of(small)), value)
    assert contains(interval.add(sound(), box_of(small), box_of(large)), value)


def test_products_that_underflow_are_counted():
    """In float32; a product of two normal numbers, or of an average's share, is rounded to 0."""
    x, tiny = torch.tensor([[1e-37]]), torch.tensor([[1e-20]])
    product, subnormal = fractions(x)[0][0] * fractions(tiny)[0][0], 2.0**-149
    one, zero = torch.ones(1, 1, 1), torch.zeros(1)
    assert contains(interval.linear(sound(), box_of(x), tiny), [product])
    assert contains(interval.conv2d(sound(), box_of(x.view(1, 1, 1, 1)), tiny.view(1, 1, 1, 1)), [product])
    assert contains(interval.multiply(sound(), box_of(x), tiny), [product])
    assert contains(interval.add(sound(), box_of(0 * x), box_of(x), alpha=tiny.item()), [product])
    assert contains(interval.divide(sound(), box_of(x), 1 / tiny), [fractions(x)[0][0] / fractions(1 / tiny)[0][0]])
    assert contains(interval.specified_linear(sound(), box_of(x), one, tiny), [product])
    assert contains(interval.specified(sound(), box_of(x), tiny[None]), [product])
    pixels = torch.zeros(1, 1, 2, 2)
    pixels[..., 0, 0] = subnormal
    for pooled in (
        interval.avg_pool2d(sound(), box_of(pixels), 2),
        interval.adaptive_avg_pool2d(sound(), box_of(pixels), 1),
    ):
        assert contains(pooled, [Fraction(subnormal) / 4])
    normed = batch_norm.interval(sound(), box_of(x), zero, torch.full((1,), 0.75), tiny[0], None, eps=0.25)
    assert contains(normed, [product])
    pooled = max_pool2d(sound(), box_of(0 * pixels, pixels), 2)  # of 0 and of what reaches from -2^-149 to 2^-149
    assert contains(pooled, [Fraction(0)], [Fraction(subnormal)])


def test_factors_that_underflow_are_counted_for_centre_and_radius():
    """A factor that float32 rounds to 0, beside a large value."""
    large, zero = torch.tensor([[1e30]]), torch.zeros(1, 1)
    value = fractions(large)[0][0] * Fraction(1e-50)
    assert contains(interval.multiply(sound(), box_of(large), 1e-50), [value])
    assert contains(interval.multiply(sound(), box_of(zero, large), 1e-50), [-value], [value])
    variance, weight = torch.tensor([0.5]), torch.tensor([3 * 2.0**-149])
    values = [fractions(large)[0][0] * fractions(weight)[0] / root for root in root_below_and_above(Fraction(1, 2))]
    for center, radius, low in ((large, zero, min(values)), (zero, large, -max(values))):
        normed = batch_norm.interval(sound(), box_of(center, radius), zero[0], variance, weight, None, eps=0.0)
        assert contains(normed, [low], [max(values)])
    for sign in (1, -1):
        row = torch.full((1, 1, 1), float(sign))
        pulled = batch_norm.backward(Backward(True), row, box_of(large), zero[0], variance, weight, None, eps=0.0)
        bound = fractions(pulled.coefficients[0])[0][0][0] * fractions(large)[0][0] + fractions(pulled.constant)[0][0]
        assert bound <= min(sign * value for value in values)


@precisions
def test_merged_weights_count_their_products_over_wide_boxes(dtype):
    """Two rows that cancel: all that is left of the merged weight is rounding, times the radius."""
    wide = box_of(torch.zeros(1, 50, dtype=dtype), torch.ones(1, 50, dtype=dtype))
    for _ in range(20):
        spec, first = torch.rand(1, 1, 2, dtype=dtype) + 1, torch.randn(50, dtype=dtype)
        weight = torch.stack([first, -first * (spec[0, 0, 0] / spec[0, 0, 1])])
        (s, t), rows = fractions(spec[0, 0]), fractions(weight)
        reach = sum(abs(s * a + t * b) for a, b in zip(*rows, strict=True))
        assert contains(interval.specified_linear(sound(), wide, spec, weight), [-reach], [reach])


def test_merged_weights_that_underflow_are_counted():
    """Products of spec and weights, and numbers of a float64 spec, that float32 rounds to 0; beside large values."""
    large, one, small = torch.tensor([[1e30]]), torch.ones(1, 1), torch.tensor([[1e-25]])
    double = torch.full((1, 1, 1), 1e-50, dtype=torch.float64)
    value, zero = fractions(large)[0][0], torch.zeros(1, 1)
    for spec, x, weight, bias, exact in (
        (small[None], large, small, None, value * fractions(small)[0][0] ** 2),
        (double, one, large, None, value * Fraction(1e-50)),
        (double, zero, zero, large[0], value * Fraction(1e-50)),
    ):
        assert contains(interval.specified_linear(sound(), box_of(x), spec, weight, bias), [exact])
        if weight is small:
            assert contains(interval.specified_linear(sound(), box_of(zero, x), spec, weight, bias), [-exact], [exact])
    assert contains(interval.specified(sound(), box_of(large), double), [value * Fraction(1e-50)])


@precisions
def test_ends_and_boxes_between_them_are_rounded_outwards(dtype):
    center, radius = torch.randn(1, 200, dtype=dtype), torch.rand(1, 200, dtype=dtype)
    box = Box(center, radius)
    exact = Exact.of(box)
    assert exact.inside(*outward_ends(box))
    low, high = (torch.sort(torch.randn(2, 200, dtype=dtype), 0).values[:, None]).unbind()
    both = narrowed(Box(center, torch.full_like(radius, 1e9)), low, high)
    assert encloses(both, Exact(fractions(low[0]), fractions(high[0])))
    one = torch.full((1, 1), 2.0**-149 if dtype == torch.float32 else 2.0**-1074, dtype=dtype)
    assert encloses(narrowed(Box(one, one * 1e9), 0 * one, one), Exact([Fraction(0)], fractions(one[0])))
    after = Box(*relu_box(sound(), center, radius))
    assert encloses(after, exact.relu())


@precisions
def test_balls_hold_pixels_and_a_radius_that_no_float_holds(dtype):
    x = torch.rand(1, 200, dtype=dtype)
    for eps in (Fraction(0), Fraction(1, 255), Fraction(8, 255), Fraction(1, 3)):
        low, high = ([min(max(v + s * eps, Fraction(0)), Fraction(1)) for v in fractions(x[0])] for s in (-1, 1))
        assert encloses(LinfBall(x, eps), Exact(low, high))
    assert encloses(LinfBall(0 * x, Fraction(1e-45)), Exact([Fraction(0)] * 200, [Fraction(1e-45)] * 200))


def test_float32_boxes_contain_those_of_float64():
    center = torch.randn(1, 300, dtype=torch.float64)
    for radius in (torch.zeros_like(center), torch.rand_like(center), torch.full_like(center, 1e-46)):
        for middle in (center, 0 * center):
            around = float32_box_around(box_of(middle, radius))
            assert encloses(around.box.double(), Exact.of(Box(middle, radius)))


def test_boxes_of_equilibria_contain_those_of_float64_in_float32():
    like, center = torch.zeros(1, 300), torch.randn(1, 300, dtype=torch.float64)
    for middle, radius in ((center, 0 * center), (0 * center, center.abs()), (0 * center + 1e-46, 0 * center + 1e-46)):
        rounded = Box(middle.float(), _rounded_up(radius, middle, like))
        assert encloses(rounded.double(), Exact.of(Box(middle, radius)))


# ---------------------------------------------------------------------------------------------------------------------
# Linear bounds


def assert_below(pulled, coefficients, value, sources):
    """Check that a functional of sources, fractions, is at most coefficients . value, both of one point, exactly."""
    rows = fractions(coefficients[0].flatten(1))
    below = fractions(pulled.coefficients[0][0].flatten(1))
    for row, bound, constant in zip(rows, below, fractions(pulled.constant[0]), strict=True):
        exactly = sum(a * v for a, v in zip(row, value, strict=True))
        assert sum(a * v for a, v in zip(bound, sources, strict=True)) + constant <= exactly


def both_signs(values):
    return torch.stack([values, -values])[None]


@precisions
def test_coefficients_count_all_outputs(dtype):
    """As many as one input reaches, and as many as are summed up."""
    a, one = both_signs(lost(dtype)), box_of(torch.ones(1, 1, dtype=dtype))
    weight, value = torch.ones(COUNT, 1, dtype=dtype), [Fraction(1)] * COUNT
    backward = Backward(sound=True)
    two = box_of(
        torch.tensor([[1.0, 0.0]], dtype=dtype)
    )  # a matrix product, whose sums are longer than those of one row
    assert_below(linear.linear(backward, a, two, weight.expand(-1, 2)), a, value, [1, 0])
    pixel = box_of(one.center.view(1, 1, 1, 1))
    pulled = linear.conv2d(backward, a.view(1, 2, COUNT, 1, 1), pixel, weight.view(COUNT, 1, 1, 1))
    assert_below(pulled, a, value, [1])
    # An average pooling in which the pixel in the middle is one of the 256 of each of 256 windows.
    row, middle = a[..., :256].unsqueeze(2).unsqueeze(2), torch.zeros(1, 1, 1, 511, dtype=dtype)
    middle[..., 255] = 1
    pool = linear.affine(F.avg_pool2d, interval.avg_pool2d, lambda *arguments, **options: 256)
    assert_below(
        pool(backward, row, box_of(middle), (1, 256), 1), row, [Fraction(1, 256)] * 256, fractions(middle.flatten())
    )


@precisions
def test_coefficients_of_a_value_that_is_broadcast_count_their_sum(dtype, monkeypatch):
    """In any order, such as this one."""

    def from_the_left(coefficients, *shape):
        total = torch.zeros(shape, dtype=dtype)
        for part in coefficients.flatten(2).unbind(2):
            total = total + part.view(shape)
        return total

    monkeypatch.setattr(torch.Tensor, "sum_to_size", from_the_left)
    a, pixel = both_signs(lost(dtype)[:256]), box_of(torch.ones(1, 1, 1, 1, dtype=dtype))
    summed = linear.combination(lambda x, y: [(x, 1), (y, 1)], interval.add)
    pulled = summed(Backward(True), a.view(1, 2, 1, 16, 16), pixel, torch.zeros(1, 1, 16, 16, dtype=dtype))
    assert_below(pulled, a, [Fraction(1)] * 256, [1])


def bound_at(program, values, rows, at):
    return fractions(joint_lower_bound(program, values, {at: rows}, Backward(sound=True))[0])


def test_the_last_sum_counts_all_inputs():
    size, program = 4 * COUNT, trace(nn.Sequential(nn.Identity()).eval(), linear=True)
    rows = both_signs(lost(torch.float64, size))
    lower = bound_at(program, [box_of(torch.ones(1, size, dtype=torch.float64))] * 2, rows, 0)
    assert all(low <= sum(row) for low, row in zip(lower, fractions(rows[0]), strict=True))


def test_underflow_is_counted_where_it_is_magnified():
    """In float32: of products, of coefficients beside large inputs, of magnitudes beside large coefficients."""
    layer = nn.Linear(1, 4 * COUNT, bias=False).eval()
    program = trace(nn.Sequential(layer).eval(), linear=True)
    for weight, point, row in (
        (1.0, 1e-30, torch.full((4 * COUNT,), 1e-30)),
        (1e-30, 1e30, torch.full((4 * COUNT,), 1e-30)),
        (1e-23, 1e-23, 1e23 * lost(torch.float32, 4 * COUNT)),
    ):
        nn.init.constant_(layer.weight, weight)
        x = box_of(torch.full((1, 1), point))
        product = fractions(layer.weight)[0][0] * fractions(x.center)[0][0]
        rows = both_signs(row)
        for low, coefficients in zip(
            bound_at(program, [x, interval.linear(sound(), x, layer.weight)], rows, 1), rows[0], strict=True
        ):
            assert low <= sum(fractions(coefficients)) * product


@precisions
def test_constants_of_affine_rules_count_their_products(dtype):
    """Of an input that is 0, so that the constants are all there is."""
    size = 50
    zero, bias, a = (
        torch.zeros(1, size, dtype=dtype),
        torch.randn(size, dtype=dtype),
        torch.randn(1, 40, size, dtype=dtype),
    )
    pixels = box_of(zero.view(1, size, 1, 1))
    statistics = torch.randn(size, dtype=dtype), torch.full((size,), 0.75, dtype=dtype)
    weight, backward = torch.zeros(size, size, dtype=dtype), Backward(sound=True)
    zeros, images = [0] * size, a.unsqueeze(3).unsqueeze(4)
    assert_below(linear.linear(backward, a, box_of(zero), weight, bias), a, fractions(bias), zeros)
    pulled = linear.conv2d(backward, images, pixels, weight.view(size, size, 1, 1), bias)
    assert_below(pulled, a, fractions(bias), zeros)
    pulled = batch_norm.backward(backward, images, pixels, 0 * bias, statistics[1], None, bias, eps=0.25)
    assert_below(pulled, a, fractions(bias), zeros)
    pulled = batch_norm.backward(backward, images, pixels, *statistics, eps=0.25)
    assert_below(pulled, a, [-mean for mean in fractions(statistics[0])], zeros)
    add = linear.combination(lambda x, y: [(x, 1), (y, 1)], interval.add)
    assert_below(add(backward, a, box_of(zero), bias), a, fractions(bias), zeros)


@precisions
def test_scaled_and_pooled_coefficients_count_their_products(dtype):
    a, x = torch.randn(1, 60, 1, 2, 2, dtype=dtype), torch.randn(1, 1, 6, 6, dtype=dtype)
    backward = Backward(sound=True)
    rows = fractions(x[0, 0])
    windows = [sum(rows[3 * i + k][3 * j + m] for k in range(3) for m in range(3)) / 9 for i in (0, 1) for j in (0, 1)]
    pool = linear.affine(F.avg_pool2d, interval.avg_pool2d, lambda *arguments, **options: 9)
    assert_below(pool(backward, a, box_of(x), 3), a, windows, fractions(x.flatten()))
    row, values = torch.randn(1, 200, 1, dtype=dtype), torch.randn(1, 1, dtype=dtype)
    times = linear.combination(lambda x, y: [(x, y)], interval.multiply)
    product = [Fraction(0.1) * fractions(values)[0][0]]
    assert_below(times(backward, row, box_of(values), 0.1), row, product, fractions(values[0]))
    statistics = torch.zeros(1, dtype=dtype), torch.full((1,), 0.75, dtype=dtype)
    weight = torch.full((1,), 0.1, dtype=dtype)
    normed = batch_norm.backward(backward, row, box_of(values), *statistics, weight, None, eps=0.25)
    assert_below(normed, row, [fractions(weight)[0] * fractions(values)[0][0]], fractions(values[0]))


@precisions
@pytest.mark.parametrize("sign", [1, -1])
def test_multipliers_of_splits_count_their_product(sign, dtype):
    """Where a small coefficient is lost beside them."""
    p = sign * torch.ones(1, 1, dtype=dtype)
    a = -torch.finfo(dtype).eps / 3 * torch.rand(1, 60, 1, dtype=dtype)
    multipliers = 1 + torch.rand(1, 60, 1, dtype=dtype)
    signs = sign * torch.ones(1, 1, dtype=dtype)
    backward = Backward(True, step="it", splits={"it": signs}, slopes={relaxation.split_name("it"): multipliers})
    pulled = relaxation.relu(backward, a, box_of(p))
    for row in range(60):
        coefficient, b = fractions(a[0, row])[0], fractions(multipliers[0, row])[0]
        exactly = (coefficient if sign > 0 else 0) - b  # the leaf's function at p, less b s p
        bound = fractions(pulled.coefficients[0][0, row])[0] * sign + fractions(pulled.constant[0, row])
        assert bound <= exactly


@precisions
def test_slopes_count_their_product(dtype):
    """Where the activation does not cross 0, so that no offset covers it."""
    p, a = -torch.ones(1, 1, dtype=dtype), torch.randn(1, 60, 1, dtype=dtype)
    assert_below(relaxation.leaky_relu(Backward(True), a, box_of(p), 0.1), a, [-Fraction(0.1)], [-1])


@precisions
def test_what_is_left_of_an_adjoint_is_counted(dtype):
    """With a multiplier of 0, all of it; with the coefficients themselves and W = 0, only what goes through lines."""
    size = 50
    weight, a = torch.zeros(size, size, dtype=dtype), torch.randn(1, 40, size, dtype=dtype)
    z = box_of(torch.rand(1, size, dtype=dtype))
    around = relaxation.lines(Backward(sound=True), z.box)
    value = fractions(z.center[0])
    for multiplier in (0 * a, a):
        pulled = adjoint._bound(Backward(sound=True), a, multiplier, around, weight, z, z.box)
        assert_below(pulled, a, value, value)


@precisions
def test_the_recurrence_of_an_adjoint_is_counted_where_it_cancels(dtype):
    """Rows of W come in pairs that all but cancel, so that coefficients are small and the sums behind them are not."""
    rows = 1e4 * torch.randn(20, 40, dtype=dtype)
    weight = torch.cat([rows, -rows + torch.randn(20, 40, dtype=dtype)])
    z, a = box_of(torch.rand(1, 40, dtype=dtype)), torch.randn(1, 20, 40, dtype=dtype)
    multiplier, around = torch.ones_like(a), relaxation.lines(Backward(True), z.box)
    pulled = adjoint._bound(Backward(True), a, multiplier, around, weight, z, z.box)
    value = fractions(z.center[0])
    wz = [sum(w * v for w, v in zip(row, value, strict=True)) for row in fractions(weight)]
    assert_below(pulled, a, value, [v - w for v, w in zip(value, wz, strict=True)])


@precisions
def test_multipliers_of_splits_in_an_adjoint_count_their_product(dtype):
    a = -torch.finfo(dtype).eps / 3 * torch.rand(1, 60, 1, dtype=dtype)
    splits, z = 1 + torch.rand(1, 60, 1, dtype=dtype), box_of(torch.ones(1, 1, dtype=dtype))
    around = relaxation.lines(Backward(True), z.box)
    pulled = adjoint._bound(Backward(True), a, a, around, torch.zeros(1, 1, dtype=dtype), z, z.box, splits)
    for row in range(60):
        bound = fractions(pulled.coefficients[0][0, row])[0] + fractions(pulled.constant[0, row])
        assert bound <= fractions(a[0, row])[0] - fractions(splits[0, row])[0]


@precisions
def test_the_largest_pixel_of_many_windows_counts_all_of_them(dtype):
    image, a = torch.zeros(1, 1, 1, 511, dtype=dtype), both_signs(lost(dtype, 256)).view(1, 2, 1, 1, 256)
    image[..., 255] = 1
    pulled = relaxation.max_pool2d(Backward(True), a, box_of(image), (1, 256), 1)
    assert_below(pulled, a, [Fraction(1)] * 256, fractions(image.flatten()))


def test_boxes_of_pre_activations_count_the_recurrence_the_injection_and_underflow():
    zero, values = torch.zeros(1, 1, dtype=torch.float64), lost(torch.float64)[None]
    box = certificate.preactivation_box(torch.ones_like(values), Box(zero, zero), Box(values, 0 * values))
    total = sum(fractions(values[0]))
    assert encloses(box, Exact([total], [total]))
    h, ones = torch.randn(1, 50, dtype=torch.float64), torch.ones(1, 50, dtype=torch.float64)
    weight = 2.0**-60 * torch.rand(50, dtype=torch.float64)
    exact = [a + b for a, b in zip(fractions(h[0]), fractions(weight), strict=True)]
    box = certificate.preactivation_box(weight.diag(), Box(h, 0 * h), Box(ones, 0 * ones))
    assert encloses(box, Exact(exact, exact))
    tiny = zero + 1e-200
    box = certificate.preactivation_box(tiny, Box(zero, zero), Box(tiny, zero))
    assert encloses(box, Exact([fractions(tiny)[0][0] ** 2], [fractions(tiny)[0][0] ** 2]))


@pytest.mark.parametrize(("center", "radius"), [(1.0, 2.0**-54), (2.0**-54, 1.0)])
def test_inclusion_counts_the_rounding_of_its_own_sum(center, radius):
    inner, outer = (
        Box(torch.tensor([[c]]).double(), torch.tensor([[r]]).double()) for c, r in ((center, radius), (0, 1))
    )
    assert certificate._excess(inner, outer).item() > 0


def test_a_contraction_that_only_rounding_makes_is_none(monkeypatch):
    """A kernel whose sum, from the left, stays below 1."""
    half_digit = 2.0**-54
    kernel = torch.full((1, 1, 7, 7), 0.99 * half_digit, dtype=torch.float64)
    kernel[..., 0, 0] = 1 - 40 * half_digit
    assert sum(fractions(kernel.flatten())) > 1
    monkeypatch.setattr(certificate, "channel_matrix", lambda weight: sum(weight.flatten(2).unbind(2)))
    assert not certificate.contraction(kernel).rate < 1
