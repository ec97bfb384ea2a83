"""Interval bounds of every operator and of whole networks, against oracles that know nothing of the rules."""

import copy
import operator
import warnings
from dataclasses import dataclass
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from oracles import (
    DTYPES,
    Exact,
    Lambda,
    affine_extremes,
    assert_contains,
    corners_and_grid,
    dense_affine,
    encloses,
    fractions,
    points_of,
    random_box,
    root_below_and_above,
)
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from cerdeq import Box, LinfBall, bound, margin_spec
from cerdeq.bounds import Context, Interval, Operator, UnsupportedOperator, operators, propagate, register, trace
from cerdeq.bounds.operators import TABLE

torch.set_num_threads(1)


@pytest.fixture
def own_operators(monkeypatch):
    """What a test registers is forgotten after it."""
    monkeypatch.setattr(operators, "_by_function", dict(operators._by_function))
    monkeypatch.setattr(operators, "_by_module", dict(operators._by_module))


# ---------------------------------------------------------------------------------------------------------------------
# Every operator of the table, in every form


@dataclass(frozen=True)
class Case:
    """A model around one operator. shape: of its input, without the batch."""

    name: str
    make: object
    shape: tuple[int, ...]


def conv(kernel, **options):
    return lambda: nn.Conv2d(4, 6, kernel, **options)


def function(forward, **shapes):
    """A model that calls `forward(x, **parameters)`."""
    return lambda: Lambda(
        lambda module, x: forward(x, **{name: getattr(module, name) for name in shapes}),
        **{name: torch.randn(shape) for name, shape in shapes.items()},
    )


def normed(layer):
    """A batch norm whose statistics and parameters are not the defaults."""

    def make():
        with torch.no_grad():
            layer_ = layer()
            layer_.running_mean.normal_()
            layer_.running_var.uniform_(0.01, 3)
            if layer_.affine:
                layer_.weight.normal_()
                layer_.bias.normal_()
        return nn.Sequential(layer_)

    return make


class FunctionalNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.randn(3))
        self.register_buffer("variance", torch.rand(3) + 0.1)
        self.weight = nn.Parameter(torch.randn(3))

    def forward(self, x):
        return F.batch_norm(x, self.mean, self.variance, self.weight, eps=1e-3)


IMAGE, VECTOR = (4, 7, 6), (5,)
AFFINE = {
    "conv2d": [
        Case("plain", conv(3), IMAGE),
        Case("padded", conv(3, padding=1), IMAGE),
        Case("stride", conv(3, stride=2, padding=1), IMAGE),
        Case("uneven", conv((3, 2), stride=(2, 1), padding=(1, 2)), IMAGE),
        Case("dilated", conv(3, padding=2, dilation=2), IMAGE),
        Case("groups", conv(3, groups=2, stride=2), IMAGE),
        Case("depthwise", lambda: nn.Conv2d(4, 4, 3, groups=4, padding=1, bias=False), IMAGE),
        Case("pointwise", conv(1, bias=False), IMAGE),
        Case("same", conv((3, 5), padding="same", dilation=(2, 1)), IMAGE),
        Case("valid", conv(3, padding="valid"), IMAGE),
        Case(
            "function",
            function(lambda x, w, b: F.conv2d(x, w, b, stride=2, padding=1), w=(3, 4, 3, 3), b=(3,)),
            IMAGE,
        ),
        Case("function positional", function(lambda x, w: F.conv2d(x, w, None, 1, 2, 2, 2), w=(6, 2, 3, 3)), IMAGE),
    ],
    "linear": [
        Case("module", lambda: nn.Linear(5, 3), VECTOR),
        Case("no bias", lambda: nn.Linear(5, 3, bias=False), VECTOR),
        Case("last dimension", lambda: nn.Linear(6, 3), IMAGE),
        Case("function", function(F.linear, weight=(3, 5), bias=(3,)), VECTOR),
        Case("function of a changed weight", function(lambda x, w: F.linear(x, w.abs() * 2), w=(3, 5)), VECTOR),
    ],
    "batch_norm": [
        Case("1d", normed(lambda: nn.BatchNorm1d(5)), VECTOR),
        Case("1d of sequences", normed(lambda: nn.BatchNorm1d(3)), (3, 4)),
        Case("2d", normed(lambda: nn.BatchNorm2d(4)), IMAGE),
        Case("not affine", normed(lambda: nn.BatchNorm2d(4, affine=False, eps=0.1)), IMAGE),
        Case("function", FunctionalNorm, (3, 4)),
    ],
    "add": [
        Case("number", function(lambda x: x + 0.3), VECTOR),
        Case("number first", function(lambda x: 2 + x), VECTOR),
        Case("tensor", function(lambda x, c: x + c, c=(4, 1, 1)), IMAGE),
        Case("tensor first", function(lambda x, c: c + x, c=(4, 1, 1)), IMAGE),
        Case("function", function(lambda x, c: torch.add(x, c, alpha=-3), c=(5,)), VECTOR),
        Case("function, constant first", function(lambda x, c: torch.add(c, x, alpha=0.7), c=(5,)), VECTOR),
        Case("method", function(lambda x, c: x.add(c), c=(5,)), VECTOR),
        Case("itself", function(lambda x: x + x), VECTOR),
    ],
    "subtract": [
        Case("number", function(lambda x: x - 0.3), VECTOR),
        Case("number first", function(lambda x: 1 - x), VECTOR),
        Case("tensor first", function(lambda x, c: c - x, c=(4, 1, 1)), IMAGE),
        Case("function", function(lambda x, c: torch.sub(x, c, alpha=2), c=(5,)), VECTOR),
        Case("function, constant first", function(lambda x, c: torch.sub(c, x, alpha=2), c=(5,)), VECTOR),
        Case("method", function(lambda x, c: x.sub(c), c=(5,)), VECTOR),
    ],
    "multiply": [
        Case("number", function(lambda x: x * -0.3), VECTOR),
        Case("number first", function(lambda x: 3 * x), VECTOR),
        Case("tensor", function(lambda x, c: x * c, c=(4, 1, 1)), IMAGE),
        Case("tensor first", function(lambda x, c: c * x, c=(4, 1, 1)), IMAGE),
        Case("function", function(lambda x, c: torch.mul(c, x), c=(5,)), VECTOR),
        Case("method", function(lambda x, c: x.mul(c), c=(5,)), VECTOR),
        Case("zero", function(lambda x: x * 0), VECTOR),
    ],
    "divide": [
        Case("number", function(lambda x: x / -0.3), VECTOR),
        Case("tensor", function(lambda x, c: x / c, c=(4, 1, 1)), IMAGE),
        Case("function", function(lambda x, c: torch.div(x, c), c=(5,)), VECTOR),
        Case("method", function(lambda x, c: x.div(c), c=(5,)), VECTOR),
    ],
    "avg_pool2d": [
        Case("module", lambda: nn.Sequential(nn.AvgPool2d(2)), IMAGE),
        Case("stride", lambda: nn.Sequential(nn.AvgPool2d((3, 2), stride=(2, 1))), IMAGE),
        Case("padded", lambda: nn.Sequential(nn.AvgPool2d(3, 2, padding=1)), IMAGE),
        Case(
            "padding not counted", lambda: nn.Sequential(nn.AvgPool2d(3, 2, padding=1, count_include_pad=False)), IMAGE
        ),
        Case("ceil", lambda: nn.Sequential(nn.AvgPool2d(3, 2, ceil_mode=True)), IMAGE),
        Case("ceil and padded", lambda: nn.Sequential(nn.AvgPool2d(3, 3, padding=1, ceil_mode=True)), IMAGE),
        Case("divisor", lambda: nn.Sequential(nn.AvgPool2d(2, divisor_override=3)), IMAGE),
        Case("negative divisor", lambda: nn.Sequential(nn.AvgPool2d(2, divisor_override=-3)), IMAGE),
        Case("function", function(lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True, count_include_pad=False)), IMAGE),
    ],
    "adaptive_avg_pool2d": [
        Case("module", lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1)), IMAGE),
        Case("uneven", lambda: nn.Sequential(nn.AdaptiveAvgPool2d((3, None))), IMAGE),
        Case("function", function(lambda x: F.adaptive_avg_pool2d(x, (2, 5))), IMAGE),
    ],
    "flatten": [
        Case("module", nn.Flatten, IMAGE),
        Case("partial", lambda: nn.Flatten(2), IMAGE),
        Case("function", function(lambda x: torch.flatten(x, 1)), IMAGE),
        Case("method", function(lambda x: x.flatten(1, 2)), IMAGE),
        Case("in a network", lambda: nn.Sequential(nn.Flatten()), IMAGE),
    ],
    "identity": [
        Case("identity", lambda: nn.Sequential(nn.Identity()), VECTOR),
        Case("dropout", lambda: nn.Sequential(nn.Dropout(0.9)), VECTOR),
    ],
}
NOT_AFFINE = {
    "relu": [
        Case("module", lambda: nn.Sequential(nn.ReLU()), IMAGE),
        Case("in place", lambda: nn.Sequential(nn.ReLU(inplace=True)), IMAGE),
        Case("function", function(F.relu), VECTOR),
        Case("function in place", function(lambda x: F.relu(x, inplace=True)), VECTOR),
        Case("torch function", function(torch.relu), VECTOR),
        Case("method", function(lambda x: x.relu()), VECTOR),
    ],
}
CASES = AFFINE | NOT_AFFINE
AUGMENTED = {operator.iadd, operator.isub, operator.imul, operator.itruediv}  # these have a test of their own


