"""Terms by which linear bounds count rounding, each where nothing else covers it: against exact rational arithmetic.

If one is dropped from its rule, a test of this module fails.
"""

from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from lost_digits import COUNT, assert_below, both_signs, box_of, lost, precisions, sound
from oracles import fractions
from torch import nn

from cerdeq.bounds import Backward
from cerdeq.bounds.backward import joint_lower_bound
from cerdeq.equilibrium import adjoint
from cerdeq.operators import arithmetic, convolution, linear, pooling, relu
from cerdeq.operators.backward import affine, combination, dot, slack
from cerdeq.operators.batch_norm import batch_norm_backward
from cerdeq.tracing.trace import trace


@precisions
def test_coefficients_count_all_outputs(dtype):
    """As many as one input reaches, and as many as are summed up."""
    a, one = both_signs(lost(dtype)), box_of(torch.ones(1, 1, dtype=dtype))
    weight, value = torch.ones(COUNT, 1, dtype=dtype), [Fraction(1)] * COUNT
    two = box_of(
        torch.tensor([[1.0, 0.0]], dtype=dtype)
    )  # a matrix product, whose sums are longer than those of one row
    assert_below(linear.linear_backward(Backward(sound=True), a, two, weight.expand(-1, 2)), a, value, [1, 0])
    pixel = box_of(one.center.view(1, 1, 1, 1))
    pulled = convolution.conv2d_backward(
        Backward(sound=True), a.view(1, 2, COUNT, 1, 1), pixel, weight.view(COUNT, 1, 1, 1)
    )
    assert_below(pulled, a, value, [1])
    # An average pooling in which the pixel in the middle is one of the 256 of each of 256 windows.
    row, middle = a[..., :256].unsqueeze(2).unsqueeze(2), torch.zeros(1, 1, 1, 511, dtype=dtype)
    middle[..., 255] = 1
    pool = affine(F.avg_pool2d, pooling.avg_pool2d_interval, lambda *arguments, **options: 256)
    assert_below(
        pool(Backward(sound=True), row, box_of(middle), (1, 256), 1),
        row,
        [Fraction(1, 256)] * 256,
        fractions(middle.flatten()),
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
    summed = combination(lambda x, y: [(x, 1), (y, 1)], arithmetic.add_interval)
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
            bound_at(program, [x, linear.linear_interval(sound(), x, layer.weight)], rows, 1), rows[0], strict=True
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
    weight = torch.zeros(size, size, dtype=dtype)
    zeros, images = [0] * size, a.unsqueeze(3).unsqueeze(4)
    assert_below(linear.linear_backward(Backward(sound=True), a, box_of(zero), weight, bias), a, fractions(bias), zeros)
    pulled = convolution.conv2d_backward(Backward(sound=True), images, pixels, weight.view(size, size, 1, 1), bias)
    assert_below(pulled, a, fractions(bias), zeros)
    pulled = batch_norm_backward(Backward(sound=True), images, pixels, 0 * bias, statistics[1], None, bias, eps=0.25)
    assert_below(pulled, a, fractions(bias), zeros)
    pulled = batch_norm_backward(Backward(sound=True), images, pixels, *statistics, eps=0.25)
    assert_below(pulled, a, [-mean for mean in fractions(statistics[0])], zeros)
    add = combination(lambda x, y: [(x, 1), (y, 1)], arithmetic.add_interval)
    assert_below(add(Backward(sound=True), a, box_of(zero), bias), a, fractions(bias), zeros)


@precisions
def test_scaled_and_pooled_coefficients_count_their_products(dtype):
    a, x = torch.randn(1, 60, 1, 2, 2, dtype=dtype), torch.randn(1, 1, 6, 6, dtype=dtype)
    rows = fractions(x[0, 0])
    windows = [sum(rows[3 * i + k][3 * j + m] for k in range(3) for m in range(3)) / 9 for i in (0, 1) for j in (0, 1)]
    pool = affine(F.avg_pool2d, pooling.avg_pool2d_interval, lambda *arguments, **options: 9)
    assert_below(pool(Backward(sound=True), a, box_of(x), 3), a, windows, fractions(x.flatten()))
    row, values = torch.randn(1, 200, 1, dtype=dtype), torch.randn(1, 1, dtype=dtype)
    times = combination(lambda x, y: [(x, y)], arithmetic.multiply_interval)
    product = [Fraction(0.1) * fractions(values)[0][0]]
    assert_below(times(Backward(sound=True), row, box_of(values), 0.1), row, product, fractions(values[0]))
    statistics = torch.zeros(1, dtype=dtype), torch.full((1,), 0.75, dtype=dtype)
    weight = torch.full((1,), 0.1, dtype=dtype)
    normed = batch_norm_backward(Backward(sound=True), row, box_of(values), *statistics, weight, None, eps=0.25)
    assert_below(normed, row, [fractions(weight)[0] * fractions(values)[0][0]], fractions(values[0]))


@precisions
@pytest.mark.parametrize("sign", [1, -1])
def test_multipliers_of_splits_count_their_product(sign, dtype):
    """Where a small coefficient is lost beside them."""
    p = sign * torch.ones(1, 1, dtype=dtype)
    a = -torch.finfo(dtype).eps / 3 * torch.rand(1, 60, 1, dtype=dtype)
    multipliers = 1 + torch.rand(1, 60, 1, dtype=dtype)
    signs = sign * torch.ones(1, 1, dtype=dtype)
    backward = Backward(True, step="it", splits={"it": signs}, slopes={relu.split_name("it"): multipliers})
    pulled = relu.relu_backward(backward, a, box_of(p))
    for row in range(60):
        coefficient, b = fractions(a[0, row])[0], fractions(multipliers[0, row])[0]
        exactly = (coefficient if sign > 0 else 0) - b  # the leaf's function at p, less b s p
        bound = fractions(pulled.coefficients[0][0, row])[0] * sign + fractions(pulled.constant[0, row])
        assert bound <= exactly


@precisions
@pytest.mark.parametrize("slope", [0.1, 1000.1])
def test_slopes_count_their_product(slope, dtype):
    """Where the activation does not cross 0, so that no offset covers it."""
    p, a = -torch.ones(1, 1, dtype=dtype), torch.randn(1, 60, 1, dtype=dtype)
    assert_below(relu.leaky_relu_backward(Backward(True), a, box_of(p), slope), a, [-Fraction(slope)], [-1])


def test_constants_are_summed_in_float64(monkeypatch):
    """However few digits coefficients have: rules count the rounding of float32 for products, not for sums."""
    values, ones = lost(torch.float32), torch.ones(1, 1, COUNT)
    allowed = COUNT * Fraction(torch.finfo(torch.float64).eps)
    total = sum(fractions(values))
    assert abs(fractions(dot(Backward(True), ones, values[None]))[0][0] - total) <= allowed
    monkeypatch.setattr("cerdeq.operators.backward._rounding", lambda *arguments: torch.zeros(()))
    add = combination(lambda x, y: [(x, 1), (y, 1)], arithmetic.add_interval)
    constant = add(Backward(True), ones, box_of(0 * values[None]), values).constant
    assert abs(fractions(constant)[0][0] - total) <= allowed


def test_underflow_of_every_product_is_counted():
    """As if processors flushed subnormal numbers: for each coefficient, for each magnitude, and of both sums."""
    count, terms, large = 2**10, 2**9, 1e3
    zeros, full = torch.zeros(1, 1, count), torch.full((1, 1, count), large)
    each = Fraction(torch.finfo(torch.float32).tiny)
    for coefficients, magnitude, lost_in_all in (
        (zeros, full[0], terms * each * count * Fraction(large)),
        (full, zeros[0], terms * each * count * Fraction(large)),
        (zeros, zeros[0], 2 * count * each),
    ):
        assert fractions(slack(Backward(True), coefficients, magnitude, terms))[0][0] >= lost_in_all
    for length in (1, count):  # of a sum of `terms` products of which many are left, or few
        counted = slack(Backward(True), zeros[..., :length], zeros[0, :, :length], count + 1 - length)
        assert fractions(counted)[0][0] >= count * each


@precisions
def test_what_is_left_of_an_adjoint_is_counted(dtype):
    """With a multiplier of 0, all of it; with the coefficients themselves and W = 0, only what goes through lines."""
    size = 50
    weight, a = torch.zeros(size, size, dtype=dtype), torch.randn(1, 40, size, dtype=dtype)
    z = box_of(torch.rand(1, size, dtype=dtype))
    around = relu.lines(Backward(sound=True), z.box)
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
    multiplier, around = torch.ones_like(a), relu.lines(Backward(True), z.box)
    pulled = adjoint._bound(Backward(True), a, multiplier, around, weight, z, z.box)
    value = fractions(z.center[0])
    wz = [sum(w * v for w, v in zip(row, value, strict=True)) for row in fractions(weight)]
    assert_below(pulled, a, value, [v - w for v, w in zip(value, wz, strict=True)])


@precisions
def test_multipliers_of_splits_in_an_adjoint_count_their_product(dtype):
    a = -torch.finfo(dtype).eps / 3 * torch.rand(1, 60, 1, dtype=dtype)
    splits, z = 1 + torch.rand(1, 60, 1, dtype=dtype), box_of(torch.ones(1, 1, dtype=dtype))
    around = relu.lines(Backward(True), z.box)
    pulled = adjoint._bound(Backward(True), a, a, around, torch.zeros(1, 1, dtype=dtype), z, z.box, splits)
    for row in range(60):
        bound = fractions(pulled.coefficients[0][0, row])[0] + fractions(pulled.constant[0, row])
        assert bound <= fractions(a[0, row])[0] - fractions(splits[0, row])[0]


@precisions
def test_the_largest_pixel_of_many_windows_counts_all_of_them(dtype):
    image, a = torch.zeros(1, 1, 1, 511, dtype=dtype), both_signs(lost(dtype, 256)).view(1, 2, 1, 1, 256)
    image[..., 255] = 1
    pulled = pooling.max_pool2d_backward(Backward(True), a, box_of(image), (1, 256), 1)
    assert_below(pulled, a, [Fraction(1)] * 256, fractions(image.flatten()))
