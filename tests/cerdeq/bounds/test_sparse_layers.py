"""Sparse layers: the dense layers' function, boxes and linear bounds in exact rational arithmetic."""

from fractions import Fraction

import pytest
import torch
from oracles import Exact, encloses, exact_value, fractions
from torch import nn

from cerdeq.bounds import Context, Interval, sparse_layers, trace, values_of
from cerdeq.bounds.crown_pass import linear_lower_bound
from cerdeq.bounds.sparse_layers import sparse_linear, with_sparse_layers
from cerdeq.operators.backward import Backward
from cerdeq.precision import counted_rounding


@pytest.fixture
def programs(monkeypatch):
    """Return a function of a model to its program, and to that with sparse layers."""
    monkeypatch.setattr(sparse_layers, "_FEWEST_WEIGHTS", 0)

    def make(model):
        program = trace(model.double().eval().requires_grad_(False), linear=True)
        return program, with_sparse_layers(program)

    return make


def layer(inputs, outputs, most, seed, bias=True):
    """Return a linear layer with up to so many weights in each row."""
    generator, linear = torch.Generator().manual_seed(seed), nn.Linear(inputs, outputs, bias).double()
    ranks = torch.rand(outputs, inputs, generator=generator).argsort(1)
    counts = torch.randint(0, most + 1, (outputs, 1), generator=generator)
    numbers = torch.randn(outputs, inputs, generator=generator).double() * 10 ** (
        4 * torch.rand(outputs, inputs, generator=generator).double()
    )
    linear.weight.data = torch.where(ranks < counts, numbers, 0)
    return linear


@pytest.mark.parametrize("most", [0, 1, 8])
@torch.no_grad()
def test_sparse_layers_are_the_same_network(programs, most):
    model = nn.Sequential(
        layer(12, 20, most, 0), nn.ReLU(), layer(20, 9, 3, 1, bias=False), nn.ReLU(), layer(9, 2, 2, 2)
    )
    dense, sparse = programs(model)
    assert [step.target is sparse_linear for step in sparse.steps] == [True, False] * 2 + [True]
    x = Interval(torch.randn(3, 12).double(), torch.rand(3, 12).double())
    with counted_rounding("cpu"):
        values = [values_of(program, x, Context(sound=True)) for program in (dense, sparse)]
        for one, other in zip(*values, strict=True):
            torch.testing.assert_close(one.center, other.center)
            torch.testing.assert_close(one.radius, other.radius)
        spec = torch.eye(2).double().expand(3, 2, 2)
        for sound in (True, False):
            pairs = zip((dense, sparse), values, strict=True)
            bounds = [linear_lower_bound(p, v, spec, p.output, Backward(sound=sound)) for p, v in pairs]
            torch.testing.assert_close(*bounds)
    assert torch.equal(sparse.steps[0].run([x.center]), values[1][1].center)


@torch.no_grad()
def test_denser_layers_and_small_ones_stay(monkeypatch):
    monkeypatch.setattr(sparse_layers, "_FEWEST_WEIGHTS", 100)
    model = nn.Sequential(layer(20, 20, 8, 0), layer(20, 20, 9, 3), layer(9, 9, 2, 0)).eval()
    assert int((model[1].weight != 0).sum(1).max()) == 9
    program = with_sparse_layers(trace(model, linear=True))
    assert [step.target is sparse_linear for step in program.steps] == [True, False, False]


@pytest.mark.parametrize("seed", range(3))
@torch.no_grad()
def test_rounding_is_counted(programs, seed):
    """Boxes and linear bounds of one layer, whose exact ends are known, at sums that cancel."""
    linear = layer(6, 40, 6, seed)
    x = Interval(torch.randn(1, 6).double(), torch.zeros(1, 6).double())
    linear.bias.data = -(x.center @ linear.weight.T)[0]
    _, program = programs(nn.Sequential(linear))
    with counted_rounding("cpu"):
        values = values_of(program, x, Context(sound=True))
        lower = linear_lower_bound(program, values, torch.eye(40).double()[None], program.output, Backward(sound=True))
    rows = exact_value([linear], fractions(x.center[0]))
    assert encloses(values[-1].box, Exact(rows, rows))
    assert all(Fraction(bound) <= row for bound, row in zip(lower[0].tolist(), rows, strict=True))


def test_a_layer_of_zeros_has_a_gradient(programs):
    zeros = layer(5, 7, 3, 0)
    zeros.weight.data.zero_()
    _, program = programs(nn.Sequential(zeros))
    x = torch.randn(2, 5).double().requires_grad_()
    values = program.steps[0].run([x])
    values.sum().backward()
    assert torch.equal(values, zeros.bias.expand(2, -1)) and not x.grad.any()
