"""Constants that a float32 network computes: `verify` proves, in float64, of the very numbers that torch computes."""

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from oracles import Lambda
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from baselines import build
from cerdeq import Box, verify
from cerdeq.bounds import UnsupportedOperator, refuse_other_precision, trace
from cerdeq.equilibrium.layer import FixedPoint
from cerdeq.equilibrium.weights import PARAMETRISATIONS

WEIGHT, SCALE = 0.35, 0.1  # their quotient is 3.5 in float32, which rounds to 4, and less in float64


def quantise(weight, scale):
    return torch.round(weight / scale) * scale


CONSTANTS = {  # of two parameters and the input; in float32 all are near 0.4, in float64 near 0.3
    "rounded": lambda w, s, x: quantise(w, s),
    "rounded after None": lambda w, s, x: quantise(w[None], s)[0],
    "clamped from above": lambda w, s, x: quantise(torch.clamp(w, None, 1.0), s),
    "floor": lambda w, s, x: torch.floor(w / s + 0.5) * s,
    "integers": lambda w, s, x: torch.round(w / s).long() * s,
    "mask": lambda w, s, x: w - 0.05 + 0.1 * (w / s >= 3.5),
    "where": lambda w, s, x: torch.where(w / s >= 3.5, w + 0.05, w - 0.05),
    "number": lambda w, s, x: torch.round(w / s).max().item() * s.item() + 0 * w,
    "part of several": lambda w, s, x: quantise(w, s).chunk(2)[0].repeat(2, 1),
    "sizes of the input": lambda w, s, x: quantise(w * x.size(1), s * x.size(1)) / 2,
    "part by a size of the input": lambda w, s, x: quantise(w, s)[: x.size(1)],
    "type of the input": lambda w, s, x: quantise(w.to(x.dtype), s.to(x.dtype)),
}


class WithConstant(nn.Module):
    """x @ constant.T - 0.7, with rows of two equal numbers."""

    def __init__(self, constant, scale=SCALE):
        super().__init__()
        self.constant = constant
        self.weight, self.scale = nn.Parameter(torch.full((2, 2), WEIGHT)), nn.Parameter(torch.tensor(scale))

    def forward(self, x):
        return 0.7 - F.linear(x, self.constant(self.weight, self.scale, x))


def region():
    return Box(torch.ones(1, 2), torch.full((1, 2), 0.01))


@pytest.mark.parametrize("name", CONSTANTS)
def test_a_float32_network_is_not_certified_by_constants_of_float64(name):
    """At the centre its outputs are about -0.1; with the constants of float64 they would be 0.1."""
    model, box = WithConstant(CONSTANTS[name]).eval(), region()
    assert model(box.center).max() < 0 < model.double()(box.center.double()).min()
    try:
        result = verify(model.float(), box, torch.eye(2)[None], seconds=60)
    except UnsupportedOperator as error:
        assert "input" in name and "test_computed_constants.py, line" in str(error), error
        return
    assert result.status == ["falsified"] and "type" not in name


class Rounded(nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.register_buffer("scale", torch.tensor(scale))

    def forward(self, weight):
        return torch.round(weight / self.scale) * self.scale


class RoundedWeight(nn.Module):
    """0.7 - W x, W a parametrised weight that forward reads."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.full((2, 2), WEIGHT))

    def forward(self, x):
        return 0.7 - F.linear(x, self.weight)


def rounded_layer():
    layer = nn.Linear(2, 2)
    nn.init.constant_(layer.weight, -WEIGHT)
    nn.init.constant_(layer.bias, 0.7)
    return layer


def rounded_equilibrium():
    """z = 0.4 z + 1.2 is 2 in float32; z = 0.3 z + 1.2 is less than 1.8 in float64."""
    layer = FixedPoint(torch.diag(torch.full((2,), WEIGHT)))
    last = nn.Linear(2, 2)
    with torch.no_grad():
        last.weight.copy_(-torch.eye(2))
        last.bias.fill_(1.8)
    return nn.Sequential(Lambda(lambda module, x: 1.2 * x), layer, last)


@pytest.mark.parametrize("build_model", [RoundedWeight, rounded_layer, rounded_equilibrium])
def test_a_parametrised_weight_is_that_of_float32(build_model):
    model, box = build_model().eval(), region()
    for module in list(model.modules()):
        if isinstance(module, RoundedWeight | nn.Linear | FixedPoint) and bool((module.weight.abs() == WEIGHT).any()):
            parametrize.register_parametrization(module, "weight", Rounded(SCALE))
    model.eval()
    assert model(box.center).max() < 0 < copy.deepcopy(model).double()(box.center.double()).min()
    assert verify(model, box, torch.eye(2)[None], seconds=60).status == ["falsified"]
    assert parametrize.is_parametrized(next(m for m in model.modules() if hasattr(m, "parametrizations")))


LEGITIMATE = {
    "standardised weights": lambda w, s, x: (w - w.mean()) / w.std(),
    "by the batch's size": lambda w, s, x: w.expand(x.size(0), -1, -1)[0],
    "in the input's type": lambda w, s, x: (w * s).to(x.dtype),
}


@pytest.mark.parametrize("name", LEGITIMATE)
def test_a_float32_network_with_computed_constants_is_proved(name):
    """The bounds contain its outputs with exactly these constants, also where digits cancel."""
    torch.manual_seed(0)
    model, x = WithConstant(LEGITIMATE[name]).eval(), torch.rand(3, 2)
    nn.init.normal_(model.weight)
    weight = model.constant(model.weight, model.scale, x).double()
    outputs = 0.7 - F.linear(x.double(), weight)
    spec = torch.cat([torch.eye(2), -torch.eye(2)]).expand(3, -1, -1)
    lower = verify(model, Box(x, torch.zeros_like(x)), spec, branches=1).lower
    assert (lower <= torch.cat([outputs, -outputs], 1)).all()
    assert (torch.cat([outputs, -outputs], 1) - lower).max() < 1e-12


def float32_and_float64(model):
    return trace(model.eval()), trace(copy.deepcopy(model).double().eval())


def orthogonal(orthogonal_map):
    layer = parametrizations.orthogonal(nn.Linear(32, 32), orthogonal_map=orthogonal_map)
    nn.init.normal_(layer.parametrizations.weight.original)
    return layer


COMPUTED_WEIGHTS = {
    **{name: partial(orthogonal, name) for name in ("matrix_exp", "cayley", "householder")},
    "spectral norm": lambda: parametrizations.spectral_norm(nn.Linear(32, 32)),
    "weight norm": lambda: parametrizations.weight_norm(nn.Linear(32, 32)),
    **{name: partial(build, "cerdeq", "digits", 0.25, parametrisation=name) for name in PARAMETRISATIONS},
}


@pytest.mark.parametrize("name", COMPUTED_WEIGHTS)
def test_an_evaluation_accepts_weights_that_iterations_compute(name):
    torch.manual_seed(0)
    refuse_other_precision(*float32_and_float64(COMPUTED_WEIGHTS[name]()))