def listed(cases):
    return [pytest.param(case, id=f"{name}-{case.name}") for name, group in cases.items() for case in group]


def wrapped(case, dtype=torch.float64):
    """The case's model; a bare module as the layer of a network, so that it is met as a module."""
    model = case.make()
    model = nn.Sequential(model) if type(model).__module__.startswith("torch.nn") else model
    return model.to(dtype).eval()


def test_every_operator_of_the_table_has_cases():
    assert set(CASES) == {record.name for record in TABLE}


@pytest.mark.parametrize("record", TABLE, ids=lambda record: record.name)
def test_every_form_of_an_operator_has_a_case(record):
    steps = [step for case in CASES[record.name] for step in trace(wrapped(case)).steps]
    forms = {step.target for step in steps if not isinstance(step.target, nn.Module)}
    assert {step.record.name for step in steps if step.record} >= {record.name}
    missing = [f for f in record.functions if f not in forms | AUGMENTED]
    assert not missing, f"no case for {missing}"
    modules = {type(step.target) for step in steps if isinstance(step.target, nn.Module)}
    assert set(record.modules) <= modules


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("case", listed(AFFINE))
def test_affine_operators_meet_their_exact_extremes(case, scale):
    model = wrapped(case)
    box = random_box(3, *case.shape, scale=scale)
    lower, upper = affine_extremes(*dense_affine(model, case.shape), box)
    found_lower, found_upper = (end.flatten(1) for end in bound(model, box))
    size = 1 + max(lower.abs().max().item(), upper.abs().max().item())
    assert (found_lower <= lower + 1e-13 * size).all() and (upper - 1e-13 * size <= found_upper).all()
    torch.testing.assert_close(found_lower, lower, rtol=0, atol=1e-11 * size)
    torch.testing.assert_close(found_upper, upper, rtol=0, atol=1e-11 * size)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("case", listed(NOT_AFFINE))
def test_relu_is_exact(case, scale):
    box = random_box(3, *case.shape, scale=scale)
    lower, upper = bound(wrapped(case), box)
    torch.testing.assert_close(lower, box.lower.clamp(min=0), rtol=1e-13, atol=1e-13 * scale)
    torch.testing.assert_close(upper, box.upper.clamp(min=0), rtol=1e-13, atol=1e-13 * scale)
    assert (lower <= box.lower.clamp(min=0)).all() and (box.upper.clamp(min=0) <= upper).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", listed(CASES))
def test_radius_zero_is_the_forward_pass(case, dtype):
    model = wrapped(case, dtype)
    x = torch.randn(3, *case.shape, dtype=dtype)
    with torch.no_grad():
        result = propagate(trace(model), Interval(x, torch.zeros_like(x), x), Context(sound=False))
        lower, upper = bound(model, Box(x, torch.zeros_like(x)))
        # After the bounds: a model whose ReLU works in place changes x.
        value = model(x.clone())
    tolerance = 64 * torch.finfo(dtype).eps * (1 + value.abs().max().item())
    assert result.center.dtype == lower.dtype == dtype and not result.radius.any()
    torch.testing.assert_close(result.center, value, rtol=0, atol=tolerance)
    torch.testing.assert_close(result.clean, value, rtol=0, atol=tolerance)
    assert (lower <= value + tolerance).all() and (value <= upper + tolerance).all()
    assert (upper - lower).max() <= 64 * tolerance


@pytest.mark.parametrize("case", listed(CASES))
def test_clean_value_and_box_do_not_mix(case):
    model = wrapped(case)
    box = random_box(3, *case.shape)
    clean = box.center + 5 + torch.rand_like(box.center)
    program = trace(model)
    with torch.no_grad():
        both = propagate(program, Interval(box.center, box.radius, clean), Context(sound=False))
        alone = propagate(program, Interval(box.center, box.radius), Context(sound=False))
        value = model(clean.clone())
    torch.testing.assert_close(both.clean, value)
    torch.testing.assert_close(both.center, alone.center)
    assert torch.equal(both.radius, alone.radius) and alone.clean is None


