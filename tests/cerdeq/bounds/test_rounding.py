"""Rounding, overflow and values that are not finite, against exact arithmetic, and arithmetic that must not be used."""

import itertools
import warnings
from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from graphs import deep, wild_box
from oracles import DTYPES, Exact, Lambda, exact_value, fractions, points_of, random_box, root_below_and_above
from pairs import every_pair
from torch import nn

from cerdeq import Box, bound
from cerdeq.bounds import BOUNDS, Backward, Context, Interval, lower_bounds, propagate, trace
from cerdeq.boxes import outward_ends
from cerdeq.operators.clamp import clamp_backward
from cerdeq.operators.relu import leaky_relu_backward, relaxation_of

pytestmark = pytest.mark.usefixtures("short_searches", "slow_float64")


def exact_bounds(model: nn.Sequential, box: Box) -> Exact:
    """Interval arithmetic of linear layers, batch norms and ReLUs in Fractions, layer by layer."""
    values = Exact.of(box)
    for layer in model:
        if isinstance(layer, nn.Linear):
            values = values.affine(fractions(layer.weight), None if layer.bias is None else fractions(layer.bias))
        elif isinstance(layer, nn.BatchNorm1d):
            values = exact_norm(layer, values)
        else:
            values = values.relu()
    return values


def exact_norm(layer: nn.BatchNorm1d, values: Exact) -> Exact:
    """Batch norm, its irrational square root enclosed between two Fractions."""
    mean, variance = fractions(layer.running_mean), fractions(layer.running_var)
    weight, bias = fractions(layer.weight), fractions(layer.bias)
    both = []
    for end in (0, 1):
        roots = [root_below_and_above(v + Fraction(layer.eps))[end] for v in variance]
        scale = [w / root for w, root in zip(weight, roots, strict=True)]
        diagonal = [[s if i == j else Fraction(0) for j in range(len(scale))] for i, s in enumerate(scale)]
        both.append(values.affine(diagonal, [b - m * s for b, m, s in zip(bias, mean, scale, strict=True)]))
    return both[0].hull(both[1])


@pytest.mark.parametrize(("scale", "dtype"), every_pair([1e-3, 1.0, 1e3], DTYPES))
@pytest.mark.parametrize("seed", range(2))
def test_bounds_contain_the_exact_rational_interval(seed, scale, dtype):
    torch.manual_seed(seed)
    layers = [nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 5, bias=seed % 2 == 0), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(5, 1), nn.Linear(1, 3)).to(dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(scale * torch.randn_like(parameter))
        model[1].running_mean.normal_(0, scale)
        model[1].running_var.uniform_(0.01, 2)
    box = random_box(1, 4, scale=scale, dtype=dtype)
    assert exact_bounds(model, box).inside(*bound(model, box))


UNDERFLOWING = {
    "multiply": (lambda x: x * 1e-50, Fraction(1e-50)),
    "multiply, subnormal": (lambda x: x * 1e-44, Fraction(1e-44)),
    "divide": (lambda x: x / 1e50, 1 / Fraction(1e50)),
    "divide, subnormal": (lambda x: x / 1e-44, 1 / Fraction(1e-44)),
    "alpha": (lambda x: torch.add(torch.zeros(1), x, alpha=1e-50), Fraction(1e-50)),
    "leaky relu": (lambda x: F.leaky_relu(-x, 1e-50), -Fraction(1e-50)),
    "leaky relu, subnormal": (lambda x: F.leaky_relu(-x, 1e-44), -Fraction(1e-44)),
}


@pytest.mark.parametrize("name", UNDERFLOWING)
def test_constants_below_the_precision_are_counted(name):
    """float32 rounds 1e-50 to 0 and 1e-44 to 9.8e-45, and a large value makes that visible."""
    function, factor = UNDERFLOWING[name]
    box = Box(torch.tensor([[1e30, 3e-7]]), torch.zeros(1, 2))
    if "divide, sub" in name:
        box = Box(1e-38 * box.center, box.radius)
    values = [factor * value for value in fractions(box.center[0])]
    lower, upper = bound(Lambda(lambda module, x: function(x)).eval(), box)
    if name.startswith("divide"):  # a divisor out of range bounds nothing
        assert not lower.isfinite().any() and not upper.isfinite().any()
    else:
        assert Exact(values, values).inside(lower, upper)


def test_a_constant_of_a_concatenation_that_underflows_is_counted():
    constant = torch.full((1, 1), 1e-50, dtype=torch.float64)
    box = Box(torch.ones(1, 1), torch.zeros(1, 1))
    lower, upper = outward_ends(rule_image(Lambda(lambda module, x: torch.cat([x, constant], 1)).eval(), box))
    values = [Fraction(1), Fraction(1e-50)]
    assert Exact(values, values).inside(lower, upper)


def rule_image(model, box):
    """Return what the rules make of a box, before `bound` adds its own margin to the ends."""
    with torch.no_grad():
        return propagate(trace(model.eval()), Interval(box.center, box.radius), Context(sound=True)).box


def test_relu_survives_underflow():
    """The upper end is the smallest number there is, and half of it is not 0."""
    for center in (-(2**-126), 2**-149):
        box = Box(torch.tensor([[center]]), torch.tensor([[abs(center) + 2**-149]]))
        assert Exact.of(box).relu().inside(*bound(nn.Sequential(nn.ReLU()).eval(), box))


@pytest.mark.parametrize("weight", [1e30, -1e30])
@pytest.mark.parametrize("last", [nn.LeakyReLU(-0.5), nn.LeakyReLU(0), nn.MaxPool2d(2)], ids=str)
def test_overflow_before_an_activation_is_never_a_bound(last, weight):
    model = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), last).eval()
    nn.init.constant_(model[0].weight, weight)
    points = torch.tensor([[[[1e20, -1e20], [0.0, 1.0]]], [[[-1e20, -1e20], [-1e20, -1e20]]]])
    lower, upper = bound(model, Box(points, torch.ones_like(points)))
    with torch.no_grad():
        exact = model.double()(points.double())
    assert not (lower.double() > exact).any() and not (upper.double() < exact).any()


