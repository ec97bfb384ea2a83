"""Interval bounds of every operator, in every form, against oracles that share no code with the rules."""

import pytest
import torch
import torch.nn.functional as F
from cases import AFFINE, AUGMENTED, CASES, NOT_AFFINE, Case, assert_sound, build_model, function
from oracles import DTYPES, affine_extremes, assert_contains, dense_affine, points_of, random_box
from pairs import every_pair
from torch import nn

from cerdeq import Box, bound
from cerdeq.bounds import BOUNDS, Context, Interval, propagate, trace
from cerdeq.operators.table import TABLE

LARGE_AND_SMALL = [1.0, *(pytest.param(scale, marks=pytest.mark.slow) for scale in (1e-3, 1e3))]


def test_every_form_of_every_operator_has_a_case():
    assert set(CASES) == {record.name for record in TABLE}
    for record in TABLE:
        steps = [step for case in CASES[record.name] for step in trace(build_model(case)).steps]
        functions = {step.target for step in steps if not isinstance(step.target, nn.Module)}
        modules = {type(step.target) for step in steps if isinstance(step.target, nn.Module)}
        assert record.name in {step.record.name for step in steps if step.record}
        missing = [f for f in record.functions if f not in functions | AUGMENTED]
        assert not missing and set(record.modules) <= modules, f"no case of {record.name} for {missing}"


@pytest.mark.parametrize("scale", LARGE_AND_SMALL)
@pytest.mark.parametrize("name", AFFINE)
def test_affine_operators_have_their_exact_extremes(name, scale):
    for case in AFFINE[name]:
        model, box = build_model(case), random_box(3, *case.shape, scale=scale)
        lower, upper = affine_extremes(*dense_affine(model, case.shape), box)
        bounds = [end.flatten(1) for end in bound(model, box)]
        size = 1 + max(lower.abs().max().item(), upper.abs().max().item())
        assert (bounds[0] <= lower + 1e-13 * size).all() and (upper - 1e-13 * size <= bounds[1]).all(), case.name
        torch.testing.assert_close(bounds, [lower, upper], rtol=0, atol=1e-11 * size)


@pytest.mark.parametrize("scale", LARGE_AND_SMALL)
@pytest.mark.parametrize("name", NOT_AFFINE)
def test_extremes_at_corners_and_kinks_are_exact(name, scale):
    """At the ends, as of max pooling, which is monotone; at 0 of leaky ReLU of any slope; at -1.5 of hard swish."""
    for case in NOT_AFFINE[name]:
        model, box = build_model(case), random_box(3, *case.shape, scale=scale)
        kink = torch.full_like(box.center, -1.5 if name == "hardswish" else 0.0)
        points = box.lower, box.upper, kink.clamp(box.lower, box.upper)
        with torch.no_grad():
            values = torch.stack([model(point.clone()) for point in points])
        lower, upper = bound(model, box)
        torch.testing.assert_close(lower, values.amin(0), rtol=1e-13, atol=1e-13 * scale)
        torch.testing.assert_close(upper, values.amax(0), rtol=1e-13, atol=1e-13 * scale)
        assert (lower <= values.amin(0)).all() and (values.amax(0) <= upper).all(), case.name


@pytest.mark.usefixtures("short_searches")
@pytest.mark.parametrize(
    ("case", "method", "scale"),
    every_pair([case for group in NOT_AFFINE.values() for case in group if not case.form], BOUNDS, [1e-3, 1.0, 1e3]),
)
def test_bounds_of_what_is_not_affine_contain_its_values(case, method, scale):
    """In float32, of sums of either sign, against values in float64 of the same weights."""
    model, box = build_model(case, torch.float32), random_box(3, *case.shape, scale=scale, dtype=torch.float32)
    outputs = bound(model, box)[0][0].numel()
    spec = torch.randn(3, 4, outputs) * (torch.rand(3, 4, outputs) > 0.5)
    lower, upper = bound(model, box, method, spec)
    model, wide = model.double(), Box(box.center.double(), box.radius.double())
    with torch.no_grad():
        values = torch.stack([model(x.clone()).flatten(1) for x in [wide.center, *points_of(wide, 60)]])
    assert_contains(lower.double(), upper.double(), torch.einsum("bkn,sbn->sbk", spec.double(), values), 1e-14)