@pytest.mark.parametrize("case", listed(CASES))
def test_float32_bounds_contain_the_float64_interval_of_the_same_weights(case):
    model = wrapped(case, torch.float32)
    box = random_box(3, *case.shape, dtype=torch.float32)
    lower, upper = bound(model, box)
    wide = Interval(box.center.double(), box.radius.double())
    exact = propagate(trace(model.double()), wide, Context(sound=False))
    tolerance = 1e-14 * (1 + exact.center.abs() + exact.radius)
    assert (lower.double() <= exact.box.lower + tolerance).all()
    assert (exact.box.upper - tolerance <= upper.double()).all()


@pytest.mark.parametrize("case", listed(CASES))
def test_gradients_reach_every_end_of_the_box(case):
    model = wrapped(case)
    box = random_box(2, *case.shape)
    center, radius = box.center.requires_grad_(), box.radius.requires_grad_()
    result = propagate(trace(model), Interval(center, radius), Context(sound=False))
    (result.center.sum() + result.radius.square().sum()).backward()
    for gradient in [center.grad, radius.grad, *(p.grad for p in model.parameters())]:
        assert gradient is not None and gradient.isfinite().all()


# ---------------------------------------------------------------------------------------------------------------------
# Outward rounding, judged in exact rational arithmetic


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


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("seed", range(6))
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
@pytest.mark.parametrize("seed", range(4))
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


CONSTANTS = {
    "add": lambda x: 0.1 + x,
    "subtract": lambda x: 0.1 - x,
    "alpha": lambda x: torch.add(x, x, alpha=0.1),
    "multiply": lambda x: x * 0.1,
    "divide": lambda x: x / 0.1,
}
EXACT_CONSTANTS = {
    "add": lambda t, lo, hi: (t + lo, t + hi),
    "subtract": lambda t, lo, hi: (t - hi, t - lo),
    "alpha": lambda t, lo, hi: (lo + t * lo, hi + t * hi),
    "multiply": lambda t, lo, hi: (t * lo, t * hi),
    "divide": lambda t, lo, hi: (lo / t, hi / t),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CONSTANTS)
def test_constants_that_no_float_holds_are_counted(name, dtype):
    """0.1 is 0.1 as Python wrote it, whatever precision it meets."""
    box = random_box(1, 50, dtype=dtype)
    exact = Exact.of(box)
    ends = [EXACT_CONSTANTS[name](Fraction(0.1), lo, hi) for lo, hi in zip(exact.low, exact.high, strict=True)]
    expected = Exact([low for low, _ in ends], [high for _, high in ends])
    assert expected.inside(*bound(Lambda(lambda module, x: CONSTANTS[name](x)).eval(), box))


@pytest.mark.parametrize("dtype", DTYPES)
def test_pooling_contains_the_exact_rational_interval(dtype):
    box = random_box(1, 1, 3, 3, dtype=dtype)
    ninth = [[Fraction(1, 9)] * 9]
    for pool in (nn.AvgPool2d(3), nn.AdaptiveAvgPool2d(1)):
        assert Exact.of(box).affine(ninth).inside(*bound(nn.Sequential(pool).eval(), box))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", range(4))
def test_convolution_contains_the_exact_rational_interval(seed, dtype):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(2, 3, 3, stride=2, padding=1)).to(dtype).eval()
    matrix, _ = dense_affine(lambda x: F.conv2d(x, model[0].weight, stride=2, padding=1), (2, 4, 4), dtype)
    offset = [Fraction(b) for b in model[0].bias.tolist() for _ in range(4)]
    box = random_box(1, 2, 4, 4, dtype=dtype)
    assert Exact.of(box).affine(fractions(matrix), offset).inside(*bound(model, box))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_merged_spec_contains_the_exact_rational_interval(seed, bias, dtype):
    """The spec is float64 and general; the product of spec and weights is rounded too."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 5, bias=bias)).to(dtype).eval()
    box, spec = random_box(1, 6, dtype=dtype), torch.randn(1, 4, 5, dtype=torch.float64)
    weight, rows = fractions(model[0].weight), fractions(spec[0])
    merged = [[sum(s * weight[n][m] for n, s in enumerate(row)) for m in range(6)] for row in rows]
    offset = fractions(model[0].bias) if bias else [Fraction(0)] * 5
    offset = [sum(s * b for s, b in zip(row, offset, strict=True)) for row in rows]
    assert Exact.of(box).affine(merged, offset).inside(*bound(model, box, spec=spec))


def rule_image(model, box):
    """What the rules make of a box, before `bound` adds its own margin to the ends."""
    with torch.no_grad():
        return propagate(trace(model.eval()), Interval(box.center, box.radius), Context(sound=True)).box


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
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
@pytest.mark.parametrize("seed", range(3))
def test_merged_specs_that_cancel_contain_the_exact_rational_interval(seed, dtype):
    """All that is left of weights and biases after the merger is its rounding."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 7)).to(dtype).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.randn(7, 1) * torch.randn(1, 6))  # rank one, up to rounding
        model[0].bias.copy_(3 * model[0].weight[:, 0])
        spec = torch.randn(1, 20, 7, dtype=dtype)
        spec[0, :, 6] = -(spec[0, :, :6] @ model[0].weight[:6, 0]) / model[0].weight[6, 0]
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
@pytest.mark.parametrize("seed", range(3))
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


def test_overflow_is_never_a_bound():
    """float32 overflows; real arithmetic does not. Neither end may claim more than is true."""
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.ReLU(), nn.Linear(1, 1, bias=False)).eval()
    for weights in ((1e30, 1.0), (1e30, -1.0), (1e30, 1e-30)):
        for layer, weight in zip(model[::2], weights, strict=True):
            nn.init.constant_(layer.weight, weight)
        lower, upper = bound(model, Box(torch.tensor([[1e20]]), torch.tensor([[1.0]])))
        exact = 1e20 * float(weights[0]) * float(weights[1])
        assert not lower.item() > exact and not upper.item() < exact


@pytest.mark.parametrize("layer", ["linear", "conv"])
def test_autocast_does_not_loosen_the_arithmetic_unnoticed(layer):
    """Refused, or computed in full precision all the same; never bfloat16 that counts as exact."""
    model = nn.Sequential(nn.Linear(64, 20)) if layer == "linear" else nn.Sequential(nn.Conv2d(4, 8, 3))
    x = torch.rand(16, 64) if layer == "linear" else torch.rand(8, 4, 6, 6)
    model.eval()
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            lower, upper = bound(model, Box(x, torch.zeros_like(x)))
    except (ValueError, RuntimeError):
        return
    with torch.no_grad():
        value = model.double()(x.double())
    assert (lower.double() <= value).all() and (value <= upper.double()).all()


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
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_tensor_cores_do_not_loosen_the_arithmetic_unnoticed():
    """torch lets cuDNN round float32 convolutions to TF32, and choose Winograd. Refused, or as exact as counted."""
    model, x = (
        nn.Sequential(nn.Conv2d(64, 64, 3, padding=1, bias=False)).cuda().eval(),
        torch.rand(32, 64, 16, 16).cuda(),
    )
    try:
        lower, upper = bound(model, Box(x, torch.zeros_like(x)))
    except (ValueError, RuntimeError):
        return
    with torch.no_grad():
        value = model.double()(x.double())
    assert (lower.double() <= value).all() and (value <= upper.double()).all()


