"""Sums of ReLUs between sparse layers: remainders in exact rational arithmetic, lattices against exact minima."""

from fractions import Fraction

import pytest
import torch
from lattices import assert_remainder_holds, lattice, pairs, sums_of_relus
from oracles import points_of
from torch import nn

from cerdeq import Box, verify
from cerdeq.bounds import Context, Interval, affine_forms, relu_sums, trace, values_of
from cerdeq.bounds.affine_forms import _Form, values_by_forms
from cerdeq.branch import input_search
from cerdeq.precision import counted_rounding


@torch.no_grad()
def values_over(model, region, sums=None):
    """Return the values by forms. sums: of the program by default."""
    program, x = trace(model, linear=True), Interval(region.center, region.radius)
    sums = relu_sums.relu_sums(program) if sums is None else sums
    with counted_rounding("cpu"):
        return values_by_forms(program, x, torch.arange(2), 2**28, sums)


@pytest.mark.parametrize("radius", [1e-12, 0.01, 0.3, 1.0])
@torch.no_grad()
def test_boxes_of_lattices_contain_all_values_and_are_far_smaller(radius, monkeypatch):
    monkeypatch.setattr(affine_forms, "tighten_box", lambda program, values, number, box, *_, **__: box)
    shares = []
    for seed in range(5):
        model = lattice(seed)
        region = Box(torch.rand(1, 2).double(), torch.full((1, 2), radius).double())
        by_sums, by_steps = values_over(model, region), values_over(model, region, {})
        points = torch.cat([points_of(region, 2000)[:, 0], region.center])
        at_points = values_of(trace(model), Interval(points, torch.zeros_like(points)), Context(sound=False))
        for box, exact in zip(by_sums, at_points, strict=True):
            assert ((exact.center - box.center).abs() <= box.radius + 1e-14).all()
        shares.append(float(by_sums[-1].radius / by_steps[-1].radius))
    assert max(shares) <= 1 and (radius < 0.3 or sum(shares) < 0.5 * len(shares)), shares


@pytest.mark.parametrize("scale", [1.0, 1e-8, 1e8])
@pytest.mark.parametrize("remainder", [0.0, 1e-17, 0.1])
@pytest.mark.parametrize(("offset", "distance"), [(0.0, 0.0), (1e9, 0.0), (1e9, 100.0)])
@torch.no_grad()
def test_remainders_hold_in_exact_arithmetic(scale, remainder, offset, distance):
    for layers, (points, more) in ((part[:3], part[3:]) for part in sums_of_relus(scale, offset, distance)):
        v, c, w, points, more = map(torch.from_numpy, (*layers, points[:, None], more))
        first, last = nn.Linear(4, 12).double(), nn.Linear(12, 3).double()
        first.weight.data, first.bias.data, last.weight.data, last.bias.data = v, c, w, torch.zeros(3).double()
        program = trace(nn.Sequential(nn.Identity(), first, nn.ReLU(), last).requires_grad_(False), linear=True)
        (number, sums), *others = relu_sums.relu_sums(program).items()
        assert not others and int(sums.is_paired.sum()) == 4
        own_remainder = torch.full((1, 4), scale * remainder, dtype=torch.float64)
        x = _Form(points, own_remainder, torch.zeros(1, 4).double())
        ctx, steps, radius = Context(sound=True), program.steps, (points - points[0]).abs().sum(0) + x.remainder
        forms, values = {sums.source: x}, [None] * len(steps)
        values[sums.source] = Interval(points[0], radius * (1 + 1e-12))
        forms[sums.preactivation] = p = affine_forms._affine(ctx, steps[sums.preactivation - 1], values, forms)
        more = more * p.box.radius
        values[sums.preactivation] = Interval(p.box.center - more, (p.box.radius + more) * (1 + 1e-12))
        forms[sums.relu] = affine_forms._relu(p, values[sums.preactivation])
        values[sums.relu] = values[sums.preactivation]
        by_steps = affine_forms._affine(ctx, steps[number - 1], values, forms)
        form = affine_forms._of_sums(sums, forms, values, by_steps)
        assert (form.remainder <= by_steps.remainder).all()
        assert (form.remainder < by_steps.remainder).any() or more.any() or distance
        own, lines = points[:, 0].numpy(), form.points[:, 0].numpy()
        assert_remainder_holds(layers, own, scale * remainder, lines, form.remainder[0])


