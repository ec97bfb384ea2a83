"""Operators that a user registers: their rules count, replace others, and are refused where one is missing."""

import pytest
import torch
import torch.nn.functional as F
from graphs import layers, optima, relu, specs
from milp import Graph
from oracles import Lambda, assert_contains, points_of, random_box
from torch import nn

from cerdeq import bound
from cerdeq.bounds import BOUNDS, Interval, Operator, affine, register
from cerdeq.operators.table import TABLE

pytestmark = pytest.mark.usefixtures("own_operators")


class Asinh(nn.Module):
    def forward(self, x):
        return torch.asinh(x)


def asinh_rule(ctx, x):
    low, high = torch.asinh(x.box.lower) - 1e-6, torch.asinh(x.box.upper) + 1e-6
    return Interval((low + high) / 2, (high - low) / 2, None if x.clean is None else torch.asinh(x.clean))


def assert_sampled(model, box):
    lower, upper = bound(model, box)
    with torch.no_grad():
        assert_contains(lower, upper, torch.stack([model(x) for x in points_of(box, 100)]))


def test_an_operator_is_bounded_by_its_rule_as_function_method_and_module():
    record = Operator("asinh", asinh_rule, (torch.asinh, torch.Tensor.asinh), {Asinh: lambda module: {}})
    register(record)
    model = nn.Sequential(nn.Linear(3, 4), Asinh(), Lambda(lambda module, x: torch.asinh(x) + x.asinh()))
    assert_sampled(model.double().eval(), random_box(3, 3))
    assert record not in TABLE


def test_a_replaced_rule_counts_under_a_spec_too():
    """The table's own linear rule has the spec merged into it; a replacement is a rule like any other."""
    calls = []

    def looser(ctx, x, weight, bias=None):
        calls.append(True)
        return Interval(F.linear(x.center, weight, bias), F.linear(x.radius, weight.abs()) + 1)

    record = Operator("linear", looser, (), {nn.Linear: lambda m: {"weight": m.weight, "bias": m.bias}})
    with pytest.raises(ValueError, match=r"'linear': <class .*Linear'> has a rule already"):
        register(record)
    register(record, replace=True)
    bound(nn.Sequential(nn.Linear(3, 2)).double().eval(), random_box(1, 3), spec=torch.eye(2).double()[None])
    assert calls


def flip(x, times=1.0):
    return x.flip(1).cumsum(1) * times


def flip_rule(ctx, x, times=1.0):
    rounding = flip(x.center.abs() + x.radius, abs(times)) * 1e-12
    return Interval(flip(x.center, times), flip(x.radius, abs(times)) + rounding)


class Flip(nn.Module):
    def __init__(self, times):
        super().__init__()
        self.times = times

    def forward(self, x):
        return flip(x, self.times)


def test_an_operator_whose_backward_rule_is_derived_encloses_the_exact_optima():
    modules = {Flip: lambda module: {"times": module.times}}
    register(Operator("flip", flip_rule, modules=modules, backward=affine(flip, flip_rule)))
    graph = Graph(layers(nn.Linear(3, 4), relu, Flip(-0.5), nn.Linear(4, 4), relu, nn.Linear(4, 2))).double().eval()
    box = random_box(2, 3)
    spec = specs(graph, box)
    minima, maxima, _ = optima(graph, box, spec)
    for method in BOUNDS:
        lower, upper = bound(graph, box, method, spec)
        assert (lower <= minima + 1e-6).all() and (maxima - 1e-6 <= upper).all()