def test_too_many_terms_for_the_precision_are_refused():
    model = nn.Sequential(nn.Linear(64, 2)).to(torch.bfloat16).eval()
    with pytest.raises(ValueError, match="too many to round outwards"):
        bound(model, random_box(1, 64, dtype=torch.bfloat16))


# ---------------------------------------------------------------------------------------------------------------------
# Whole networks, against corners and dense samples


def mlp():
    return nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))


class Residual(nn.Module):
    """Nodes used twice, sums, constants on either side, functions, methods and modules side by side."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(2, 6)
        self.second = nn.Linear(6, 6)
        self.norm = nn.BatchNorm1d(6)
        self.relu = nn.ReLU()
        self.scale = nn.Parameter(torch.randn(6))
        self.register_buffer("shift", torch.randn(6))

    def forward(self, x):
        a = self.first((x - 0.1) / 0.5)
        b = self.relu(a)
        c = self.norm(self.second(b)) + a
        d = torch.relu(c) * self.scale - 0.5 * b
        e = self.shift - d
        return torch.flatten(F.relu(e + d.relu() / 3 + 1) + self.second(a), 1)


def check_by_grid(model, box, steps, shape=None):
    model = model.double().eval()
    grid = corners_and_grid(box, steps)
    if shape is not None:
        grid, box = grid.view(-1, *shape), Box(box.center.view(1, *shape), box.radius.view(1, *shape))
    with torch.no_grad():
        values = model(grid)
        lower, upper = bound(model, box)
        assert_contains(lower, upper, values)
        spec = margin_spec(torch.tensor([1]), values.shape[1]).double()
        lower, upper = bound(model, box, spec=spec)
    assert_contains(lower, upper, values @ spec[0].T)


@pytest.mark.parametrize("radius", [1e-3, 0.1, 1.0, 100.0])
@pytest.mark.parametrize("make", [mlp, Residual], ids=["mlp", "residual"])
def test_networks_of_two_inputs_by_exhaustion(make, radius):
    for seed in range(3):
        torch.manual_seed(seed)
        box = Box(torch.randn(1, 2, dtype=torch.float64), torch.full((1, 2), radius, dtype=torch.float64))
        check_by_grid(make(), box, steps=41)


@pytest.mark.parametrize("radius", [1e-3, 0.1, 1.0, 100.0])
def test_a_network_of_three_pixels_by_exhaustion(radius):
    for seed in range(3):
        torch.manual_seed(seed)
        box = Box(torch.randn(1, 3, dtype=torch.float64), torch.full((1, 3), radius, dtype=torch.float64))
        model = nn.Sequential(
            nn.Conv2d(1, 4, (1, 3), padding=(0, 1)),
            nn.ReLU(),
            nn.Conv2d(4, 4, (1, 2), groups=2),
            nn.ReLU(),
            nn.AvgPool2d((1, 2), stride=1),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4, 3),
        )
        check_by_grid(model, box, steps=11, shape=(1, 1, 3))


def test_a_monotone_network_is_bounded_exactly():
    """Non-negative weights: interval bounds are the values at two corners, so that loose rules would show."""
    model = mlp().double().eval()
    with torch.no_grad():
        for layer in model[::2]:
            layer.weight.abs_()
        box = Box(torch.rand(3, 2, dtype=torch.float64), torch.full((3, 2), 0.3, dtype=torch.float64))
        lower, upper = bound(model, box)
        torch.testing.assert_close(lower, model(box.lower), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(upper, model(box.upper), rtol=1e-12, atol=1e-12)


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight + 0.1


PARAMETRISED = {
    "custom": lambda layer: parametrize.register_parametrization(layer, "weight", Doubled()),
    "custom bias": lambda layer: parametrize.register_parametrization(layer, "bias", Doubled()),
    "spectral norm": parametrizations.spectral_norm,
    "weight norm": parametrizations.weight_norm,
    "orthogonal": parametrizations.orthogonal,
}


@pytest.mark.parametrize("name", PARAMETRISED)
def test_parametrised_layers(name):
    """The layer's class is torch's own subclass; its weight is what the parametrisation says now."""
    linear, convolution = nn.Linear(18, 3).double(), nn.Conv2d(1, 2, 2).double()
    model = nn.Sequential(PARAMETRISED[name](convolution), nn.ReLU(), nn.Flatten(), PARAMETRISED[name](linear)).eval()
    box = random_box(4, 1, 4, 4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5).add_(0.1)
        plain = [nn.Conv2d(1, 2, 2).double(), nn.ReLU(), nn.Flatten(), nn.Linear(18, 3).double()]
        for number, layer in ((0, convolution), (3, linear)):
            plain[number].weight.copy_(layer.weight)
            plain[number].bias.copy_(layer.bias)
        lower, upper = bound(model, box)
        assert_contains(lower, upper, torch.stack([model(x) for x in points_of(box, 64)]))
        expected = bound(nn.Sequential(*plain).eval(), box)
    torch.testing.assert_close((lower, upper), expected)


# ---------------------------------------------------------------------------------------------------------------------
# Programs mean what the module does


class Rescaled(nn.Linear):
    """A layer of somebody's own: it is a Linear, and does something else."""

    def forward(self, x):
        return 3 * super().forward(x) + 1


class Standardised(nn.Conv2d):
    """Weight standardisation, as in BiT: the weight that acts is not the weight that is stored."""

    def forward(self, x):
        weight = self.weight - 0.5 * self.weight.abs()
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class StandardisedInside(nn.Conv2d):
    """The same by the method that torch's own forward calls."""

    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, weight - 0.5 * weight.abs(), bias)


class LeakyAtHeart(nn.ReLU):
    def forward(self, x):
        return F.relu(x) - 0.1 * F.relu(-1 * x)


class Halved(nn.BatchNorm1d):
    def forward(self, x):
        return super().forward(x) * 0.5


def sound_or_refused(model, box):
    """Bounds that contain what the module computes, or a refusal by the rule table or by torch.fx."""
    model = model.double().eval()
    try:
        lower, upper = bound(model, box)
    except (UnsupportedOperator, torch.fx.proxy.TraceError):
        return
    with torch.no_grad():
        assert_contains(lower, upper, torch.stack([model(x.clone()) for x in points_of(box, 64)]))


@pytest.mark.parametrize("layer", [Rescaled(4, 3), LeakyAtHeart(), Halved(4)], ids=lambda layer: type(layer).__name__)
def test_a_subclass_with_its_own_forward_is_not_taken_for_its_base(layer):
    sound_or_refused(nn.Sequential(nn.Linear(4, 4), layer), random_box(3, 4))


