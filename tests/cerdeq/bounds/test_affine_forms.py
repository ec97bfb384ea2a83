"""Boxes by affine forms: against exact minima by mixed-integer programming, and in exact rational arithmetic."""

from fractions import Fraction
from itertools import product

import pytest
import torch
from edges import graph_case, near_the_edge
from graphs import network, optima
from oracles import exact_value, fractions, lost, points_of, random_box
from torch import nn

from cerdeq import Box, verify
from cerdeq.bounds import Context, Interval, affine_forms, trace, values_of
from cerdeq.bounds.affine_forms import _Form, values_by_forms
from cerdeq.branch import input_search
from cerdeq.precision import counted_rounding

NAMES = ["deep", "convolution padded", "residual", "dense", "shared", "broadcast"]


@torch.no_grad()
def values_over(model, region):
    """Return the values by forms of all inputs, and by IBP."""
    inputs = range(region.center.numel())
    program, x = trace(model, linear=True), Interval(region.center, region.radius)
    with counted_rounding("cpu"):
        by_forms = values_by_forms(program, x, torch.tensor(list(inputs)), 2**28, {})
        return by_forms, values_of(program, x, Context(sound=True))


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_boxes_contain_exact_minima_and_values_at_points_and_are_smaller_than_those_of_ibp(name):
    graph, shape = network(name, 0)
    graph, region = graph.double().eval(), random_box(1, *shape, scale=0.7)
    by_forms, by_ibp = values_over(graph, region)
    last = by_forms[-1]
    minima, maxima, _ = optima(graph, region, torch.eye(last.center[0].numel(), dtype=torch.float64)[None])
    assert (last.box.lower.flatten(1) <= minima + 1e-7).all() and (last.box.upper.flatten(1) >= maxima - 1e-7).all()
    points = points_of(region, 200)[:, 0]
    at_points = values_of(trace(graph, linear=True), Interval(points, torch.zeros_like(points)), Context(sound=False))
    is_narrower = False
    for tight, loose, exact in zip(by_forms, by_ibp, at_points, strict=True):
        if isinstance(tight, Interval):
            assert ((exact.center - tight.center).abs() <= tight.radius * (1 + 1e-9) + 1e-12).all()
            assert (tight.radius <= loose.radius * (1 + 1e-9) + 1e-12).all()
            is_narrower |= bool((tight.radius < 0.9 * loose.radius).any())
    assert is_narrower or name not in ("deep", "residual", "convolution padded")  # those with layers enough


@pytest.mark.parametrize("scale", [1.0, 1e-9, 1e9])
@pytest.mark.parametrize("radius", [0.0, 1e-16, 1e-3])
@torch.no_grad()
def test_rounding_is_counted(scale, radius):
    """Sums that cancel, of a box of two inputs that is hardly wider than rounding; the third input is fixed."""
    torch.manual_seed(0)
    for _ in range(8):
        layers = [nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2)]
        model = nn.Sequential(*layers).double().eval()
        for layer in layers[::2]:
            layer.weight.copy_(scale * torch.randn_like(layer.weight))
        center = torch.randn(1, 3, dtype=torch.float64)
        for layer, before in ((layers[0], center), (layers[2], model[:2](center)), (layers[4], model[:4](center))):
            layer.bias.copy_(-(before @ layer.weight.T)[0])  # all but rounding is gone, and signs are not known
            layer.bias[0] += 1e-3 * scale
        region = Box(center, torch.tensor([[radius, radius, 0.0]], dtype=torch.float64))
        box = values_over(model, region)[0][-1]
        exact = zip(fractions(region.center[0]), fractions(region.radius[0]), strict=True)
        for x in product(*[{c - r, c, c + r} for c, r in exact]):
            ends = zip(exact_value(layers, list(x)), fractions(box.center[0]), fractions(box.radius[0]), strict=True)
            assert all(abs(value - c) <= r for value, c, r in ends)