@torch.no_grad()
def test_rounding_of_products_is_counted():
    """Of sums of products that cancel in float64, but not quite in exact arithmetic."""
    random, missed = torch.Generator().manual_seed(0), 0
    for _ in range(50):
        v, w = torch.rand(2, 1, generator=random).double() + 1, torch.rand(1, 2, generator=random).double() + 1
        v *= 1 + torch.rand(2, 1, generator=random).double() * 1e-9  # with digits in the last places
        w[0, 1] = -w[0, 0] * v[0, 0] / v[1, 0]
        first, last = nn.Linear(1, 2).double(), nn.Linear(2, 1).double()
        first.weight.data, last.weight.data = v, w
        model = nn.Sequential(nn.Identity(), first, nn.ReLU(), last)
        (sums,) = relu_sums.relu_sums(trace(model.requires_grad_(False), linear=True)).values()
        zeros, ones = torch.zeros(1, 2).double(), torch.ones(1, 2).double()
        computed = sums.remainder(torch.ones(1, 1).double(), ones, zeros, zeros, zeros)
        exact = abs(sum(Fraction(a) * Fraction(b) for a, b in zip(w[0].tolist(), v[:, 0].tolist(), strict=True)))
        assert exact <= Fraction(computed.item())
        missed += exact > abs(Fraction((w * v.T).sum().item()))
    assert missed


def test_layers_that_are_not_sparse_or_have_no_relu_between_are_no_sums():
    dense, sparse = nn.Linear(16, 16), pairs(16, -1)
    for layers in ([sparse[0], sparse[1], nn.Linear(32, 4)], [dense, nn.ReLU(), dense], [sparse[0], sparse[2]]):
        assert not relu_sums.relu_sums(trace(nn.Sequential(*layers), linear=True))
    assert relu_sums.relu_sums(trace(nn.Sequential(*sparse), linear=True)).keys() == {3}


def test_a_lattice_is_decided_in_few_parts(monkeypatch):
    """The minimum over a fine grid is 0.02; the function's slopes are below 4, so that it is positive."""
    monkeypatch.setattr(input_search, "_MOST_BYTES", 0)
    model = lattice(0, least=0.02)
    region = Box(torch.zeros(1, 2).double(), torch.ones(1, 2).double())
    result = verify(model, region, torch.ones(1, 1, 1).double(), branches=300)
    assert result.status == ["certified"] and 0 < result.lower.item() <= 0.02
    model[-1].bias -= 0.03
    assert verify(model, region, torch.ones(1, 1, 1).double(), branches=300).status == ["falsified"]


@pytest.mark.parametrize(("v", "w", "x"), [(1e-165, 1e-165, 1e30), (1e-200, 1e-200, 1e100), (1e-320, 1e-1, 1e20)])
def test_products_that_underflow_are_counted(v, w, x):
    first, last = nn.Linear(1, 1).double(), nn.Linear(1, 1).double()
    first.weight.data.fill_(v), last.weight.data.fill_(w)
    model = nn.Sequential(nn.Identity(), first, nn.ReLU(), last)
    (sums,) = relu_sums.relu_sums(trace(model.requires_grad_(False), linear=True)).values()
    one, zero = torch.ones(1, 1).double(), torch.zeros(1, 1).double()
    assert Fraction(v) * Fraction(w) * Fraction(x) <= Fraction(sums.remainder(x * one, one, zero, zero, zero).item())


def test_layers_of_many_products_are_no_sums(monkeypatch):
    program = trace(nn.Sequential(*pairs(16, -1)), linear=True)
    monkeypatch.setattr(relu_sums, "_MOST_PRODUCTS", 100)
    assert not relu_sums.relu_sums(program)


def test_opposite_units_whose_boxes_differ_do_not_share_their_errors():
    """relu(p) - relu(-p) is p; the lines p / 2 + 1/4 and -p / 2 + 1/2, of boxes of radius 1 and 2, miss it by 1/4."""
    first, last = nn.Linear(1, 2).double(), nn.Linear(2, 1).double()
    first.weight.data, first.bias.data = torch.tensor([[1.0], [-1.0]]).double(), torch.zeros(2).double()
    last.weight.data = torch.tensor([[1.0, -1.0]]).double()
    model = nn.Sequential(nn.Identity(), first, nn.ReLU(), last)
    (sums,) = relu_sums.relu_sums(trace(model.requires_grad_(False), linear=True)).values()
    half, shift, size, zeros = torch.tensor([[0.5, 0.5], [0.25, 0.5], [1.0, 2.0], [0.0, 0.0]]).double()[:, None]
    assert sums.remainder(torch.zeros(1, 1).double(), half, shift, size, zeros).item() >= 0.25