@pytest.mark.parametrize("kind", [Standardised, StandardisedInside])
def test_a_convolution_with_its_own_forward_is_not_taken_for_its_base(kind):
    sound_or_refused(nn.Sequential(kind(2, 3, 2)), random_box(2, 2, 4, 4))


def test_a_subclass_that_only_adds_attributes_is_its_base():
    class Named(nn.Linear):
        def __init__(self, *args):
            super().__init__(*args)
            self.title = "mine"

    model = nn.Sequential(Named(4, 3)).double().eval()
    assert trace(model).steps[0].record.name == "linear"


def test_a_forward_replaced_on_the_instance_counts():
    model = nn.Sequential(nn.Linear(4, 3))
    plain = model[0].forward
    model[0].forward = lambda x: plain(x) + 7
    sound_or_refused(model, random_box(3, 4))


def test_a_hook_that_changes_the_output_counts():
    model = nn.Sequential(nn.Linear(4, 3))
    model[0].register_forward_hook(lambda module, inputs, output: output + 5)
    sound_or_refused(model, random_box(3, 4))


def test_a_hook_that_changes_the_input_counts():
    model = nn.Sequential(nn.Linear(4, 3))
    model[0].register_forward_pre_hook(lambda module, inputs: (inputs[0] + 5,))
    sound_or_refused(model, random_box(3, 4))


class InPlaceFunction(nn.Module):
    def forward(self, x):
        y = x - 0.2
        z = F.relu(y, inplace=True)
        return z + y  # y is relu(y) by now


class InPlaceModule(nn.Module):
    def __init__(self):
        super().__init__()
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        y = x - 0.2
        return self.relu(y) + y


class InPlaceThroughAView(nn.Module):
    def __init__(self):
        super().__init__()
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        y = x - 0.2
        return self.relu(torch.flatten(y, 1)) + y


class InPlaceSum(nn.Module):
    def forward(self, x):
        y = x - 0.2
        z = y
        y += x
        return z * 2  # z is the sum by now


class ReturnsTheChanged(nn.Module):
    def forward(self, x):
        y = x - 0.2
        F.relu(y, inplace=True)
        return y


class ChangesTwiceThroughAView(nn.Module):
    def __init__(self):
        super().__init__()
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        y = torch.flatten(x, 1) - 0.2
        z = y.flatten(1)
        z = self.relu(z)
        z += 1
        return y - z


IN_PLACE = [
    InPlaceFunction,
    InPlaceModule,
    InPlaceThroughAView,
    InPlaceSum,
    ReturnsTheChanged,
    ChangesTwiceThroughAView,
]


@pytest.mark.parametrize("make", IN_PLACE)
def test_a_value_changed_in_place_and_read_again(make):
    sound_or_refused(make(), random_box(3, 4))


def test_the_usual_in_place_residual_is_supported():
    """As in torchvision: one in-place ReLU used twice, and an in-place sum; nothing is read after its change."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.relu = nn.Linear(4, 4), nn.Linear(4, 4), nn.ReLU(inplace=True)

        def forward(self, x):
            out = self.relu(self.one(x))
            out = self.two(out)
            out += x
            return self.relu(out)

    model, box = Block().double().eval(), random_box(3, 4)
    lower, upper = bound(model, box)
    with torch.no_grad():
        assert_contains(lower, upper, torch.stack([model(x) for x in points_of(box, 64)]))


def plus(x, c):
    y = x * 1.0
    y += c
    return y


def minus(x, c):
    y = x * 1.0
    y -= c
    return y


def times(x, c):
    y = x + 0.0
    y *= c
    return y


def over(x, c):
    y = x + 0.0
    y /= c
    return y


@pytest.mark.parametrize("forward", [plus, minus, times, over])
def test_augmented_assignments(forward):
    """x -= mean, x /= std: as common in models as their longer forms, and no different where nothing is read again."""
    model, box = function(forward, c=(4,))().double().eval(), random_box(3, 4)
    lower, upper = bound(model, box)
    with torch.no_grad():
        assert_contains(lower, upper, torch.stack([model(x) for x in points_of(box, 64)]))


def test_constants_inside_lists():
    """torch.cat of two parameters, before any input reaches them."""
    model = Lambda(lambda m, x: F.linear(x, torch.cat([m.a, m.b])), a=torch.randn(2, 4), b=torch.randn(1, 4))
    model, box = model.double().eval(), random_box(3, 4)
    lower, upper = bound(model, box)
    with torch.no_grad():
        assert_contains(lower, upper, torch.stack([model(x) for x in points_of(box, 64)]))


class Buffered(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.ones(4, dtype=torch.float64))

    def forward(self, x):
        return x * (self.scale * 2)


def test_tracing_leaves_the_module_as_it_was():
    model = Buffered().eval()
    before = set(vars(model)) | set(model._buffers) | set(model._parameters)
    for _ in range(2):
        bound(model, random_box(2, 4))
    assert set(vars(model)) | set(model._buffers) | set(model._parameters) == before


def constant_twice(module, x):
    """A tensor made on the way, used twice."""
    c = torch.full((4,), 2.0, dtype=torch.float64)
    return x * c + c


def test_constants_made_in_forward():
    model, box = Lambda(constant_twice).eval(), random_box(2, 4)
    lower, upper = bound(model, box)
    assert_contains(lower, upper, torch.stack([model(x) for x in points_of(box, 20)]))
    assert not [name for name in vars(model) if name.startswith("_tensor_constant")]


def test_a_traced_module_keeps_its_constants():
    """A GraphModule holds what tracing left in it: those constants are the model's own."""
    box = random_box(2, 4)
    model = torch.fx.symbolic_trace(Lambda(constant_twice)).eval()
    before = model(box.center)
    for _ in range(2):
        lower, upper = bound(model, box)
    assert_contains(lower, upper, torch.stack([model(x) for x in points_of(box, 20)]))
    assert torch.equal(model(box.center), before)


def test_a_program_reads_buffers_when_it_runs():
    """Programs are traced once and run many times: what a buffer gives must not be frozen at tracing."""
    model, x = Buffered().eval(), torch.randn(2, 4, dtype=torch.float64)
    program = trace(model)
    model.scale.fill_(5)
    result = propagate(program, Interval(x, torch.zeros_like(x)), Context(sound=True))
    torch.testing.assert_close(result.center, model(x))


def test_a_program_reads_parameters_when_it_runs():
    model, x = nn.Sequential(nn.Linear(4, 3), nn.ReLU()).eval(), torch.randn(2, 4)
    program = trace(model)
    nn.init.constant_(model[0].weight, 2.0)
    result = propagate(program, Interval(x, torch.zeros_like(x)), Context(sound=False))
    torch.testing.assert_close(result.center, model(x))


