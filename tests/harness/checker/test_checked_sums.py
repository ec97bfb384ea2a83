"""The checker's sums of ReLUs between sparse layers: in exact rational arithmetic, and lattices that it confirms."""

import copy
from fractions import Fraction

import numpy as np
import pytest
import torch
from lattices import assert_remainder_holds, lattice, sums_of_relus
from searches import checked, searched
from torch import nn

from cerdeq import Box
from cerdeq.branch import input_search
from harness.checker.bounds import boxes, forms, maps
from harness.checker.bounds.forms import Form, form_after_map, form_after_relu, regions_of_part, relu_sums
from harness.checker.bounds.network import Network, ReluStep, Step, read_network
from harness.checker.proofs.example import CERTIFICATE


def region(center, radius):
    return Box(torch.full((1, 2), center).double(), torch.full((1, 2), radius).double())


def test_a_lattice_is_confirmed_only_where_it_is_positive(monkeypatch):
    """Its minimum over a fine grid is 0.02."""
    monkeypatch.setattr(input_search, "_MOST_BYTES", 0)
    monkeypatch.setattr(forms, "_MOST_VALUES", 0)
    monkeypatch.setattr(forms, "tighten", None)  # it would raise an error
    model, box = lattice(0, least=0.02), region(0.0, 1.0)
    result, tensors = searched(model, box, branches=300)
    assert result.status == ["certified"] and tensors
    assert checked(model, box, tensors).proved_by == CERTIFICATE
    lower = copy.deepcopy(model)
    lower[-1].bias -= 0.02 + 1e-9
    assert checked(lower, box, tensors).proved_by == ""


@pytest.mark.parametrize("radius", [1e-12, 0.01, 1.0])
def test_boxes_of_a_lattice_contain_all_values_and_are_far_smaller(radius, monkeypatch):
    monkeypatch.setattr(forms, "_MOST_VALUES", 0)
    monkeypatch.setattr(forms, "tighten", lambda network, region, box, mask, functional: box)
    network, part = read_network(lattice(0)), boxes.Box(np.full((1, 2), 0.3), np.full((1, 2), radius))
    by_sums, by_steps = (next(regions_of_part(network, part, sums)).values for sums in (relu_sums(network), {}))
    points = part.center + radius * np.random.default_rng(0).uniform(-1, 1, (2000, 2))
    values = network.boxes(boxes.Box(points, np.zeros_like(points)))
    for box, at_points in zip(by_sums, values, strict=True):
        assert (np.abs(at_points.center - box.center) <= box.radius + at_points.radius).all()
    assert by_sums[-1].radius.sum() <= by_steps[-1].radius.sum() * (0.5 if radius == 1 else 1)


@pytest.mark.parametrize("scale", [1.0, 1e-8, 1e8])
@pytest.mark.parametrize("remainder", [0.0, 1e-17, 0.1])
@pytest.mark.parametrize(("offset", "distance"), [(0.0, 0.0), (1e9, 0.0), (1e9, 100.0)])
def test_errors_hold_in_exact_arithmetic(scale, remainder, offset, distance):
    for v, c, w, points, more in sums_of_relus(scale, offset, distance):
        first, last = maps.product(v, c), maps.product(w, np.zeros(3))
        steps = [Step("v", first, (0,)), Step("relu", ReluStep(None), (1,)), Step("w", last, (2,))]
        ((number, sums),) = relu_sums(Network(steps, w, np.zeros(3))).items()
        assert number == 3 and (sums.firsts != sums.units).sum() == 4
        x = Form(points, np.full((1, 4), scale * remainder))
        p = form_after_map(steps[0], [x])
        box = boxes.Box(p.box.center - more * p.box.radius, (1 + more) * p.box.radius * (1 + 1e-12))
        z = form_after_relu(p, box)
        by_steps = form_after_map(steps[2], [z])
        form = forms.with_less_error(sums, [x, p, z, by_steps], box)
        assert (form.remainder <= by_steps.remainder).all()
        assert (form.remainder < by_steps.remainder).any() or more.any() or distance
        assert_remainder_holds((v, c, w), points, scale * remainder, form.points, form.remainder[0])