def line(form, shares):
    """Return L, Fractions, at the centre moved by these shares of the radii."""
    first, *others = (fractions(point[0]) for point in form.points)
    for share, moved in zip(shares, others, strict=True):
        first = [
            value + share * (end - c) for value, end, c in zip(first, moved, fractions(form.points[0, 0]), strict=True)
        ]
    return first


def after_sum(points):
    """Return a form of these points, and the form of the sum of their elements."""
    layer = nn.Linear(points.shape[2], 1).double()
    layer.weight.data.fill_(1), layer.bias.data.zero_()
    program, form = trace(nn.Sequential(layer), linear=True), _Form(points, *torch.zeros(2, *points[0].shape).double())
    values = [Interval(points[0], torch.zeros_like(points[0]))]
    return form, affine_forms._affine(Context(sound=True), program.steps[-1], values, {0: form})


@pytest.mark.parametrize("kinds", [(0, 1, 0), (0, 1, 1), (1, *[0] * 200)], ids=["a point", "all points", "the centre"])
@torch.no_grad()
def test_errors_of_points_are_counted_at_each_share(kinds):
    form, after = after_sum(torch.stack([kind * lost(torch.float64, 256)[None] for kind in kinds]))
    for share in (-1, 0, 1):
        shares = [share] * (len(kinds) - 1)
        (value,) = line(after, shares)
        assert abs(value - sum(line(form, shares))) <= Fraction(after.remainder.item())


def test_ends_of_a_form_are_rounded_outwards():
    moved = lost(torch.float64, 256)[:, None, None]
    box = _Form(torch.cat([torch.zeros_like(moved[:1]), moved]), *torch.zeros(2, 1, 1).double()).box
    assert sum(fractions(moved.flatten())) <= Fraction(box.radius.item())


@pytest.mark.parametrize("reach", [1.0, 1e10])
def test_lines_of_a_relu_hold_far_from_its_box(reach):
    """Of a form whose points lie up to `reach` from the box, which other bounds know."""
    for seed in range(20):
        center, end, low, high = torch.rand(4, generator=torch.Generator().manual_seed(seed)).double().tolist()
        points = torch.tensor([[[center * reach]], [[2 * center * reach + end]]], dtype=torch.float64)
        form = _Form(points, torch.full((1, 1), 1e-3, dtype=torch.float64), torch.zeros(1, 1).double())
        ends = torch.tensor([[[high - low]], [[high + low]]], dtype=torch.float64)
        x = Interval(*ends / 2)
        after = affine_forms._relu(form, x)
        for value in (Fraction(-low), Fraction(0), Fraction(high)):
            first, second = (Fraction(point.item()) for point in points)
            for distance in (Fraction(form.remainder.item()), -Fraction(form.remainder.item())):
                share = (value + distance - first) / (second - first)
                (approximate,) = line(after, [share])
                if abs(share) <= 1:
                    assert abs(max(value, Fraction(0)) - approximate) <= Fraction(after.remainder.item())


def test_an_input_that_rounding_does_not_move_keeps_its_radius():
    x = Interval(torch.ones(1, 1).double(), torch.full((1, 1), 2.0**-54).double())
    form = affine_forms._input_form(x, torch.tensor([0]))
    assert line(form, [1]) == [1] and Fraction(form.remainder.item()) >= Fraction(1, 2**54)


@pytest.mark.parametrize("name", ["deep", "residual", "dense"])
def test_a_search_over_parts_with_forms_decides_networks_near_the_edge(name, monkeypatch):
    """As wide networks are: exact minima just above and just below 0."""
    monkeypatch.setattr(input_search, "_MOST_BYTES", 0)
    graph, region, spec, minimum = graph_case(name, 0)
    monkeypatch.setattr(input_search, "_MOST_INPUTS_OF_FORMS", region.center.numel())
    for value, shifted, _ in near_the_edge(graph, region, spec, minimum, (-0.5, 0.5)):
        result = verify(shifted, region, spec, branches=4000)
        assert result.status == ["certified" if value > 0 else "falsified"]
        assert result.lower.item() <= value + 1e-12
