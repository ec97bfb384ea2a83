"""Terms by which boxes count rounding, each where nothing else covers it: against exact rational arithmetic.

If one is dropped from its rule, a test of this module fails.
"""

from fractions import Fraction

import pytest
import torch
from lost_digits import COUNT, box_of, contains, lost, precisions, sound
from oracles import Exact, encloses, fractions, root_below_and_above

from cerdeq import Box
from cerdeq.bounds import Backward
from cerdeq.bounds.float32 import float32_box_around
from cerdeq.boxes import outward_ends, smaller_box
from cerdeq.equilibrium import certificate
from cerdeq.equilibrium.rules import _rounded_up
from cerdeq.operators import arithmetic, convolution, interval, linear, pooling
from cerdeq.operators.batch_norm import batch_norm_backward, batch_norm_interval
from cerdeq.operators.pooling import max_pool2d_interval
from cerdeq.operators.relu import leaky_relu_interval, relu_box


@precisions
def test_sums_count_all_of_their_terms_in_centre_and_radius(dtype):
    values, ones = lost(dtype)[None], torch.ones(1, COUNT, dtype=dtype)
    total = sum(fractions(values[0]))
    image, kernel, spec = values.view(1, 1, 64, 64), ones.view(1, 1, 64, 64), torch.ones(1, 1, 1, dtype=dtype)
    for center, radius, low in ((values, 0 * values, total), (0 * values, values, -total)):
        x, pixels = box_of(center, radius), box_of(center.view_as(image), radius.view_as(image))
        assert contains(linear.linear_interval(sound(), x, ones), [low], [total])
        assert contains(convolution.conv2d_interval(sound(), pixels, kernel), [low], [total])
        assert contains(linear.specified_linear(sound(), x, spec, ones), [low], [total])
        assert contains(linear.specified(sound(), x, ones[None]), [low], [total])
        assert contains(pooling.avg_pool2d_interval(sound(), pixels, 64), [low / COUNT], [total / COUNT])
        assert contains(pooling.adaptive_avg_pool2d_interval(sound(), pixels, 1), [low / COUNT], [total / COUNT])


@precisions
def test_biases_are_counted(dtype):
    """Where one added to a tiny product is all that is rounded."""
    bias = torch.randn(50, dtype=dtype)
    tiny = torch.finfo(dtype).eps / 8 * torch.randn(50, 1, dtype=dtype)
    one, value = (
        torch.ones(1, 1, dtype=dtype),
        [a + b for a, b in zip(fractions(tiny[:, 0]), fractions(bias), strict=True)],
    )
    assert contains(linear.linear_interval(sound(), box_of(one), tiny, bias), value)
    pixel = box_of(one.view(1, 1, 1, 1))
    assert contains(convolution.conv2d_interval(sound(), pixel, tiny.view(50, 1, 1, 1), bias), value)
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
    assert contains(
        arithmetic.divide_interval(sound(), box_of(x), 1 / tiny), [fractions(x)[0][0] / fractions(1 / tiny)[0][0]]
    )
    assert contains(linear.specified_linear(sound(), box_of(x), one, tiny), [product])
    assert contains(linear.specified(sound(), box_of(x), tiny[None]), [product])
    pixels = torch.zeros(1, 1, 2, 2)
    pixels[..., 0, 0] = subnormal
    for pooled in (
        pooling.avg_pool2d_interval(sound(), box_of(pixels), 2),
        pooling.adaptive_avg_pool2d_interval(sound(), box_of(pixels), 1),
    ):
        assert contains(pooled, [Fraction(subnormal) / 4])
    normed = batch_norm_interval(sound(), box_of(x), zero, torch.full((1,), 0.75), tiny[0], None, eps=0.25)
    assert contains(normed, [product])
    pooled = max_pool2d_interval(
        sound(), box_of(0 * pixels, pixels), 2
    )  # of 0 and of what reaches from -2^-149 to 2^-149
    assert contains(pooled, [Fraction(0)], [Fraction(subnormal)])


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
    assert contains(
        linear.linear_interval(sound(), box_of(0 * point[None], point[None]), weight), [-v for v in wide], wide
    )


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
    spec, ones, total = lost(dtype)[None, None], torch.ones(COUNT, 1, dtype=dtype), [sum(fractions(lost(dtype)))]
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
    after = Box(*relu_box(sound(), center, radius))
    assert encloses(after, exact.relu())


@precisions
def test_boxes_between_rounded_ends_contain_the_exact_ones(dtype):
    """The ends of a box, each rounded to nearest, and none of them outwards."""
    box = Box(torch.randn(1, 200, dtype=dtype), 10 ** -torch.linspace(0, 9, 200, dtype=dtype)[None])
    assert encloses(smaller_box(Box(box.center, torch.full_like(box.radius, 1e9)), box.lower, box.upper), Exact.of(box))


@precisions
def test_leaky_relus_count_the_rounding_of_either_end(dtype):
    """Where the other end is 0."""
    size = torch.rand(1, 100, dtype=dtype)
    for center, slope in ((-size, 0.1), (size, 0.1), (-size, -0.1)):
        box, factor = Box(center, size), Fraction(slope)
        ends = [[p if p > 0 else factor * p for p in row] for row in (Exact.of(box).low, Exact.of(box).high)]
        exact = Exact(*([choose(pair) for pair in zip(*ends, strict=True)] for choose in (min, max)))
        assert encloses(leaky_relu_interval(sound(), box_of(center, size), slope).box, exact)


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