def test_constants_may_broadcast_the_value():
    """[B, 3, 1] and [3, 4] give [B, 3, 4]."""
    for forward in (lambda x, c: x + c, lambda x, c: c - x, lambda x, c: x * c, lambda x, c: x / c):
        model, box = build_model(Case("", function(forward, c=(3, 4)), (3, 1))), random_box(2, 3, 1)
        lower, upper = affine_extremes(*dense_affine(model, (3, 1)), box)
        bounds = bound(model, box)
        torch.testing.assert_close(bounds, (lower.view(2, 3, 4), upper.view(2, 3, 4)), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CASES)
def test_radius_zero_is_the_forward_pass(name, dtype):
    for case in CASES[name]:
        model, x = build_model(case, dtype), torch.randn(3, *case.shape, dtype=dtype)
        with torch.no_grad():
            result = propagate(trace(model), Interval(x, torch.zeros_like(x), x), Context(sound=False))
            lower, upper = bound(model, Box(x, torch.zeros_like(x)))
            value = model(x.clone())  # after the bounds: a model whose ReLU works in place changes x
        tolerance = 64 * torch.finfo(dtype).eps * (1 + value.abs().max().item())
        assert result.center.dtype == lower.dtype == dtype and not result.radius.any(), case.name
        torch.testing.assert_close(result.center, value, rtol=0, atol=tolerance)
        torch.testing.assert_close(result.clean, value, rtol=0, atol=tolerance)
        assert (lower <= value + tolerance).all() and (value <= upper + tolerance).all(), case.name
        assert (upper - lower).max() <= 64 * tolerance, case.name


@pytest.mark.parametrize("name", CASES)
def test_clean_value_and_box_do_not_mix(name):
    for case in CASES[name]:
        model, box = build_model(case), random_box(3, *case.shape)
        clean = box.center + 5 + torch.rand_like(box.center)
        program = trace(model)
        with torch.no_grad():
            both = propagate(program, Interval(box.center, box.radius, clean), Context(sound=False))
            alone = propagate(program, Interval(box.center, box.radius), Context(sound=False))
            value = model(clean.clone())
        torch.testing.assert_close((both.clean, both.center), (value, alone.center))
        assert torch.equal(both.radius, alone.radius) and alone.clean is None, case.name


@pytest.mark.parametrize("name", CASES)
def test_float32_bounds_contain_the_float64_interval_of_the_same_weights(name):
    for case in CASES[name]:
        model, box = build_model(case, torch.float32), random_box(3, *case.shape, dtype=torch.float32)
        lower, upper = bound(model, box)
        wide = Interval(box.center.double(), box.radius.double())
        exact = propagate(trace(model.double()), wide, Context(sound=False))
        tolerance = 1e-14 * (1 + exact.center.abs() + exact.radius)
        assert (lower.double() <= exact.box.lower + tolerance).all(), case.name
        assert (exact.box.upper - tolerance <= upper.double()).all(), case.name


@pytest.mark.parametrize("name", CASES)
def test_gradients_reach_every_end_of_the_box(name):
    for case in CASES[name]:
        model, box = build_model(case), random_box(2, *case.shape)
        center, radius = box.center.requires_grad_(), box.radius.requires_grad_()
        result = propagate(trace(model), Interval(center, radius), Context(sound=False))
        (result.center.sum() + result.radius.square().sum()).backward()
        for gradient in [center.grad, radius.grad, *(p.grad for p in model.parameters())]:
            assert gradient is not None and gradient.isfinite().all(), case.name


@pytest.mark.parametrize("method", BOUNDS)
@pytest.mark.parametrize("pool", [F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d])
def test_images_without_channels_are_pooled(pool, method):
    assert_sound(function(lambda x: pool(x - 0.2, 2))(), random_box(3, 4, 5), method)