def test_every_use_of_a_shared_relu_is_recorded():
    """Regularisers and widths read the pre-activations; torchvision's blocks use one ReLU module twice."""
    relu = nn.ReLU()
    model = nn.Sequential(nn.Linear(4, 4), relu, nn.Linear(4, 4), relu).eval()
    box, ctx = random_box(2, 4, dtype=torch.float32), Context(sound=False)
    propagate(trace(model), Interval(box.center, box.radius), ctx)
    assert len(ctx.preactivations) == 2


def test_arguments_by_name():
    """Torch's own names of the first argument; a module called by name."""
    for forward in (
        lambda m, x: F.relu(input=x),
        lambda m, x: torch.flatten(input=x, start_dim=1),
        lambda m, x: F.linear(input=x, weight=m.w),
        lambda m, x: torch.add(input=x, other=1.0),
    ):
        sound_or_refused(Lambda(forward, w=torch.randn(3, 4)), random_box(2, 4))

    class ByName(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x):
            return self.layer(input=x)

    sound_or_refused(ByName(), random_box(2, 4))


def test_an_identity_model():
    box = random_box(2, 4)
    model = Lambda(lambda module, x: x).eval()
    spec = torch.randn(2, 3, 4, dtype=torch.float64)
    lower, upper = bound(model, box, spec=spec)
    values = torch.einsum("bkn,sbn->sbk", spec, points_of(box, 100))
    assert_contains(lower, upper, values)
    assert (bound(model, box)[0] <= box.lower).all() and (box.upper <= bound(model, box)[1]).all()


def test_a_box_is_not_changed_by_models_that_work_in_place():
    box = random_box(2, 4)
    center, radius = box.center.clone(), box.radius.clone()
    bound(nn.Sequential(nn.ReLU(inplace=True)).eval(), box)
    assert torch.equal(box.center, center) and torch.equal(box.radius, radius)


# ---------------------------------------------------------------------------------------------------------------------
# Margins


def general_spec(batch, rows, outputs):
    return torch.randn(batch, rows, outputs, dtype=torch.float64)


def test_margin_spec_is_the_label_over_every_other_class():
    logits = torch.randn(5, 4)
    labels = torch.tensor([0, 3, 1, 2, 0])
    margins = torch.einsum("bkn,bn->bk", margin_spec(labels, 4), logits)
    for example, label in enumerate(labels.tolist()):
        others = [k for k in range(4) if k != label]
        torch.testing.assert_close(margins[example], logits[example, label] - logits[example, others])


@pytest.mark.parametrize("labels", [[4], [-1], [0, 7]])
def test_labels_out_of_range_are_refused(labels):
    with pytest.raises((ValueError, IndexError)):
        margin_spec(torch.tensor(labels), 4)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["margin", "general"])
def test_merged_spec_of_one_linear_layer_is_the_exact_minimum(kind, bias):
    model, box = nn.Sequential(nn.Linear(6, 4, bias=bias)).double().eval(), random_box(5, 6)
    spec = general_spec(5, 7, 4) if kind == "general" else margin_spec(torch.tensor([0, 1, 2, 3, 3]), 4).double()
    lower, upper = bound(model, box, spec=spec)
    matrix, offset = dense_affine(model, (6,))
    for example in range(5):
        one = Box(box.center[example : example + 1], box.radius[example : example + 1])
        exact = affine_extremes(spec[example] @ matrix, spec[example] @ offset, one)
        torch.testing.assert_close(lower[example], exact[0][0], rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(upper[example], exact[1][0], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_merged_margins_are_never_looser_than_subtracted_intervals(scale):
    model, box = mlp().double().eval(), random_box(6, 2, scale=scale)
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    spec = margin_spec(labels, 3).double()
    lower, upper = bound(model, box)
    merged_lower, merged_upper = bound(model, box, spec=spec)
    subtracted = torch.einsum("bkn,bn->bk", spec.clamp(min=0), lower) + torch.einsum(
        "bkn,bn->bk", spec.clamp(max=0), upper
    )
    opposite = torch.einsum("bkn,bn->bk", spec.clamp(min=0), upper) + torch.einsum(
        "bkn,bn->bk", spec.clamp(max=0), lower
    )
    slack = 1e-12 * (1 + upper.abs().max())
    assert (merged_lower >= subtracted - slack).all() and (merged_upper <= opposite + slack).all()
    assert (merged_lower > subtracted + slack).any()


def shifted():
    model = Lambda(lambda module, x: module.inner(x) + 1)
    model.inner = nn.Linear(2, 3)
    return model


ENDINGS = {
    "relu": lambda: nn.Sequential(mlp(), nn.ReLU()),
    "shift": shifted,
    "norm": lambda: nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.BatchNorm1d(4)),
    "two linear": lambda: nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 3)),
    "dropout": lambda: nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3), nn.Dropout()),
    "convolution": lambda: nn.Sequential(nn.Conv2d(2, 4, 1), nn.Flatten()),
    "function": function(lambda x, w, b: F.linear(F.relu(x), w, b), w=(3, 2), b=(3,)),
}


@pytest.mark.parametrize("kind", ["margin", "general"])
@pytest.mark.parametrize("ending", ENDINGS)
def test_spec_on_any_ending(ending, kind):
    model = ENDINGS[ending]().double().eval()
    box = random_box(4, 2, 1, 1) if ending == "convolution" else random_box(4, 2)
    with torch.no_grad():
        values = torch.stack([model(x) for x in points_of(box, 200)])
        outputs = values.shape[-1]
        labels = torch.tensor([0, 1, 2, 0])
        spec = general_spec(4, 5, outputs) if kind == "general" else margin_spec(labels, outputs).double()
        lower, upper = bound(model, box, spec=spec)
    assert lower.shape == upper.shape == (4, spec.shape[1])
    assert_contains(lower, upper, torch.einsum("bkn,sbn->sbk", spec, values))


def test_spec_equals_the_layer_it_replaces():
    """spec on a model without its last layer is the model with it: two derivations, one answer."""
    model, box = (
        nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4, bias=False)).double().eval(),
        random_box(2, 3),
    )
    spec = model[2].weight.detach().expand(2, -1, -1)
    torch.testing.assert_close(bound(model[:2].eval(), box, spec=spec), bound(model, box))


def test_spec_of_the_identity_is_the_outputs():
    model, box = mlp().double().eval(), random_box(2, 2)
    spec = torch.eye(3, dtype=torch.float64).expand(2, 3, 3)
    torch.testing.assert_close(bound(model, box, spec=spec), bound(model, box), rtol=1e-12, atol=1e-12)


def test_clean_margins_go_through_the_spec():
    model, x = mlp().double().eval(), torch.randn(4, 2, dtype=torch.float64)
    spec = margin_spec(torch.tensor([0, 1, 2, 1]), 3)
    result = propagate(trace(model), Interval(x + 1, torch.ones_like(x), x), Context(sound=False), spec)
    torch.testing.assert_close(result.clean, torch.einsum("bkn,bn->bk", spec.double(), model(x)))


