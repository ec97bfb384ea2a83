"""The checker's affine forms, in exact rational arithmetic, and certificates of the search that uses forms."""

import copy
import itertools
from fractions import Fraction

import numpy as np
import pytest
import torch
from searches import checked, searched
from torch import nn

from cerdeq import Box
from cerdeq.branch import input_search
from harness.checker.bounds import boxes, forms
from harness.checker.bounds.forms import Form, form_after_map, form_after_relu, regions_of_part, relu_sums
from harness.checker.bounds.maps import product
from harness.checker.bounds.network import Step, read_network
from harness.checker.proofs.box_parts import SPLITS
from harness.checker.proofs.example import CERTIFICATE

COUNT = 256


def line(form, share):
    """Return L, Fractions, at the centre moved by this share of each radius."""
    points = [[Fraction(value) for value in point.tolist()] for point in form.points]
    return [c + share * sum(end - c for end in ends) for c, *ends in zip(*points, strict=True)]


@pytest.mark.parametrize("kinds", [(0, 1, 0), (0, 1, 1), (1, *[0] * 200)], ids=["a point", "all points", "the centre"])
def test_errors_of_points_are_counted(kinds):
    """Of sums of 1 and many halves of its last digit: most of these are lost."""
    lost = np.full(COUNT, np.finfo(np.float64).eps / 2)
    lost[0] = 1
    form = Form(np.stack([kind * lost for kind in kinds]), np.zeros((1, COUNT)))
    after = form_after_map(Step("sum", product(np.ones((1, COUNT)), np.zeros(1)), (0,)), [form])
    for share in (-1, 0, 1):
        assert abs(line(after, share)[0] - sum(line(form, share))) <= Fraction(after.remainder.item())


@pytest.mark.parametrize("reach", [1.0, 1e10])
def test_lines_of_a_relu_hold_far_from_its_box(reach):
    """Of a form whose points lie up to `reach` from the box, which other bounds know."""
    for seed in range(20):
        center, end, low, high = np.random.default_rng(seed).integers(1, 2**20, 4) / 2**20
        form = Form(np.array([[center * reach], [2 * center * reach + end]]), np.full((1, 1), 2.0**-10))
        after = form_after_relu(form, boxes.Box(np.array([[(high - low) / 2]]), np.array([[(high + low) / 2]])))
        first, second = (Fraction(point.item()) for point in form.points)
        for value in (Fraction(-low), Fraction(0), Fraction(high)):
            for distance in (Fraction(1, 2**10), -Fraction(1, 2**10)):
                share = (value + distance - first) / (second - first)
                if abs(share) <= 1:
                    error = abs(max(value, Fraction(0)) - line(after, share)[0])
                    assert error <= Fraction(after.remainder.item())


@pytest.fixture(scope="module")
def wide():
    """A network of two inputs, the largest of smallest affine functions, a box, and its smallest value there.

    It is 0.05 + the smallest on a grid so fine that values between its points are at most 0.01 lower.
    """
    torch.manual_seed(1)
    first, pairs, last = nn.Linear(2, 24), nn.Linear(24, 24), nn.Linear(24, 1)
    model = nn.Sequential(first, nn.ReLU(), pairs, nn.ReLU(), last).double().eval().requires_grad_(False)
    ends = torch.linspace(-1, 1, 801, dtype=torch.float64)
    grid = torch.cartesian_prod(ends, ends)
    last.bias -= model(grid).amin() - 0.05
    slope = (last.weight.abs() @ pairs.weight.abs() @ first.weight.abs()).sum()
    lowest = float(model(grid).amin() - slope / 800)
    return model, Box(torch.zeros(1, 2).double(), torch.ones(1, 2).double()), lowest


def test_parts_of_wide_networks_are_bounded_by_forms_and_searches_confirmed(wide, monkeypatch):
    model, region, lowest = wide
    assert lowest > 0
    monkeypatch.setattr(input_search, "_MOST_BYTES", 0)
    monkeypatch.setattr(forms, "_MOST_VALUES", 0)
    monkeypatch.setattr(forms, "tight_regions", None)  # it would raise an error
    result, tensors = searched(model, region, branches=10**4)
    assert result.status == ["certified"] and SPLITS in tensors and len(tensors[SPLITS]) >= 3
    assert checked(model, region, tensors).proved_by == CERTIFICATE
    lower = copy.deepcopy(model)
    lower[-1].bias -= 0.06  # more than the smallest value on the grid
    assert checked(lower, region, tensors).proved_by == ""


def test_boxes_contain_values_at_points(wide):
    model, _, _ = wide
    random, network = np.random.default_rng(0), read_network(model)
    for radius in (1e-12, 1e-3, 0.3):
        part = boxes.Box(random.uniform(-1, 1, (1, 2)), np.full((1, 2), radius))
        region = next(regions_of_part(network, part, relu_sums(network)))
        points = part.center + radius * random.uniform(-1, 1, (500, 2))
        values = network.boxes(boxes.Box(points, np.zeros_like(points)))
        for box, at_points in zip(region.values, values, strict=True):
            assert (np.abs(at_points.center - box.center) <= box.radius + at_points.radius).all()
        loose = network.boxes(part)
        assert region.values[-1].radius.sum() < loose[-1].radius.sum() or radius < 1e-9


def test_a_search_by_other_boxes_than_forms_is_confirmed_though_the_checker_counts_more_values():
    """A leaky ReLU is two steps of the checker; through many layers, forms bound next to nothing."""
    torch.manual_seed(0)
    sizes = [2, *[46] * 31]
    layers = [nn.Sequential(nn.Linear(*pair), nn.LeakyReLU(0.01)) for pair in itertools.pairwise(sizes)]
    model = nn.Sequential(*layers, nn.Linear(46, 1))
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight)
            nn.init.zeros_(layer.bias)
    model.double().eval().requires_grad_(False)
    region = Box(torch.tensor([[0.3, -0.7]]).double(), torch.full((1, 2), 0.02).double())
    steps = torch.linspace(-0.02, 0.02, 101, dtype=torch.float64)
    lowest = model(region.center + torch.cartesian_prod(steps, steps)).amin()
    model[-1].bias += (
        model(region.center)[0, 0] - 2 * lowest
    )  # the smallest value is about its distance to the centre's
    result, tensors = searched(model, region, branches=200)
    assert result.status == ["certified"] and SPLITS in tensors
    part, network = boxes.Box(region.center.numpy(), region.radius.numpy()), read_network(model)
    assert sum(box.center.size for box in network.boxes(part)) > 4096
    assert checked(model, region, tensors).proved_by == CERTIFICATE
