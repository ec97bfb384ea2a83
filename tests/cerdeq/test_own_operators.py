"""Operators that a user registers: their rules count, replace others, and are refused where one is missing."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from graphs import layers, optima, relu, specs
from milp import Graph, Node
from oracles import Lambda, assert_contains, points_of, random_box
from torch import nn

from cerdeq import bound
from cerdeq.bounds import BOUNDS, Interval, Operator, Pulled, affine, register
from cerdeq.operators.relu import crossing
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


def absolute_rule(ctx, x):
    low = torch.relu(torch.maximum(x.box.lower, -x.box.upper))
    high = torch.maximum(x.box.lower.abs(), x.box.upper.abs()) * (1 + 1e-12)
    return Interval((low + high) / 2, (high - low) / 2 + 1e-12 * high)


def absolute_backward(ctx, coefficients, x):
    """|p| >= p and -p; |p| <= the largest in the box."""
    largest = torch.maximum(x.box.lower.abs(), x.box.upper.abs()) * (1 + 1e-9)
    positive, negative = coefficients.clamp(min=0), coefficients.clamp(max=0)
    sign = torch.where(x.center >= 0, 1.0, -1.0).to(coefficients)
    constant = (negative * largest.unsqueeze(1)).flatten(2).sum(2)
    return Pulled((positive * sign.unsqueeze(1),), constant - 1e-9 * (1 + constant.abs()))


def test_operators_with_backward_rules_enclose_the_exact_optima():
    """An affine one, whose backward rule `affine` derives, and one that is not affine."""
    modules = {Flip: lambda module: {"times": module.times}}
    register(Operator("flip", flip_rule, modules=modules, backward=affine(flip, flip_rule)))
    functions = (torch.abs, torch.Tensor.abs)
    register(Operator("absolute", absolute_rule, functions, {}, absolute_backward, crossing), replace=True)
    for node in (Flip(1.0), Flip(-0.5), lambda n: Node(torch.abs, (n,), -1.0)):
        torch.manual_seed(0)
        nodes = layers(nn.Linear(3, 4), relu, node, nn.Linear(4, 4), relu, nn.Linear(4, 2))
        graph, box = Graph(nodes).double().eval(), random_box(2, 3)
        spec = specs(graph, box)
        minima, maxima, _ = optima(graph, box, spec)
        bounds = [bound(graph, box, method, spec) for method in BOUNDS]
        for lower, upper in bounds:
            assert (lower <= minima + 1e-6).all() and (maxima - 1e-6 <= upper).all()
        for (lower, upper), (tighter_lower, tighter_upper) in itertools.pairwise(bounds):
            assert (lower <= tighter_lower).all() and (tighter_upper <= upper).all()
        assert not isinstance(node, Flip) or (bounds[1][0] > bounds[0][0]).any()