def test_rounding_of_products_is_counted():
    """Of sums of products that cancel in float64, but not quite in exact arithmetic."""
    random, missed, zeros = np.random.default_rng(0), 0, np.zeros((1, 2))
    for _ in range(50):
        v, w = random.uniform(1, 2, (2, 1)), random.uniform(1, 2, (1, 2))
        w[0, 1] = -w[0, 0] * v[0, 0] / v[1, 0]
        layers = maps.product(v, np.zeros(2)), ReluStep(None), maps.product(w, np.zeros(1))
        steps = [Step(str(number), layer, (number,)) for number, layer in enumerate(layers)]
        (sums,) = relu_sums(Network(steps, w, np.zeros(1))).values()
        computed = sums.error(np.ones((1, 1)), np.ones((1, 2)), zeros, zeros, zeros)
        exact = abs(sum(Fraction(a) * Fraction(b) for a, b in zip(w[0], v[:, 0], strict=True)))
        assert exact <= Fraction(computed.item())
        missed += exact > abs(Fraction((w @ v).item()))
    assert missed


@pytest.mark.parametrize(
    ("v", "w", "x", "slope"),
    [
        (1e-165, 1e-165, 1e30, 1.0),
        (1e-200, 1e-200, 1e100, 1.0),
        (1e280, 1e-165, 1e-100, 1e-160),
        (1e-320, 0.1, 1e20, 1.0),
    ],
)
def test_products_that_underflow_are_counted(v, w, x, slope):
    first, last = (maps.product(np.full((1, 1), weight), np.zeros(1)) for weight in (v, w))
    steps = [Step("v", first, (0,)), Step("relu", ReluStep(None), (1,)), Step("w", last, (2,))]
    (sums,) = relu_sums(Network(steps, np.eye(1), np.zeros(1))).values()
    one, zero = np.ones((1, 1)), np.zeros((1, 1))
    exact = Fraction(v) * Fraction(w) * Fraction(slope) * Fraction(x)
    assert exact <= Fraction(float(sums.error(x * one, slope * one, zero, zero, zero)[0, 0]))


def test_layers_of_more_dimensions_are_bounded_step_by_step():
    """Those of cerdeq's search are sums there, too."""
    torch.manual_seed(0)

    class Rows(nn.Module):
        def forward(self, x):
            return x.reshape(-1, 3, 2)

    layers = [nn.Linear(2, 6), Rows(), nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1), nn.Flatten(), nn.Linear(3, 1)]
    network = read_network(nn.Sequential(*layers).double().eval().requires_grad_(False))
    part = boxes.Box(np.zeros((1, 2)), np.full((1, 2), 0.1))
    assert relu_sums(network)
    with_sums, without = (next(regions_of_part(network, part, sums)) for sums in (relu_sums(network), {}))
    assert (with_sums.values[-1].radius == without.values[-1].radius).all()


def test_opposite_units_whose_boxes_differ_do_not_share_their_errors():
    """relu(p) - relu(-p) is p; the lines p / 2 + 1/4 and -p / 2 + 1/2, of boxes of radius 1 and 2, miss it by 1/4."""
    first, last = (maps.product(np.array(w), np.zeros(len(w))) for w in ([[1.0], [-1.0]], [[1.0, -1.0]]))
    steps = [Step("v", first, (0,)), Step("relu", ReluStep(None), (1,)), Step("w", last, (2,))]
    (sums,) = relu_sums(Network(steps, np.eye(1), np.zeros(1))).values()
    half, shift, size, zeros = (np.array([part]) for part in ([0.5, 0.5], [0.25, 0.5], [1.0, 2.0], [0.0, 0.0]))
    assert sums.error(np.zeros((1, 1)), half, shift, size, zeros) >= 0.25


def test_rounding_of_the_last_sum_is_counted():
    """Of points whose units are all active, so that nothing else is rounded."""
    for seed in range(20):
        random = np.random.default_rng(seed)
        x, w = random.uniform(1, 2, (1, 4)), random.normal(size=(1, 4))
        first, last = maps.product(np.eye(4), np.zeros(4)), maps.product(w, np.zeros(1))
        steps = [Step("v", first, (0,)), Step("relu", ReluStep(None), (1,)), Step("w", last, (2,))]
        (sums,) = relu_sums(Network(steps, w, np.zeros(1))).values()
        parts = [Form(x, np.zeros((1, 4)))] * 3
        after = form_after_map(steps[2], parts[:1])
        form = forms.with_less_error(sums, [*parts, after], boxes.Box(x, np.zeros((1, 4))))
        assert form.remainder < after.remainder, "the sum's own error counts"
        exact = sum(Fraction(a) * Fraction(b) for a, b in zip(w[0], x[0], strict=True))
        assert abs(exact - Fraction(form.points.item())) <= Fraction(form.remainder.item())
