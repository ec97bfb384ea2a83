"""Outward rounding of interval bounds, against exact rational arithmetic, and arithmetic that must not be used."""

import warnings
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from oracles import DTYPES, Exact, Lambda, encloses, fractions, random_box, root_below_and_above
from pairs import every_pair
from torch import nn

from cerdeq import Box, bound
from cerdeq.bounds import Context, Interval, propagate, trace
from cerdeq.boxes import outward_ends


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


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", range(2))
def test_bounds_of_points_contain_the_exact_rational_value(seed, dtype):
    """Radius 0, and sums that cancel: all that is left is rounding."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(40, 8), nn.Linear(8, 3)).to(dtype).eval()
    with torch.no_grad():
        model[0].weight[:, 20:] = -model[0].weight[:, :20] * (1 + torch.finfo(dtype).eps)
    half = torch.rand(1, 20, dtype=dtype)
    point = torch.cat([half, half], dim=1)
    box = Box(point, torch.zeros_like(point))
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


def exact_leaky_relu(values: Exact, slope: float) -> Exact:
    """The range of p or slope * p over each interval, from its ends and 0."""
    ends = []
    for low, high in zip(values.low, values.high, strict=True):
        candidates = [low, high] + [Fraction(0)] * (low < 0 < high)
        ends.append([p if p > 0 else Fraction(slope) * p for p in candidates])
    return Exact([min(v) for v in ends], [max(v) for v in ends])


@pytest.mark.parametrize(
    ("slope", "size", "dtype"), every_pair([0.01, 0, 1, 1.5, -0.5, 1e-3, -1e4], [1e-6, 1.0, 1e6], DTYPES)
)
def test_leaky_relu_contains_the_exact_rational_interval(slope, size, dtype):
    model, box = nn.Sequential(nn.LeakyReLU(slope)).eval(), random_box(1, 200, scale=size, dtype=dtype)
    exact = exact_leaky_relu(Exact.of(box), slope)
    assert encloses(rule_image(model, box), exact) and exact.inside(*bound(model, box))


@pytest.mark.parametrize(("size", "dtype"), every_pair([1e-6, 1.0, 1e6], DTYPES))
def test_max_pooling_contains_the_exact_rational_interval(size, dtype):
    model, box = nn.Sequential(nn.MaxPool2d(2, stride=1)).eval(), random_box(1, 1, 6, 6, scale=size, dtype=dtype)
    pixels = Exact.of(box)
    windows = [[6 * (i + a) + j + b for a in (0, 1) for b in (0, 1)] for i in range(5) for j in range(5)]
    exact = Exact([max(pixels.low[n] for n in w) for w in windows], [max(pixels.high[n] for n in w) for w in windows])
    assert encloses(rule_image(model, box), exact) and exact.inside(*bound(model, box))


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
