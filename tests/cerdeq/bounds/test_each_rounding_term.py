"""Terms by which boxes, linear bounds and whole passes count rounding, each where nothing else covers it.

All against exact rational arithmetic. Passes: backward passes, ends of IBP, adjoints of equilibria, proofs of
counterexamples. If a term is dropped, a test of this module fails.
"""

from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from oracles import DTYPES, Exact, Lambda, encloses, fractions, lost, root_below_and_above
from torch import nn

from cerdeq import Box, bound
from cerdeq.bounds import BOUNDS, Backward, Context, Interval, trace, values_of
from cerdeq.bounds.crown_pass import joint_lower_bound
from cerdeq.bounds.float32 import float32_box_around
from cerdeq.bounds.methods import lower_bounds
from cerdeq.bounds.patches import Patches, add_coefficients, dense, one_hot, rounding
from cerdeq.bounds.query import larger
from cerdeq.boxes import outward_ends, smaller_box
from cerdeq.branch.attack import prove_point
from cerdeq.branch.leaves import SearchQuery
from cerdeq.equilibrium import FixedPoint, adjoint_bound, certificate, rules
from cerdeq.equilibrium.rules import _rounded_up
from cerdeq.operators import arithmetic, averages, convolution, interval, linear, pooling, relu
from cerdeq.operators.backward import combination, dot, slack
from cerdeq.operators.batch_norm import batch_norm_backward, batch_norm_interval
from cerdeq.operators.pooling import max_pool2d_interval
from cerdeq.operators.relu import leaky_relu_interval, relu_box
from cerdeq.operators.table import of_function

COUNT = 4096  # terms of a sum: more than lanes of a processor add up apart

precisions = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def box_of(center, radius=None):
    return Interval(center, torch.zeros_like(center) if radius is None else radius)


def contains(rule, low, high=None):
    """Return whether an Interval contains the fractions from low to high."""
    return encloses(rule.box, Exact(low, low if high is None else high))


def sound():
    return Context(sound=True)


def assert_below(pulled, coefficients, value, sources):
    """Check that a functional of sources, fractions, is at most coefficients . value, both of one point, exactly."""
    rows = fractions(coefficients[0].flatten(1))
    below = fractions(pulled.coefficients[0][0].flatten(1))
    for row, lower, constant in zip(rows, below, fractions(pulled.constant[0]), strict=True):
        exactly = sum(a * v for a, v in zip(row, value, strict=True))
        assert sum(a * v for a, v in zip(lower, sources, strict=True)) + constant <= exactly


def both_signs(values):
    return torch.stack([values, -values])[None]


@precisions
def test_sums_count_all_of_their_terms_in_centre_and_radius(dtype):
    values, ones = lost(dtype, COUNT)[None], torch.ones(1, COUNT, dtype=dtype)
    total = sum(fractions(values[0]))
    image, kernel, spec = values.view(1, 1, 64, 64), ones.view(1, 1, 64, 64), torch.ones(1, 1, 1, dtype=dtype)
    for center, radius, low in ((values, 0 * values, total), (0 * values, values, -total)):
        x, pixels = box_of(center, radius), box_of(center.view_as(image), radius.view_as(image))
        assert contains(linear.linear_interval(sound(), x, ones), [low], [total])
        assert contains(convolution.conv2d_interval(sound(), pixels, kernel), [low], [total])
        channels = box_of(center.view(1, COUNT, 1, 1), radius.view(1, COUNT, 1, 1))
        transposed = convolution.conv_transpose2d_interval(sound(), channels, ones.view(COUNT, 1, 1, 1))
        assert contains(transposed, [low], [total])
        assert contains(linear.specified_linear(sound(), x, spec, ones), [low], [total])
        assert contains(linear.specified(sound(), x, ones[None]), [low], [total])
        assert contains(pooling.avg_pool2d_interval(sound(), pixels, 64), [low / COUNT], [total / COUNT])
        assert contains(pooling.adaptive_avg_pool2d_interval(sound(), pixels, 1), [low / COUNT], [total / COUNT])
        mean, add_up = (record.interval for record in averages.RECORDS)
        assert contains(mean(sound(), pixels, (2, 3)), [low / COUNT], [total / COUNT])
        assert contains(add_up(sound(), pixels, (2, 3)), [low], [total])


