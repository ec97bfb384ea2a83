"""Outward rounding of interval bounds, against exact rational arithmetic, and arithmetic that must not be used."""

import copy
import warnings
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from oracles import DTYPES, Exact, Lambda, dense_affine, encloses, fractions, random_box, root_below_and_above
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


CONSTANTS = {  # an operator with a constant, and the exact ends from those of the box
    "add": (lambda x: 0.1 + x, lambda t, low, high: (t + low, t + high)),
    "subtract": (lambda x: 0.1 - x, lambda t, low, high: (t - high, t - low)),
    "alpha": (lambda x: torch.add(x, x, alpha=0.1), lambda t, low, high: (low + t * low, high + t * high)),
    "multiply": (lambda x: x * 0.1, lambda t, low, high: (t * low, t * high)),
    "divide": (lambda x: x / 0.1, lambda t, low, high: (low / t, high / t)),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CONSTANTS)
def test_constants_that_no_float_holds_are_counted(name, dtype):
    """0.1 is 0.1 as Python wrote it, whatever precision it meets."""
    (operation, exact_ends), box = CONSTANTS[name], random_box(1, 50, dtype=dtype)
    exact = Exact.of(box)
    ends = [exact_ends(Fraction(0.1), low, high) for low, high in zip(exact.low, exact.high, strict=True)]
    expected = Exact([low for low, _ in ends], [high for _, high in ends])
    assert expected.inside(*bound(Lambda(lambda module, x: operation(x)).eval(), box))


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


@pytest.mark.parametrize("dtype", DTYPES)
def test_pooling_contains_the_exact_rational_interval(dtype):
    box = random_box(1, 1, 3, 3, dtype=dtype)
    ninth = [[Fraction(1, 9)] * 9]
    for pool in (nn.AvgPool2d(3), nn.AdaptiveAvgPool2d(1)):
        assert Exact.of(box).affine(ninth).inside(*bound(nn.Sequential(pool).eval(), box))


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


@pytest.mark.parametrize(("size", "dtype"), every_pair([1e-30, 1.0, 1e30], DTYPES))
def test_what_only_moves_values_contains_the_exact_rational_interval(size, dtype):
    """Also where a constant beside them is of another precision."""
    third = torch.full((1, 1), size / 3, dtype=torch.float64)
    model = Lambda(lambda module, x: torch.cat([-x, third, x.view(1, 5, 2).reshape(x.shape[0], -1)], 1)).eval()
    box = random_box(1, 10, scale=size, dtype=dtype)
    low, high = Exact.of(box).low, Exact.of(box).high
    constant = [Fraction(third.item())]
    exact = Exact([-v for v in high] + constant + low, [-v for v in low] + constant + high)
    image = rule_image(model, box)  # `bound` refuses constants of one example
    assert encloses(image, exact) and exact.inside(*outward_ends(image))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", range(2))
def test_convolution_contains_the_exact_rational_interval(seed, dtype):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(2, 3, 3, stride=2, padding=1)).to(dtype).eval()
    matrix, _ = dense_affine(lambda x: F.conv2d(x, model[0].weight, stride=2, padding=1), (2, 4, 4), dtype)
    offset = [Fraction(b) for b in model[0].bias.tolist() for _ in range(4)]
    box = random_box(1, 2, 4, 4, dtype=dtype)
    assert Exact.of(box).affine(fractions(matrix), offset).inside(*bound(model, box))


def rule_image(model, box):
    """Return what the rules make of a box, before `bound` adds its own margin to the ends."""
    with torch.no_grad():
        return propagate(trace(model.eval()), Interval(box.center, box.radius), Context(sound=True)).box


@pytest.mark.parametrize(("size", "dtype"), every_pair([1e-6, 1.0, 1e6], DTYPES))
def test_each_rule_counts_its_own_rounding(size, dtype):
    """One operation at a time: a later rule's margin must not be what makes an earlier one right."""
    linear, norm = nn.Linear(1, 50).to(dtype), nn.BatchNorm1d(50).to(dtype)
    with torch.no_grad():
        norm.running_mean.normal_(0, 1000)
        norm.running_var.uniform_(0.01, 2)
        norm.weight.normal_()
        norm.bias.normal_(0, 1e-3)
    one, many = random_box(1, 1, scale=size, dtype=dtype), random_box(1, 50, scale=size, dtype=dtype)
    assert encloses(rule_image(nn.Sequential(linear), one), exact_bounds([linear], one))
    assert encloses(rule_image(nn.Sequential(norm), many), exact_bounds([norm.eval()], many))
    assert encloses(rule_image(nn.Sequential(nn.ReLU()), many), Exact.of(many).relu())
    with torch.no_grad():
        norm.bias.copy_(norm.running_mean * norm.weight / (norm.running_var + norm.eps).sqrt())  # it cancels the mean
    assert encloses(rule_image(nn.Sequential(norm), many), exact_bounds([norm], many))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", range(2))
def test_merged_specs_that_cancel_contain_the_exact_rational_interval(seed, dtype):
    """All that is left of weights and biases after the merger is its rounding, and that of a float64 spec."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 7)).to(dtype).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.randn(7, 1) * torch.randn(1, 6))  # rank one, up to rounding
        model[0].bias.copy_(3 * model[0].weight[:, 0])
        spec, first = torch.randn(1, 20, 7, dtype=torch.float64), model[0].weight[:, 0].double()
        spec[0, :, 6] = -(spec[0, :, :6] @ first[:6]) / first[6]
    box = Box(torch.randn(1, 6, dtype=dtype), torch.zeros(1, 6, dtype=dtype))
    rows, plain = fractions(spec[0]), copy.deepcopy(model.state_dict())
    for zeroed in ("neither", "0.bias", "0.weight"):
        model.load_state_dict({name: value * (name != zeroed) for name, value in plain.items()})
        weight, bias = fractions(model[0].weight), fractions(model[0].bias)
        merged = [[sum(s * weight[n][m] for n, s in enumerate(row)) for m in range(6)] for row in rows]
        offset = [sum(s * b for s, b in zip(row, bias, strict=True)) for row in rows]
        with torch.no_grad():
            assert Exact.of(box).affine(merged, offset).inside(*bound(model, box, spec=spec)), zeroed


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", range(2))
def test_unmerged_spec_contains_the_exact_rational_interval(seed, dtype):
    torch.manual_seed(seed)
    box, spec = random_box(1, 5, dtype=dtype), torch.randn(1, 4, 5, dtype=torch.float64)
    exact = Exact.of(box).relu().affine(fractions(spec[0]))
    assert exact.inside(*bound(nn.Sequential(nn.ReLU()).eval(), box, spec=spec))


@pytest.mark.parametrize(("weight", "point"), [(1e-30, 1e-20), (-1e-30, 1e-20), (1e-40, 1e-10), (3e-23, 3e-23)])
def test_bounds_survive_underflow(weight, point):
    """A product that float32 rounds to 0 is not 0: bounds hold in real arithmetic."""
    model = nn.Sequential(nn.Linear(1, 1, bias=False)).eval()
    nn.init.constant_(model[0].weight, weight)
    box = Box(torch.tensor([[point]]), torch.zeros(1, 1))
    assert exact_bounds(model, box).inside(*bound(model, box))


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
