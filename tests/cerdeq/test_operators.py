"""Interval bounds of every operator, in every form, against oracles that know nothing of the rules."""

import pytest
import torch
import torch.nn.functional as F
from cases import (
    AFFINE,
    AUGMENTED,
    CASES,
    NOT_AFFINE,
    Case,
    assert_sound,
    curved,
    every_pair,
    function,
    listed,
    wrapped,
)
from oracles import (
    DTYPES,
    Lambda,
    affine_extremes,
    assert_contains,
    corners_and_grid,
    dense_affine,
    points_of,
    random_box,
)
from torch import nn

from cerdeq import Box, bound
from cerdeq.bounds import BOUNDS, Context, Interval, Operator, propagate, register, trace
from cerdeq.bounds.operators import TABLE

SCALES = [1e-3, 1.0, 1e3]


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


@pytest.mark.parametrize("scale", SCALES)
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


PIECEWISE_LINEAR = {name: group for name, group in NOT_AFFINE.items() if not curved(group)}


def test_a_curve_is_told_from_what_is_piecewise_linear():
    assert curved([Case("", function(torch.asinh), (7,))]) and curved([Case("", function(torch.square), (7,))])
    assert set(PIECEWISE_LINEAR) >= {"relu", "leaky_relu", "max_pool2d"}


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("case", listed(PIECEWISE_LINEAR))
def test_extremes_at_corners_and_kinks_are_exact(case, scale):
    """Max pooling is monotone; leaky ReLU of any slope has its extremes at the ends, or at 0 where it lies inside."""
    model = wrapped(case)
    box = random_box(3, *case.shape, scale=scale)
    places = box.lower, box.upper, torch.zeros_like(box.center).clamp(box.lower, box.upper)
    with torch.no_grad():
        values = torch.stack([model(place.clone()) for place in places])
    lower, upper = bound(model, box)
    torch.testing.assert_close(lower, values.amin(0), rtol=1e-13, atol=1e-13 * scale)
    torch.testing.assert_close(upper, values.amax(0), rtol=1e-13, atol=1e-13 * scale)
    assert (lower <= values.amin(0)).all() and (values.amax(0) <= upper).all()


@pytest.mark.parametrize(
    ("case", "scale", "method"),
    every_pair([case for group in NOT_AFFINE.values() for case in group], SCALES, BOUNDS, share=3),
)
def test_bounds_of_what_is_not_affine_contain_its_values(case, scale, method):
    """In float32, of sums of either sign, judged by values in float64 of the same weights."""
    model, box = wrapped(case, torch.float32), random_box(3, *case.shape, scale=scale, dtype=torch.float32)
    outputs = bound(model, box)[0][0].numel()
    spec = torch.randn(3, 4, outputs) * (torch.rand(3, 4, outputs) > 0.5)
    lower, upper = bound(model, box, method, spec)
    model, wide = model.double(), Box(box.center.double(), box.radius.double())
    with torch.no_grad():
        values = torch.stack([model(x.clone()).flatten(1) for x in [wide.center, *points_of(wide, 60)]])
    assert_contains(lower.double(), upper.double(), torch.einsum("bkn,sbn->sbk", spec.double(), values), 1e-14)


@pytest.mark.parametrize(
    "forward",
    [lambda x, c: x + c, lambda x, c: c - x, lambda x, c: x * c, lambda x, c: x / c],
    ids=["add", "subtract", "multiply", "divide"],
)
def test_constants_may_broadcast_the_value(forward):
    """[B, 3, 1] and [3, 4] give [B, 3, 4]."""
    model, box = wrapped(Case("", function(forward, c=(3, 4)), (3, 1))), random_box(2, 3, 1)
    lower, upper = affine_extremes(*dense_affine(model, (3, 1)), box)
    bounds = bound(model, box)
    torch.testing.assert_close(bounds, (lower.view(2, 3, 4), upper.view(2, 3, 4)), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("method", BOUNDS)
@pytest.mark.parametrize("pool", [F.avg_pool2d, F.max_pool2d], ids=["average", "max"])
def test_a_window_of_one_number_in_a_tuple_is_square(pool, method):
    """As torch allows."""
    assert_sound(Lambda(lambda module, x: F.relu(pool(x, (2,)))), random_box(2, 2, 4, 4), method)


POOLS = {
    "plain": {"kernel_size": 2},
    "overlapping": {"kernel_size": 2, "stride": 1},
    "padded": {"kernel_size": 3, "stride": 2, "padding": 1},
    "dilated": {"kernel_size": 2, "stride": 1, "dilation": 2},
    "ceil": {"kernel_size": 2, "ceil_mode": True},
    "all": {"kernel_size": (2, 3), "stride": (2, 1), "padding": (1, 1), "dilation": (2, 1), "ceil_mode": True},
}


@pytest.mark.parametrize("name", POOLS)
def test_max_pooling_of_nine_pixels_is_exact_at_every_corner(name):
    model = nn.Sequential(nn.MaxPool2d(**POOLS[name])).eval()
    box = random_box(1, 9)
    values = model(corners_and_grid(box, 2).view(-1, 1, 3, 3))
    lower, upper = bound(model, Box(box.center.view(1, 1, 3, 3), box.radius.view(1, 1, 3, 3)))
    torch.testing.assert_close(lower[0], values.amin(0), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(upper[0], values.amax(0), rtol=1e-13, atol=1e-13)


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


class Asinh(nn.Module):
    def forward(self, x):
        return torch.asinh(x)


def asinh_rule(ctx, x):
    low, high = torch.asinh(x.box.lower) - 1e-6, torch.asinh(x.box.upper) + 1e-6
    clean = None if x.clean is None else torch.asinh(x.clean)
    return Interval((low + high) / 2, (high - low) / 2, clean)


def test_an_operator_from_outside_is_bounded_by_its_rule(own_operators):
    record = Operator("asinh", asinh_rule, (torch.asinh, torch.Tensor.asinh), {Asinh: lambda module: {}})
    register(record)
    model = nn.Sequential(nn.Linear(3, 4), Asinh(), Lambda(lambda module, x: torch.asinh(x) + x.asinh()))
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
    record = Operator("linear", looser, (), arguments)
    with pytest.raises(ValueError, match=r"'linear': <class .*Linear'> has a rule already"):
        register(record)
    register(record, replace=True)
    model, box = nn.Sequential(nn.Linear(3, 2)).double().eval(), random_box(1, 3)
    bound(model, box, spec=torch.eye(2, dtype=torch.float64)[None])
    assert ran


def test_a_users_own_module_may_be_one_operator(own_operators):
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