@precisions
def test_biases_are_counted(dtype):
    """Where one added to a tiny product is all that is rounded."""
    bias = torch.randn(50, dtype=dtype)
    tiny = torch.finfo(dtype).eps / 8 * torch.randn(50, 1, dtype=dtype)
    one = torch.ones(1, 1, dtype=dtype)
    value = [a + b for a, b in zip(fractions(tiny[:, 0]), fractions(bias), strict=True)]
    assert contains(linear.linear_interval(sound(), box_of(one), tiny, bias), value)
    pixel = box_of(one.view(1, 1, 1, 1))
    assert contains(convolution.conv2d_interval(sound(), pixel, tiny.view(50, 1, 1, 1), bias), value)
    assert contains(convolution.conv_transpose2d_interval(sound(), pixel, tiny.view(1, 50, 1, 1), bias), value)
    statistics = torch.zeros(50, dtype=dtype), torch.full((50,), 0.75, dtype=dtype)
    normed = batch_norm_interval(sound(), box_of(tiny.T), *statistics, None, bias, eps=0.25)
    assert contains(normed, value)


@precisions
def test_sums_of_two_count_either_where_the_other_is_small(dtype):
    large, small = torch.randn(1, 50, dtype=dtype), torch.finfo(dtype).eps / 3 * torch.randn(1, 50, dtype=dtype)
    value = [a + b for a, b in zip(fractions(large[0]), fractions(small[0]), strict=True)]
    assert contains(arithmetic.add_interval(sound(), box_of(large), box_of(small)), value)
    assert contains(arithmetic.add_interval(sound(), box_of(small), box_of(large)), value)


def test_products_that_underflow_are_counted():
    """In float32; a product of two normal numbers, or of an average's share, is rounded to 0."""
    x, tiny = torch.tensor([[1e-37]]), torch.tensor([[1e-20]])
    product, subnormal = fractions(x)[0][0] * fractions(tiny)[0][0], 2.0**-149
    one, zero = torch.ones(1, 1, 1), torch.zeros(1)
    assert contains(linear.linear_interval(sound(), box_of(x), tiny), [product])
    assert contains(convolution.conv2d_interval(sound(), box_of(x.view(1, 1, 1, 1)), tiny.view(1, 1, 1, 1)), [product])
    assert contains(arithmetic.multiply_interval(sound(), box_of(x), tiny), [product])
    assert contains(arithmetic.add_interval(sound(), box_of(0 * x), box_of(x), alpha=tiny.item()), [product])
    quotient = [fractions(x)[0][0] / fractions(1 / tiny)[0][0]]
    assert contains(arithmetic.divide_interval(sound(), box_of(x), 1 / tiny), quotient)
    assert contains(linear.specified_linear(sound(), box_of(x), one, tiny), [product])
    assert contains(linear.specified(sound(), box_of(x), tiny[None]), [product])
    pixels = torch.zeros(1, 1, 2, 2)
    pixels[..., 0, 0] = subnormal
    mean = averages.RECORDS[0].interval
    for pool, size in ((pooling.avg_pool2d_interval, 2), (pooling.adaptive_avg_pool2d_interval, 1), (mean, (2, 3))):
        assert contains(pool(sound(), box_of(pixels), size), [Fraction(subnormal) / 4])
    normed = batch_norm_interval(sound(), box_of(x), zero, torch.full((1,), 0.75), tiny[0], None, eps=0.25)
    assert contains(normed, [product])
    # Of 0 and of what reaches from -2^-149 to 2^-149:
    assert contains(max_pool2d_interval(sound(), box_of(0 * pixels, pixels), 2), [Fraction(0)], [Fraction(subnormal)])