def test_a_convolution_backend_that_does_not_round_as_counted_is_not_used():
    """Without oneDNN, float32 batches of 16 and more go to NNPACK, whose Winograd errors scale with the whole tile."""
    model = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False)).eval()
    x = torch.full((16, 8, 16, 16), 1e-6)
    x[:, :, 8, 8] = 1.0
    with torch.no_grad():
        value = F.conv2d(x.double(), model[0].weight.double(), padding=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with torch.backends.mkldnn.flags(enabled=False):
            lower, upper = bound(model, Box(x, torch.zeros_like(x)))
    assert (lower.double() <= value).all() and (value <= upper.double()).all()


@pytest.mark.gpu
def test_tensor_cores_do_not_loosen_the_arithmetic_unnoticed():
    """torch lets cuDNN round float32 convolutions to TF32, and choose Winograd. Bounds do neither."""
    model = nn.Sequential(nn.Conv2d(64, 64, 3, padding=1, bias=False)).cuda().eval()
    x = torch.rand(32, 64, 16, 16).cuda()
    lower, upper = bound(model, Box(x, torch.zeros_like(x)))
    with torch.no_grad():
        value = model.double()(x.double())
    assert (lower.double() <= value).all() and (value <= upper.double()).all()


def test_too_many_terms_for_the_precision_are_refused():
    model = nn.Sequential(nn.Linear(64, 2)).to(torch.bfloat16).eval()
    with pytest.raises(ValueError, match="too many to round outwards"):
        bound(model, random_box(1, 64, dtype=torch.bfloat16))


# ---------------------------------------------------------------------------------------------------------------------
# Rounding


def exact_points(box, inside=3):
    """All corners of a box [1, n], and some points inside, exactly."""
    center, radius = fractions(box.center[0]), fractions(box.radius[0])
    signs = list(itertools.product((-1, 1), repeat=len(center)))
    signs += [[Fraction(v) for v in row] for row in (2 * torch.rand(inside, len(center)) - 1).tolist()]
    return [[c + s * r for c, s, r in zip(center, row, radius, strict=True)] for row in signs]


def assert_exactly_inside(model, box, method, spec=None, finite=True):
    lower, upper = bound(model, box, method, spec)
    if finite:
        assert lower.isfinite().all() and upper.isfinite().all()
    for point in exact_points(box):
        values = exact_value(model, point)
        if spec is not None:
            values = [sum(s * v for s, v in zip(row, values, strict=True)) for row in fractions(spec[0])]
        for low, value, high in zip(lower[0].tolist(), values, upper[0].tolist(), strict=True):
            assert low != float("inf") and high != -float("inf")
            assert not (np.isfinite(low) and Fraction(low) > value), float(Fraction(low) - value)
            assert not (np.isfinite(high) and Fraction(high) < value), float(value - Fraction(high))


@pytest.mark.parametrize(("seed", "dtype", "method"), every_pair(range(4), DTYPES, BOUNDS))
def test_bounds_contain_the_exact_values_of_small_networks(seed, dtype, method):
    torch.manual_seed(seed)
    act = nn.ReLU() if seed % 2 else nn.LeakyReLU([0.1, 1.7, -0.3][seed // 2])
    model = nn.Sequential(nn.Linear(3, 5), act, nn.Linear(5, 4), act, nn.Linear(4, 2)).to(dtype).eval()
    box = random_box(1, 3, scale=10.0 ** -(2 * seed), dtype=dtype)
    assert_exactly_inside(model, box, method)
    assert_exactly_inside(model, box, method, torch.randn(1, 3, 2, dtype=dtype).double())


@pytest.mark.parametrize(("seed", "dtype", "method"), every_pair(range(4), DTYPES, BOUNDS))
def test_bounds_contain_the_exact_value_where_all_cancels(seed, dtype, method):
    """Pairs of weights that differ in the last digit: all that is left is rounding."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(2, 10), nn.ReLU(), nn.Linear(10, 6), nn.LeakyReLU(0.3), nn.Linear(6, 2))
    model = model.to(dtype).eval()
    with torch.no_grad():
        for layer in model[::2]:
            half = layer.in_features // 2
            layer.weight[:, half : 2 * half] = -layer.weight[:, :half] * (1 + torch.finfo(dtype).eps)
            layer.bias.mul_(1e-6)
        model[0].weight[5:] = model[0].weight[:5]
        model[0].bias[5:] = model[0].bias[:5]
        model[2].weight[3:] = model[2].weight[:3]
        model[2].bias[3:] = model[2].bias[:3]
    point = torch.rand(1, 1, dtype=dtype).expand(1, 2)
    for radius in (0.0, 1e-3):
        assert_exactly_inside(model, Box(point, torch.full_like(point, radius)), method)


@pytest.mark.parametrize(
    ("scales", "method"), every_pair([(1e-20, 1, 1e20), (1e-30, 1e-30, 1e30), (1e30, 1e30, 1e-30)], BOUNDS)
)
def test_underflow_and_overflow_are_never_a_wrong_bound(scales, method):
    torch.manual_seed(2)
    model = nn.Sequential(*[part for _ in scales for part in (nn.Linear(2, 2), nn.ReLU())][:-1]).eval()
    with torch.no_grad():
        for layer, scale in zip(model[::2], scales, strict=True):
            layer.weight.abs_().mul_(scale)
            layer.bias.mul_(scale)
    for size in (1e-20, 1.0, 1e20):
        box = Box(torch.full((1, 2), size), torch.full((1, 2), size / 2))
        assert_exactly_inside(model, box, method, finite=scales == (1e-20, 1, 1e20) and size == 1)


# ---------------------------------------------------------------------------------------------------------------------
# The lines around a leaky ReLU, in exact arithmetic


SLOPES = [0.0, 0.1, 1.0, 1.7, -0.3, -2.0, 1e-3]


def leaky_of(p, slope):
    return p if p >= 0 else Fraction(slope) * p


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("slope", SLOPES)
def test_lines_enclose_the_activation_exactly(slope, dtype):
    """The offset makes up for the rounded slope of the chord; the free line is off by the rounding of its slope."""
    box = wild_box(150, dtype)
    share = torch.rand(150, 2, 1, dtype=dtype)
    share[::5], share[1::5] = 0, 1
    relaxation = relaxation_of(Backward(sound=True, step="here", slopes={"here": share}), box, slope)
    eps = Fraction(2 * torch.finfo(dtype).eps)
    assert relaxation.convex == (slope <= 1)
    for n in range(150):
        c, r = Fraction(box.center[n].item()), Fraction(box.radius[n].item())
        chord, offset = (Fraction(part[n].item()) for part in (relaxation.slope, relaxation.offset))
        for p in [c - r, c + r] + [Fraction(0)] * (c - r < 0 < c + r):
            rounding = 0 if c - r < 0 < c + r else eps * abs(p) * max(1, abs(Fraction(slope)))
            value = leaky_of(p, slope)
            gap = chord * p + offset - value
            assert (gap if relaxation.convex else -gap) >= -rounding, (c, r, p, float(gap))
            for row in range(2):
                gap = value - Fraction(relaxation.free[n, row].item()) * p
                rounding = eps * abs(p) * max(1, abs(Fraction(slope)))
                assert (gap if relaxation.convex else -gap) >= -rounding, (c, r, p, float(gap))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("slope", SLOPES)
def test_the_leaky_relu_rule_is_sound_in_exact_arithmetic(slope, dtype):
    box = wild_box(100, dtype)
    coefficients = torch.cat([torch.rand(100, 1, 1), -torch.rand(100, 1, 1)], dim=1).to(dtype) * 3
    for shares in ({}, {"here": torch.rand(100, 2, 1, dtype=dtype)}):
        ctx = Backward(sound=True, step="here", slopes=shares)
        result = leaky_relu_backward(ctx, coefficients, Interval(box.center, box.radius), slope)
        assert result.constant.isfinite().all()
        for n, k in itertools.product(range(100), range(2)):
            c, r = Fraction(box.center[n].item()), Fraction(box.radius[n].item())
            a, pulled = Fraction(coefficients[n, k].item()), Fraction(result.coefficients[0][n, k].item())
            constant = Fraction(result.constant[n, k].item())
            for p in [c - r, c + r] + [Fraction(0)] * (c - r < 0 < c + r):
                assert pulled * p + constant <= a * leaky_of(p, slope), (n, k, float(p))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("limits", [(-0.1, 0.3), (0.0, 1e-20), (None, -1e25), (1e25, None), (7e-31, 1e30), (1, 0.5)])
def test_the_clamp_rule_is_sound_in_exact_arithmetic(limits, dtype):
    """Also where the limits are rounded. The extremes are at the ends of the box and at the limits inside."""
    box = wild_box(150, dtype)
    coefficients = torch.cat([torch.rand(150, 1, 1), -torch.rand(150, 1, 1)], dim=1).to(dtype) * 3
    result = clamp_backward(Backward(sound=True, step="here"), coefficients, Interval(box.center, box.radius), *limits)
    assert result.constant.isfinite().all()
    low, high = (Fraction(limit) if limit is not None else None for limit in limits)
    for n, k in itertools.product(range(150), range(2)):
        c, r = Fraction(box.center[n].item()), Fraction(box.radius[n].item())
        a, pulled = Fraction(coefficients[n, k].item()), Fraction(result.coefficients[0][n, k].item())
        for p in [c - r, c + r] + [limit for limit in (low, high) if limit is not None and abs(limit - c) < r]:
            value = p if low is None else max(p, low)
            value = value if high is None else min(value, high)
            assert pulled * p + Fraction(result.constant[n, k].item()) <= a * value, (n, k, float(p))


# ---------------------------------------------------------------------------------------------------------------------
# Not a number, infinity, overflow


NONE = [float("nan"), float("inf"), -float("inf")]


def with_pool(dtype=torch.float64):
    parts = [nn.Conv2d(1, 2, 2, padding=1), nn.LeakyReLU(0.2), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 2)]
    return nn.Sequential(*parts).to(dtype).eval()


@pytest.mark.parametrize(("layer", "bad", "method", "dtype"), every_pair([0, 2, 4], NONE, BOUNDS, DTYPES))
def test_bad_weights_give_no_finite_bound_of_what_depends_on_them(layer, bad, method, dtype):
    model = deep(dtype)
    with torch.no_grad():
        model[layer].weight.fill_(0.5)
        model[layer].weight[0, 0] = bad
        for later in (2, 4):
            if later > layer:
                model[later].weight.copy_(torch.rand_like(model[later].weight) + 0.1)
    box = Box(torch.rand(2, 3, dtype=dtype) + 1, torch.full((2, 3), 0.1, dtype=dtype))
    lower, upper = bound(model, box, method)
    with torch.no_grad():
        values = torch.stack([model(x) for x in points_of(box, 20)])
    undefined = values.isnan().any(0)
    assert not (lower.isfinite() & (undefined | (values == -torch.inf).any(0))).any()
    assert not (upper.isfinite() & (undefined | (values == torch.inf).any(0))).any()
    assert not (lower == torch.inf).logical_and(values.isfinite().any(0)).any()


BAD = [
    ("center", float("inf")),
    ("center", float("nan")),
    ("center", 1e308),
    ("radius", float("inf")),
    ("radius", 1e308),
]


@pytest.mark.parametrize(("make", "bad", "method"), every_pair([deep, with_pool], BAD, BOUNDS))
def test_a_bad_example_leaves_its_neighbours_alone(bad, make, method):
    torch.manual_seed(4)
    part, bad = bad
    model = make()
    shape = (3,) if make is deep else (1, 3, 3)
    box = random_box(3, *shape)
    alone = bound(model, Box(box.center[::2], box.radius[::2]), method)
    getattr(box, part)[1].flatten()[0] = bad
    lower, upper = bound(model, box, method)
    torch.testing.assert_close((lower[::2], upper[::2]), alone, rtol=1e-12, atol=1e-12)
    assert not lower[1].isfinite().any() or bad == 1e308
    with torch.no_grad():
        values = torch.stack([model(x) for x in points_of(box, 20)])[:, 1]
    assert not (lower[1] > values + 1e-6 * values.abs()).any() and not (upper[1] < values - 1e-6 * values.abs()).any()


@pytest.mark.parametrize("method", BOUNDS)
def test_a_bound_too_large_for_its_precision_is_none(method):
    """The sum is 6e38, more than float32 holds: nothing above 6e38 may be claimed to be a lower bound."""
    model = nn.Sequential(nn.ReLU()).eval()
    box = Box(torch.full((1, 2), 3e38), torch.zeros(1, 2))
    x, spec = Interval(box.center, box.radius), torch.ones(1, 1, 2)
    assert not lower_bounds(trace(model, linear=True), x, spec, method).item() > 6e38
    assert not bound(model, box, method, spec)[0].item() > 6e38
    assert not bound(model, box, method, -spec)[1].item() < -6e38
