"""Operators without a backward rule, and operators from outside."""

import itertools
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from graphs import LINEAR, layers, optima, relu, specs
from milp import Graph, Node
from oracles import random_box
from torch import nn

from cerdeq import bound
from cerdeq.bounds import BOUNDS, Interval, Operator, Pulled, UnsupportedOperator, affine, operators, register


class Signed(nn.Module):
    def forward(self, x):
        y = F.relu(x)
        return torch.sign(y)  # no rule of its own


def sign_rule(ctx, x):
    return Interval(torch.zeros_like(x.center), torch.ones_like(x.radius))


@pytest.mark.parametrize("method", LINEAR)
def test_an_operator_with_interval_bounds_alone_is_refused_before_anything_is_computed(method, own_operators):
    ran = []

    def rule(ctx, x):
        ran.append(x)
        return sign_rule(ctx, x)

    register(Operator("sign", rule, (torch.sign,)))
    register(replace(operators.of_function(F.relu), interval=lambda ctx, x, inplace=False: ran.append(x)), replace=True)
    with pytest.raises(UnsupportedOperator) as error:
        bound(Signed().eval(), random_box(2, 3), method)
    message = str(error.value)
    assert not ran
    assert "'sign'" in message and "test_own_operators.py" in message and "no rule of its own" in message, message


def test_an_operator_with_interval_bounds_alone_has_them(own_operators):
    register(Operator("sign", sign_rule, (torch.sign,)))
    lower, upper = bound(Signed().eval(), random_box(2, 3), "ibp")
    assert (lower <= -1).all() and (upper >= 1).all()


def flipped(x, times=1.0):
    return x.flip(1).cumsum(1) * times


def flipped_rule(ctx, x, times=1.0):
    widened = flipped(x.center.abs() + x.radius, abs(times)) * 1e-12
    return Interval(flipped(x.center, times), flipped(x.radius, abs(times)) + widened)


class Flipped(nn.Module):
    def __init__(self, times):
        super().__init__()
        self.times = times

    def forward(self, x):
        return flipped(x, self.times)


@pytest.mark.parametrize("times", [1.0, -0.5])
def test_an_affine_operator_from_outside_encloses_the_exact_optima(times, own_operators):
    record = Operator(
        "flipped", flipped_rule, modules={Flipped: lambda m: {"times": m.times}}, backward=affine(flipped, flipped_rule)
    )
    register(record)
    torch.manual_seed(0)
    nodes = layers(nn.Linear(3, 4), relu, Flipped(times), nn.Linear(4, 4), relu, nn.Linear(4, 2))
    graph, box = Graph(nodes).double().eval(), random_box(2, 3)
    spec = specs(graph, box)
    least, most, _ = optima(graph, box, spec)
    ends = [bound(graph, box, method, spec) for method in BOUNDS]
    for lower, upper in ends:
        assert (lower <= least + 1e-6).all() and (most - 1e-6 <= upper).all()
    for (lower, upper), (lower_after, upper_after) in itertools.pairwise(ends):
        assert (lower <= lower_after).all() and (upper_after <= upper).all()
    assert (ends[1][0] > ends[0][0]).any()


def absolute_interval(ctx, x):
    low = torch.relu(torch.maximum(x.box.lower, -x.box.upper))
    high = torch.maximum(x.box.lower.abs(), x.box.upper.abs()) * (1 + 1e-12)
    return Interval((low + high) / 2, (high - low) / 2 + 1e-12 * high)


def absolute_backward(ctx, coefficients, x):
    """|p| >= p and -p; |p| <= the largest there is."""
    most = torch.maximum(x.box.lower.abs(), x.box.upper.abs()) * (1 + 1e-9)
    positive, negative = coefficients.clamp(min=0), coefficients.clamp(max=0)
    sign = torch.where(x.center >= 0, 1.0, -1.0).to(coefficients)
    constant = (negative * most.unsqueeze(1)).flatten(2).sum(2)
    return Pulled((positive * sign.unsqueeze(1),), constant - 1e-9 * (1 + constant.abs()))


def test_a_nonlinear_operator_from_outside_encloses_the_exact_optima(own_operators):
    backward, unsettled = absolute_backward, operators.crossing
    register(Operator("absolute", absolute_interval, (torch.abs, torch.Tensor.abs), {}, backward, unsettled))
    torch.manual_seed(0)
    nodes = layers(nn.Linear(3, 4), lambda n: Node(torch.abs, (n,), -1.0), nn.Linear(4, 3), relu, nn.Linear(3, 2))
    graph, box = Graph(nodes).double().eval(), random_box(3, 3)
    spec = specs(graph, box)
    least, most, _ = optima(graph, box, spec)
    for method in BOUNDS:
        lower, upper = bound(graph, box, method, spec)
        assert (lower <= least + 1e-6).all() and (most - 1e-6 <= upper).all()
