"""Programs of float32 models in float64: the same numbers, wherever the model holds them; else its own precision."""

from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from oracles import Lambda, fractions
from torch import nn

from cerdeq import Box, bound
from cerdeq.bounds import trace
from cerdeq.bounds.float32 import has_fast_float64
from cerdeq.tracing.precisions import in_float64


def with_weight(change):
    """Return a network whose first layer has `change(weight)` as a plain attribute, no parameter."""
    layer = nn.Linear(3, 3)
    weight = change(layer.weight)
    del layer.weight
    layer.weight = weight
    return nn.Sequential(layer, nn.ReLU(), nn.Linear(3, 2))


MODELS = {
    "layers": lambda: nn.Sequential(nn.ReLU(inplace=True), nn.Linear(3, 2)),
    "a weight that is no parameter": lambda: with_weight(lambda weight: weight.detach().clone()),
    "a weight that has a gradient": lambda: with_weight(lambda weight: weight * 3),
    "a parametrised weight": lambda: nn.Sequential(torch.nn.utils.parametrizations.weight_norm(nn.Linear(3, 2))),
    "a constant of float32": lambda: Lambda(lambda module, x: F.linear(x, torch.ones(2, 3) / 3)),
    "a module without a function": lambda: nn.Sequential(nn.Identity(), nn.Linear(3, 2)),
}
OF_THE_INPUT = {
    "a constant of the input's type": lambda module, x: x * torch.full((x.shape[1],), 0.1, dtype=x.dtype),
    "a constant of the input's shape": lambda module, x: F.linear(x, torch.ones(2, x.shape[1]) / 3),
}


@pytest.mark.parametrize("method", ["crown-ibp", "crown", "alpha-crown"])
@pytest.mark.parametrize("name", [*MODELS, *OF_THE_INPUT])
def test_bounds_contain_the_outputs_of_the_stored_numbers(name, method):
    torch.manual_seed(0)
    model = MODELS[name]() if name in MODELS else Lambda(OF_THE_INPUT[name])
    model.eval()
    x = torch.rand(2, 3)
    before = x.clone()
    lower, upper = bound(model, Box(x, torch.full_like(x, 1e-3)), method)
    assert torch.equal(x, before) and lower.dtype == torch.float32
    exact = in_float64(trace(model, linear=True), x[:1])
    assert (exact is None) == (name in OF_THE_INPUT)
    with torch.no_grad():
        values = model(x.clone()).double()
    assert (lower.double() <= values + 1e-6).all() and (values - 1e-6 <= upper.double()).all()
    if exact is not None:
        assert (upper - lower).max() < 0.1


def test_a_constant_of_the_inputs_type_is_the_number_of_float32():
    """0.1 of float32 less 0.1 of float64 is 1.5e-9, not 0."""
    one = torch.ones(1, 1)
    model = Lambda(lambda module, x: OF_THE_INPUT["a constant of the input's type"](module, x) - 0.1).eval()
    lower, upper = bound(model, Box(one, torch.zeros_like(one)), "crown")
    (number,) = fractions(torch.tensor([0.1]))
    assert Fraction(lower.item()) <= number - Fraction(0.1) <= Fraction(upper.item())


@pytest.mark.parametrize(
    ("device", "capability", "fast"),
    [("cpu", (), True), ("mps", (), False), ("cuda", (9, 0), True), ("cuda", (8, 0), True), ("cuda", (8, 9), False)],
)
def test_float64_is_fast_on_cpus_and_on_gpus_for_data_centres(device, capability, fast, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert has_fast_float64(torch.device(device)) == fast