# ---------------------------------------------------------------------------------------------------------------------
# Batch norm in training


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: nn.BatchNorm1d(4), (8, 4)),
        (lambda: nn.BatchNorm1d(4, momentum=0.3, eps=1e-2), (8, 4, 3)),
        (lambda: nn.BatchNorm2d(4), (3, 4, 5, 2)),
        (lambda: nn.BatchNorm2d(4, affine=False), (3, 4, 5, 2)),
        (lambda: nn.BatchNorm2d(4, track_running_stats=False), (3, 4, 5, 2)),
    ],
    ids=["vectors", "sequences", "images", "not affine", "no statistics"],
)
def test_batch_norm_in_training_is_torch_own(make, shape):
    ours, theirs = nn.Sequential(make()).double().train(), nn.Sequential(make()).double().train()
    program = trace(ours)
    for step in range(3):
        x = (step + 1) * torch.randn(shape, dtype=torch.float64) + step
        box = random_box(*shape)
        result = propagate(program, Interval(box.center, box.radius, x), Context(sound=False))
        torch.testing.assert_close(result.clean, theirs(x))
    for name, value in theirs.state_dict().items():
        if name != "0.num_batches_tracked":
            torch.testing.assert_close(ours.state_dict()[name], value)


def test_batch_norm_in_training_moves_the_box_with_the_clean_statistics():
    model = nn.Sequential(nn.BatchNorm1d(3)).double().train()
    with torch.no_grad():
        model[0].weight.normal_()
        model[0].bias.normal_()
    x, box = torch.randn(6, 3, dtype=torch.float64), random_box(6, 3)
    result = propagate(trace(model), Interval(box.center, box.radius, x), Context(sound=False))
    scale = model[0].weight / (x.var(0, correction=0) + model[0].eps).sqrt()
    torch.testing.assert_close(result.center, (box.center - x.mean(0)) * scale + model[0].bias)
    torch.testing.assert_close(result.radius, box.radius * scale.abs())