@pytest.fixture
def flushed():
    """Compute as processors do that flush subnormal numbers."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush subnormal numbers")
    yield
    torch.set_flush_denormal(False)
    torch.set_num_threads(threads)


@precisions
def test_every_product_that_is_flushed_is_counted(dtype, flushed):
    """Of numbers 0.9 and `tiny`, and of 0.9 and 1 times its root."""
    tiny, root = torch.finfo(dtype).tiny, torch.finfo(dtype).tiny ** 0.5
    one, many, x = (torch.full((1, n), v, dtype=dtype) for n, v in ((1, 1.0), (COUNT, 0.9), (COUNT, tiny)))
    spec, column, none = root * torch.ones(1, 1, COUNT, dtype=dtype), root * many.T, torch.zeros(COUNT, 1, dtype=dtype)
    boxes = {
        "linear": linear.linear_interval(sound(), box_of(x), many),
        "specified": linear.specified(sound(), box_of(x), many[None]),
        "merged": linear.specified_linear(sound(), box_of(x), one[None], many),
        "merged outputs": linear.specified_linear(sound(), box_of(1024 * one), spec, column),
        "merged biases": linear.specified_linear(sound(), box_of(0 * one), spec, none, column[:, 0]),
    }
    v = torch.full((COUNT,), torch.finfo(torch.float64).tiny, dtype=torch.float64)
    product = certificate._product_rounded_up(many.double().expand(COUNT, COUNT), v, COUNT)
    torch.set_flush_denormal(False)
    factor = COUNT * fractions(many)[0][0]
    for name, box in boxes.items():
        assert contains(box, [(1024 if name == "merged outputs" else 1) * factor * Fraction(tiny)]), name
    assert fractions(product)[0] >= factor * fractions(v)[0]


@precisions
def test_inputs_whose_share_of_rounding_is_flushed_are_counted(dtype, flushed):
    limits = torch.finfo(dtype)
    weight, point = torch.tensor([[1e10 / 3, -1e10 / 3]], dtype=dtype), torch.full((1, 2), limits.tiny, dtype=dtype)
    point *= torch.tensor([1.1, 1.7], dtype=dtype)
    box = linear.linear_interval(sound(), box_of(point), weight)
    torch.set_flush_denormal(False)
    assert contains(box, [sum(w * v for w, v in zip(fractions(weight)[0], fractions(point)[0], strict=True))])


@precisions
def test_inputs_so_small_that_the_share_of_their_rounding_underflows_are_counted(dtype):
    """Before weights so large that it matters, in pairs that cancel."""
    limits, generator = torch.finfo(dtype), torch.Generator().manual_seed(0)
    smallest, large = limits.tiny * limits.eps, {torch.float32: 1e30, torch.float64: 1e300}[dtype]
    first, half = torch.randn(8, 20, dtype=dtype, generator=generator), smallest * torch.arange(1, 21, dtype=dtype)
    weight, point = large * torch.cat([first, -first * (1 + limits.eps)], 1), torch.cat([half, half])
    rows, values = fractions(weight), fractions(point)
    exact = [sum(w * v for w, v in zip(row, values, strict=True)) for row in rows]
    assert contains(linear.linear_interval(sound(), box_of(point[None]), weight), exact)
    wide = [sum(abs(w) * v for w, v in zip(row, values, strict=True)) for row in rows]
    box = linear.linear_interval(sound(), box_of(0 * point[None], point[None]), weight)
    assert contains(box, [-v for v in wide], wide)


def test_more_outputs_than_a_merged_spec_counts_are_refused():
    zero = torch.zeros(1, 1)
    with pytest.raises(interval.PrecisionError, match="too many to round outwards"):
        linear.specified_linear(sound(), box_of(zero), zero.expand(1, 1, 2**22), zero.expand(2**22, 1))


def test_factors_that_underflow_are_counted_for_centre_and_radius():
    """A factor that float32 rounds to 0, beside a large value."""
    large, zero = torch.tensor([[1e30]]), torch.zeros(1, 1)
    value = fractions(large)[0][0] * Fraction(1e-50)
    assert contains(arithmetic.multiply_interval(sound(), box_of(large), 1e-50), [value])
    assert contains(arithmetic.multiply_interval(sound(), box_of(zero, large), 1e-50), [-value], [value])
    variance, weight = torch.tensor([0.5]), torch.tensor([3 * 2.0**-149])
    values = [fractions(large)[0][0] * fractions(weight)[0] / root for root in root_below_and_above(Fraction(1, 2))]
    for center, radius, low in ((large, zero, min(values)), (zero, large, -max(values))):
        normed = batch_norm_interval(sound(), box_of(center, radius), zero[0], variance, weight, None, eps=0.0)
        assert contains(normed, [low], [max(values)])
    for sign in (1, -1):
        row = torch.full((1, 1, 1), float(sign))
        pulled = batch_norm_backward(Backward(True), row, box_of(large), zero[0], variance, weight, None, eps=0.0)
        bound = fractions(pulled.coefficients[0])[0][0][0] * fractions(large)[0][0] + fractions(pulled.constant)[0][0]
        assert bound <= min(sign * value for value in values)


def test_an_eps_of_batch_norm_that_float32_rounds_to_few_digits_bounds_nothing():
    """1e-44 becomes 9.8e-45; 0.9 and a bit less 0.9 is little but the rounding of both; 1e39 is infinite."""
    one, zero = torch.ones(1, 1), torch.zeros(1)
    for variance, eps in ((0.0, 1e-44), (0.0, 1e-40), (0.9000001, -0.9), (-0.8999999, 0.9), (0.9, 1e39)):
        statistics = zero, torch.full((1,), variance)
        normed = batch_norm_interval(sound(), box_of(1e-3 * one), *statistics, eps=eps)
        assert not normed.radius.isfinite().any()
        pulled = batch_norm_backward(Backward(True), one[None], box_of(1e-3 * one), *statistics, eps=eps)
        assert not pulled.constant.isfinite().any()


@precisions
def test_merged_weights_and_biases_count_all_outputs(dtype):
    """As many as the spec has; a sum is over outputs alone, of one input."""
    spec, ones, total = (
        lost(dtype, COUNT)[None, None],
        torch.ones(COUNT, 1, dtype=dtype),
        [sum(fractions(lost(dtype, COUNT)))],
    )
    one = torch.ones(1, 1, dtype=dtype)
    for sign in (1, -1):
        values = [sign * value for value in total]
        assert contains(linear.specified_linear(sound(), box_of(one), sign * spec, ones), values)
        assert contains(linear.specified_linear(sound(), box_of(0 * one), sign * spec, ones, ones[:, 0]), values)


@precisions
def test_merged_weights_count_their_products_over_wide_boxes(dtype):
    """Two rows that cancel: all that is left of the merged weight is rounding, times the radius."""
    wide = box_of(torch.zeros(1, 50, dtype=dtype), torch.ones(1, 50, dtype=dtype))
    for _ in range(20):
        spec, first = torch.rand(1, 1, 2, dtype=dtype) + 1, torch.randn(50, dtype=dtype)
        weight = torch.stack([first, -first * (spec[0, 0, 0] / spec[0, 0, 1])])
        (s, t), rows = fractions(spec[0, 0]), fractions(weight)
        reach = sum(abs(s * a + t * b) for a, b in zip(*rows, strict=True))
        assert contains(linear.specified_linear(sound(), wide, spec, weight), [-reach], [reach])


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
        assert contains(linear.specified_linear(sound(), box_of(x), spec, weight, bias), [exact])
        if weight is small:
            assert contains(linear.specified_linear(sound(), box_of(zero, x), spec, weight, bias), [-exact], [exact])
    assert contains(linear.specified(sound(), box_of(large), double), [value * Fraction(1e-50)])
    reach = value * Fraction(1e-50)
    assert contains(linear.specified(sound(), box_of(zero, large), double), [-reach], [reach])


@precisions
def test_ends_and_boxes_between_them_are_rounded_outwards(dtype):
    center, radius = torch.randn(1, 200, dtype=dtype), torch.rand(1, 200, dtype=dtype)
    box = Box(center, radius)
    exact = Exact.of(box)
    assert exact.inside(*outward_ends(box))
    low, high = (torch.sort(torch.randn(2, 200, dtype=dtype), 0).values[:, None]).unbind()
    both = smaller_box(Box(center, torch.full_like(radius, 1e9)), low, high)
    assert encloses(both, Exact(fractions(low[0]), fractions(high[0])))
    one = torch.full((1, 1), 2.0**-149 if dtype == torch.float32 else 2.0**-1074, dtype=dtype)
    assert encloses(smaller_box(Box(one, one * 1e9), 0 * one, one), Exact([Fraction(0)], fractions(one[0])))
    assert encloses(Box(*relu_box(sound(), center, radius)), exact.relu())
    # The ends of a box, each rounded to nearest, and none of them outwards:
    box = Box(center, 10 ** -torch.linspace(0, 9, 200, dtype=dtype)[None])
    assert encloses(smaller_box(Box(box.center, torch.full_like(box.radius, 1e9)), box.lower, box.upper), Exact.of(box))
    # Of a network that only moves values, whose box is that of its input:
    assert exact.inside(*bound(nn.Identity().eval(), Box(center, radius)))


@precisions
def test_leaky_relus_count_the_rounding_of_either_end(dtype):
    """Where the other end is 0."""
    size = torch.rand(1, 100, dtype=dtype)
    for center, slope in ((-size, 0.1), (size, 0.1), (-size, -0.1)):
        box, factor = Box(center, size), Fraction(slope)
        ends = [[p if p > 0 else factor * p for p in row] for row in (Exact.of(box).low, Exact.of(box).high)]
        exact = Exact(*([choose(pair) for pair in zip(*ends, strict=True)] for choose in (min, max)))
        assert encloses(leaky_relu_interval(sound(), box_of(center, size), slope).box, exact)


def test_float32_boxes_and_bounds_contain_those_of_float64():
    center = torch.randn(1, 300, dtype=torch.float64)
    tiny = torch.full_like(center, 1e-46)
    for radius in (0 * center, center.abs(), tiny):
        for middle in (center, 0 * center, tiny):
            exact = Exact.of(Box(middle, radius))
            assert encloses(float32_box_around(box_of(middle, radius)).box.double(), exact)
            assert encloses(Box(middle.float(), _rounded_up(radius, middle, torch.zeros(1, 300))).double(), exact)
    for other in (center, -tiny):
        rounded = larger(torch.full_like(other, -torch.inf).float(), other)
        assert all(low <= value for low, value in zip(fractions(rounded[0]), fractions(other[0]), strict=True))


def test_boxes_of_pre_activations_count_the_recurrence_the_injection_and_underflow():
    zero, values = torch.zeros(1, 1, dtype=torch.float64), lost(torch.float64, COUNT)[None]
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
    inner, outer = (Box(*torch.tensor([[[c]], [[r]]]).double()) for c, r in ((center, radius), (0, 1)))
    assert certificate._excess(inner, outer).item() > 0


def test_a_contraction_that_only_rounding_makes_is_none(monkeypatch):
    """A kernel whose sum, from the left, stays below 1."""
    half_digit = 2.0**-54
    kernel = torch.full((1, 1, 7, 7), 0.99 * half_digit, dtype=torch.float64)
    kernel[..., 0, 0] = 1 - 40 * half_digit
    assert sum(fractions(kernel.flatten())) > 1
    monkeypatch.setattr(certificate, "channel_matrix", lambda weight: sum(weight.flatten(2).unbind(2)))
    assert not certificate.contraction(kernel).rate < 1


@precisions
def test_coefficients_of_a_value_that_is_broadcast_count_their_sum(dtype, monkeypatch):
    """In any order, such as this one."""

    def from_the_left(coefficients, *shape):
        total = torch.zeros(shape, dtype=dtype)
        for part in coefficients.flatten(2).unbind(2):
            total = total + part.view(shape)
        return total

    monkeypatch.setattr(torch.Tensor, "sum_to_size", from_the_left)
    a, pixel = both_signs(lost(dtype, 256)), box_of(torch.ones(1, 1, 1, 1, dtype=dtype))
    summed = combination(lambda x, y: [(x, 1), (y, 1)], arithmetic.add_interval)
    pulled = summed(Backward(True), a.view(1, 2, 1, 16, 16), pixel, torch.zeros(1, 1, 16, 16, dtype=dtype))
    assert_below(pulled, a, [Fraction(1)] * 256, [1])


def bound_at(program, values, rows, at):
    return fractions(joint_lower_bound(program, values, {at: rows}, Backward(True))[0])


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
        lower = bound_at(program, [x, linear.linear_interval(sound(), x, layer.weight)], rows, 1)
        for low, coefficients in zip(lower, rows[0], strict=True):
            assert low <= sum(fractions(coefficients)) * product


@precisions
def test_constants_of_affine_rules_count_their_products(dtype):
    """Of an input that is 0, so that the constants are all there is."""
    size = 50
    zero, bias = torch.zeros(1, size, dtype=dtype), torch.randn(size, dtype=dtype)
    a = torch.randn(1, 40, size, dtype=dtype)
    pixels = box_of(zero.view(1, size, 1, 1))
    statistics = torch.randn(size, dtype=dtype), torch.full((size,), 0.75, dtype=dtype)
    weight = torch.zeros(size, size, dtype=dtype)
    zeros, images = [0] * size, a.unsqueeze(3).unsqueeze(4)
    assert_below(linear.linear_backward(Backward(True), a, box_of(zero), weight, bias), a, fractions(bias), zeros)
    pulled = convolution.conv2d_backward(Backward(True), images, pixels, weight.view(size, size, 1, 1), bias)
    assert_below(pulled, a, fractions(bias), zeros)
    pulled = batch_norm_backward(Backward(True), images, pixels, 0 * bias, statistics[1], None, bias, eps=0.25)
    assert_below(pulled, a, fractions(bias), zeros)
    pulled = batch_norm_backward(Backward(True), images, pixels, *statistics, eps=0.25)
    assert_below(pulled, a, [-mean for mean in fractions(statistics[0])], zeros)
    add = combination(lambda x, y: [(x, 1), (y, 1)], arithmetic.add_interval)
    assert_below(add(Backward(True), a, box_of(zero), bias), a, fractions(bias), zeros)


@precisions
def test_scaled_and_pooled_coefficients_count_their_products(dtype):
    a, x = torch.randn(1, 60, 1, 2, 2, dtype=dtype), torch.randn(1, 1, 6, 6, dtype=dtype)
    rows = fractions(x[0, 0])
    windows = [sum(rows[3 * i + k][3 * j + m] for k in range(3) for m in range(3)) / 9 for i in (0, 1) for j in (0, 1)]
    pool = of_function(F.avg_pool2d).backward
    assert_below(pool(Backward(True), a, box_of(x), 3), a, windows, fractions(x.flatten()))
    row, values = torch.randn(1, 200, 1, dtype=dtype), torch.randn(1, 1, dtype=dtype)
    times = combination(lambda x, y: [(x, y)], arithmetic.multiply_interval)
    product = [Fraction(0.1) * fractions(values)[0][0]]
    assert_below(times(Backward(True), row, box_of(values), 0.1), row, product, fractions(values[0]))
    statistics = torch.zeros(1, dtype=dtype), torch.full((1,), 0.75, dtype=dtype)
    weight = torch.full((1,), 0.1, dtype=dtype)
    normed = batch_norm_backward(Backward(True), row, box_of(values), *statistics, weight, None, eps=0.25)
    assert_below(normed, row, [fractions(weight)[0] * fractions(values)[0][0]], fractions(values[0]))


def exact_adjoint(multiplier, preactivation, dtype, splits=None):
    """Return the adjoint's bound of a . z = multiplier . z for W = 0, where nothing is left to z's box."""
    z = box_of(torch.zeros_like(preactivation.center), torch.zeros_like(preactivation.center))
    around = relu.relaxation_of(Backward(True), preactivation)
    weight = torch.zeros(1, 1, dtype=dtype)
    return adjoint_bound._bound(Backward(True), multiplier, multiplier, around, weight, z, preactivation, splits)


@precisions
@pytest.mark.parametrize("kind", ["active", "inactive", "adjoint", "multiplier of an adjoint"])
def test_multipliers_of_splits_count_their_product(kind, dtype):
    """Where a small coefficient is lost beside them, or they beside a large multiplier of an adjoint."""
    p = torch.full((1, 1), -1.0 if kind == "inactive" else 1.0, dtype=dtype)
    small = torch.finfo(dtype).eps / 3 * torch.rand(1, 60, 1, dtype=dtype)
    a, splits = -small, 1 + torch.rand(1, 60, 1, dtype=dtype)
    if kind == "multiplier of an adjoint":
        a, splits = splits, small
        pulled = exact_adjoint(a, Box(p, 0 * p), dtype, splits)
    elif kind == "adjoint":
        around = relu.relaxation_of(Backward(True), Box(p, 0 * p))
        pulled = adjoint_bound._bound(Backward(True), a, a, around, 0 * p, box_of(p), Box(p, 0 * p), splits)
    else:
        backward = Backward(True, step="it", splits={"it": p}, slopes={relu.split_name("it"): splits})
        pulled = relu.relu_backward(backward, a, box_of(p))
    below = fractions((pulled.coefficients[0] * p)[0, :, 0])
    for low, constant, coefficient, split in zip(
        below, fractions(pulled.constant[0]), fractions(a[0, :, 0]), fractions(splits[0, :, 0]), strict=True
    ):
        assert low + constant <= (0 if kind == "inactive" else coefficient) - split


def test_constants_are_summed_in_float64(monkeypatch):
    """However few digits coefficients have: rules count the rounding of float32 for products, not for sums."""
    values, ones = lost(torch.float32, COUNT), torch.ones(1, 1, COUNT)
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
    around = relu.relaxation_of(Backward(True), z.box)
    value = fractions(z.center[0])
    for multiplier in (0 * a, a):
        pulled = adjoint_bound._bound(Backward(True), a, multiplier, around, weight, z, z.box)
        assert_below(pulled, a, value, value)


@precisions
def test_the_recurrence_of_an_adjoint_is_counted_where_it_cancels(dtype):
    """Rows of W come in pairs that all but cancel, so that coefficients are small and the sums behind them are not."""
    rows = 1e4 * torch.randn(20, 40, dtype=dtype)
    weight = torch.cat([rows, -rows + torch.randn(20, 40, dtype=dtype)])
    z, a = box_of(torch.rand(1, 40, dtype=dtype)), torch.randn(1, 20, 40, dtype=dtype)
    multiplier, around = torch.ones_like(a), relu.relaxation_of(Backward(True), z.box)
    pulled = adjoint_bound._bound(Backward(True), a, multiplier, around, weight, z, z.box)
    value = fractions(z.center[0])
    wz = [sum(w * v for w, v in zip(row, value, strict=True)) for row in fractions(weight)]
    assert_below(pulled, a, value, [v - w for v, w in zip(value, wz, strict=True)])


LONG = 200  # steps: more than the roundings that the slack of a few operators covers


def half_digits(dtype, sign=1):
    """Return a bit less than half of the last digit of 1: added to 1, or taken from -1, it is lost."""
    return sign * 0.49 * torch.finfo(dtype).eps


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
def test_a_sum_that_overflows_on_its_way_proves_nothing(dtype):
    """4 v - 3 v - 3 v, which is -2 v, where 4 v is infinite: not that it is positive, nor its negative negative."""
    x = torch.full((1, 3), 0.3 * torch.finfo(dtype).max, dtype=dtype)
    program, spec = trace(nn.Identity().eval(), linear=True), torch.tensor([[[4.0, -3.0, -3.0]]], dtype=dtype)
    for method in BOUNDS:
        assert not (lower_bounds(program, box_of(x), spec, method) > 0).any()
    assert prove_point(SearchQuery(program, values_of(program, box_of(x), sound()), -spec[0]), x) is None


COUNTEREXAMPLES = {  # the centre and the radius of a box, and a point to be moved inside
    "a radius beside which the centre is lost": (2.0**-60, 1.0, -1.0),
    "a radius less than a digit of the centre": (1.0, 0.6 * 2.0**-53, 0.5),
}


@pytest.mark.parametrize("name", COUNTEREXAMPLES)
def test_counterexamples_lie_in_the_box(name):
    center, radius, start = (torch.tensor([[v]], dtype=torch.float64) for v in COUNTEREXAMPLES[name])
    program, x = trace(nn.Sequential(nn.Identity()).eval(), linear=True), box_of(center, radius)
    for sign in (1.0, -1.0):
        problem = SearchQuery(program, values_of(program, x, sound()), torch.tensor([[sign]], dtype=torch.float64))
        point = prove_point(problem, start)
        if point is not None:
            assert abs(fractions(point)[0][0] - fractions(center)[0][0]) <= fractions(radius)[0][0]
            assert sign * fractions(point)[0][0] < 0


@pytest.mark.parametrize("weight", [0.3, 0.9])
def test_boxes_of_equilibria_that_crown_tightens_are_rounded_up_to_float32(weight):
    """Of points, so that nothing but rounding is left after images in float64."""
    point, h = FixedPoint(torch.tensor([[weight]])).eval(), box_of(1 + torch.rand(30, 1))
    z = rules._interval(sound(), h, point)
    refined = rules._refine(lambda box, *arguments: box, z, h, point)
    for example, value in enumerate(fractions(h.center[:, 0])):
        exact = [value / (1 - fractions(point.weight.detach())[0][0])]
        assert encloses(refined.box, Exact(exact, exact), example)


def test_the_recurrence_of_an_adjoint_counts_all_of_its_terms():
    """In float32: W has one column of ones, z_0 = 1, and the others are too small to cover what is lost."""
    size = 1024
    weight, small = torch.zeros(size, size), 2.0**-20
    weight[:, 0] = 1
    multiplier = both_signs(lost(torch.float32, size)).roll(1, dims=2)  # nothing of it at z_0 but half a digit
    point = torch.full((1, size), small)
    point[0, 0] = 1
    z = box_of(point)
    around = relu.relaxation_of(Backward(True), z.box)
    pulled = adjoint_bound._bound(Backward(True), 0 * multiplier, multiplier, around, weight, z, z.box)
    value = fractions(point[0])
    assert_below(pulled, 0 * multiplier, value, [v - value[0] for v in value])  # h = z - W z, all units active