def test_gradients_flow_through_batch_statistics():
    """Against autograd on the formula written out: mean and variance depend on the clean input."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)).double().train()
    x, radius = torch.randn(6, 3, dtype=torch.float64), torch.rand(6, 3, dtype=torch.float64)
    center = x + 0.1
    result = propagate(trace(model), Interval(center, radius, x), Context(sound=False))
    weights = torch.randn(3, 6, 2, dtype=torch.float64)
    loss = (weights[0] * result.box.lower + weights[1] * result.box.upper + weights[2] * result.clean).sum()
    found = torch.autograd.grad(loss, list(model.parameters()))

    first, norm, last = model[0], model[1], model[3]
    hidden = x @ first.weight.T + first.bias
    mean, variance = hidden.mean(0), ((hidden - hidden.mean(0)) ** 2).mean(0)
    scale = norm.weight / (variance + norm.eps) ** 0.5
    middle = center @ first.weight.T + first.bias
    half = (radius @ first.weight.abs().T) * scale.abs()
    middle = (middle - mean) * scale + norm.bias
    low, high = (middle - half).clamp(min=0), (middle + half).clamp(min=0)
    positive, negative = last.weight.clamp(min=0), last.weight.clamp(max=0)
    lower = low @ positive.T + high @ negative.T + last.bias
    upper = high @ positive.T + low @ negative.T + last.bias
    clean = ((hidden - mean) * scale + norm.bias).clamp(min=0) @ last.weight.T + last.bias
    loss = (weights[0] * lower + weights[1] * upper + weights[2] * clean).sum()
    expected = torch.autograd.grad(loss, list(model.parameters()))
    for name, a, b in zip(dict(model.named_parameters()), found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}")


def test_batch_norm_in_training_without_a_clean_value_is_refused():
    model = nn.Sequential(nn.BatchNorm1d(3)).train()
    x = torch.randn(4, 3)
    with pytest.raises(ValueError, match="clean"):
        propagate(trace(model), Interval(x, torch.zeros_like(x)), Context(sound=False))


# ---------------------------------------------------------------------------------------------------------------------
# What is refused, and how


def user_model():
    class Mine(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            y = self.layer(x)
            return torch.sigmoid(y)  # the user's line

    return Mine().eval()


def test_an_unsupported_operator_names_node_and_line():
    with pytest.raises(UnsupportedOperator) as error:
        bound(user_model(), random_box(2, 4, dtype=torch.float32))
    message = str(error.value)
    assert "sigmoid" in message
    assert "test_interval.py" in message and "the user's line" in message, message


def test_an_unsupported_module_names_its_class_and_place():
    with pytest.raises(UnsupportedOperator, match=r"Sigmoid.*'1'") as error:
        bound(nn.Sequential(nn.Linear(4, 4), nn.Sigmoid()).eval(), random_box(2, 4, dtype=torch.float32))
    assert "graph.py" not in str(error.value), "a Sequential has no line of the user's, and cerdeq's own is not one"


UNSUPPORTED = {
    "function": lambda x: torch.exp(x),
    "method": lambda x: x.exp(),
    "max pool": lambda x: F.max_pool2d(x, 1),
    "indexing": lambda x: x[:, 0],
    "product": lambda x: x * F.relu(x),
    "product of one": lambda x: torch.mul(x, x),
    "quotient": lambda x: x / (x + 1),
    "reciprocal": lambda x: 1 / x,
    "weights from data": lambda x: F.linear(x, x),
    "kernel from data": lambda x: F.conv2d(x, x),
    "softmax": lambda x: F.softmax(x, dim=1),
    "rounding": lambda x: torch.div(x, 2.0, rounding_mode="floor"),
    "dropout function": lambda x: F.dropout(x, 0.5),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_has_no_rule_is_refused_by_tracing(name):
    """And so before anything is computed."""
    with pytest.raises(UnsupportedOperator):
        trace(Lambda(lambda module, x: UNSUPPORTED[name](x)).eval())


def test_nothing_is_computed_before_a_refusal(own_operators):
    ran = []

    def rule(ctx, x):
        ran.append(x)
        return x

    class Seen(nn.Module):
        def forward(self, x):
            return x

    register(Operator("seen", rule, (), {Seen: lambda module: {}}))
    with pytest.raises(UnsupportedOperator):
        bound(nn.Sequential(Seen(), nn.Tanh()).eval(), random_box(1, 4))
    assert not ran


@pytest.mark.parametrize("mode", ["circular", "reflect", "replicate"])
def test_padding_modes_are_refused(mode):
    model = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1, padding_mode=mode)).eval()
    with pytest.raises(UnsupportedOperator, match=mode):
        trace(model)


def test_batch_norm_without_momentum_is_refused():
    with pytest.raises(UnsupportedOperator, match="momentum"):
        trace(nn.Sequential(nn.BatchNorm1d(4, momentum=None)).train())


@pytest.mark.parametrize(
    "forward",
    [
        lambda module, x: (x + 1, x),
        lambda module, x: [x + 1],
        lambda module, x: {"logits": x + 1},
        lambda module, x: None,
        lambda module, x: module.constant,
    ],
    ids=["tuple", "list", "dictionary", "nothing", "constant"],
)
def test_other_outputs_than_one_tensor_are_refused(forward):
    with pytest.raises(UnsupportedOperator, match="output"):
        trace(Lambda(forward, constant=torch.ones(3)))


class TwoInputs(nn.Module):
    def forward(self, x, y):
        return x + y


class OptionalInput(nn.Module):
    def forward(self, x, y=None):
        return x + 1


@pytest.mark.parametrize("make", [TwoInputs, OptionalInput])
def test_several_inputs_are_refused(make):
    with pytest.raises(UnsupportedOperator, match="one input"):
        trace(make())


def test_control_flow_on_the_input_is_refused():
    with pytest.raises(Exception, match="control flow"):
        trace(Lambda(lambda module, x: x if x.sum() > 0 else 2 * x))


@pytest.mark.parametrize("method", ["IBP", "crown-lbp", "", None])
def test_an_unknown_method_is_refused(method):
    with pytest.raises(ValueError, match=r"unknown method.*ibp"):
        bound(mlp().eval(), random_box(1, 2, dtype=torch.float32), method=method)


def test_training_mode_is_refused():
    with pytest.raises(ValueError, match="eval"):
        bound(mlp().train(), random_box(1, 2, dtype=torch.float32))


@pytest.mark.parametrize("layer", [nn.BatchNorm1d(2), nn.Dropout()], ids=["batch norm", "dropout"])
def test_a_part_in_training_mode_is_refused(layer):
    model = nn.Sequential(layer, nn.Linear(2, 2)).eval()
    layer.train()
    with pytest.raises((ValueError, UnsupportedOperator)):
        bound(model, random_box(3, 2, dtype=torch.float32))


def test_a_parametrisation_in_training_mode_is_refused():
    """Reading such a weight changes it: the function that is bounded would not be the one that is left."""
    layer = parametrizations.spectral_norm(nn.Linear(4, 3))
    model = nn.Sequential(layer).eval()
    layer.parametrizations.train()
    with pytest.raises(ValueError, match=r"eval|training"):
        bound(model, random_box(2, 4, dtype=torch.float32))


# ---------------------------------------------------------------------------------------------------------------------
# Operators from outside


def sigmoid(ctx, x):
    low, high = torch.sigmoid(x.box.lower) * (1 - 1e-6), torch.sigmoid(x.box.upper) * (1 + 1e-6)
    clean = None if x.clean is None else torch.sigmoid(x.clean)
    return Interval((low + high) / 2, (high - low) / 2, clean)


def test_an_operator_from_outside(own_operators):
    record = Operator("sigmoid", sigmoid, (torch.sigmoid, torch.Tensor.sigmoid), {nn.Sigmoid: lambda module: {}})
    register(record)
    model = nn.Sequential(nn.Linear(3, 4), nn.Sigmoid(), Lambda(lambda module, x: torch.sigmoid(x) + x.sigmoid()))
    model, box = model.double().eval(), random_box(3, 3)
    lower, upper = bound(model, box)
    with torch.no_grad():
        assert_contains(lower, upper, torch.stack([model(x) for x in points_of(box, 100)]))
    assert record not in TABLE


def test_an_operator_from_outside_replaces_a_rule_under_a_spec_too(own_operators):
    """The merged spec belongs to the table's own linear rule; a replacement's own rule must be the one that counts."""
    ran = []

    def looser(ctx, x, weight, bias=None):
        ran.append(True)
        return Interval(F.linear(x.center, weight, bias), F.linear(x.radius, weight.abs()) + 1)

    arguments = {nn.Linear: lambda module: {"weight": module.weight, "bias": module.bias}}
    register(Operator("linear", looser, (), arguments))
    model, box = nn.Sequential(nn.Linear(3, 2)).double().eval(), random_box(1, 3)
    bound(model, box, spec=torch.eye(2, dtype=torch.float64)[None])
    assert ran


def test_a_users_own_module_as_one_operator(own_operators):
    class Swap(nn.Module):
        """Control flow that torch.fx cannot follow, behind a rule of its own."""

        def forward(self, x):
            return x.flip(1) if x.sum() > -1e9 else x

    def rule(ctx, x, module):
        assert isinstance(module, Swap)
        return Interval(x.center.flip(1), x.radius.flip(1), None if x.clean is None else x.clean.flip(1))

    register(Operator("swap", rule, (), {Swap: lambda module: {"module": module}}))
    model, box = nn.Sequential(nn.Linear(3, 3), Swap(), nn.ReLU()).double().eval(), random_box(2, 3)
    lower, upper = bound(model, box)
    with torch.no_grad():
        assert_contains(lower, upper, torch.stack([model(x) for x in points_of(box, 100)]))


# ---------------------------------------------------------------------------------------------------------------------
# The result


def test_shapes_and_dtypes():
    model = mlp().eval()
    lower, upper = bound(model, LinfBall(torch.rand(5, 2), 0.1))
    assert lower.shape == upper.shape == (5, 3) and lower.dtype == upper.dtype == torch.float32
    lower, upper = bound(model, LinfBall(torch.rand(5, 2), 0.1), spec=margin_spec(torch.zeros(5, dtype=torch.long), 3))
    assert lower.shape == upper.shape == (5, 2) and (lower <= upper).all()


@pytest.mark.parametrize("radius", [-0.1, float("nan")])
def test_a_region_that_is_no_box_is_refused(radius):
    """A negative radius would come out as lower bounds above upper ones."""
    box = Box(torch.rand(2, 2), torch.full((2, 2), radius))
    with pytest.raises(ValueError, match="radius"):
        bound(mlp().eval(), box)


def test_a_larger_ball_has_larger_bounds():
    model, x = Residual().double().eval(), torch.rand(3, 2, dtype=torch.float64)
    before = bound(model, LinfBall(x, 0))
    for eps in (1e-6, 1e-3, 0.01, 0.1, 0.5, 1.0):
        lower, upper = bound(model, LinfBall(x, eps))
        assert (lower <= before[0]).all() and (before[1] <= upper).all()
        before = lower, upper


def test_examples_of_a_batch_do_not_touch_each_other():
    model, box = Residual().double().eval(), random_box(4, 2)
    together = bound(model, box)
    for example in range(4):
        one = slice(example, example + 1)
        alone = bound(model, Box(box.center[one], box.radius[one]))
        torch.testing.assert_close(alone, tuple(end[one] for end in together), rtol=1e-12, atol=1e-12)
