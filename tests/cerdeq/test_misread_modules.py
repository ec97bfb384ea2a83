"""Modules that torch.fx misreads: bounds refuse them, or contain what they compute."""

import contextlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from oracles import Lambda
from torch import Tensor, nn

from cerdeq import Box, bound, verify
from cerdeq.bounds import UnsupportedOperator
from cerdeq.bounds.float32 import in_float32


class Network(nn.Module):
    """A layer that adds 10,000 to the last value, then `forward` of (the module, its values)."""

    def __init__(self, forward):
        super().__init__()
        self.layer = nn.Linear(4, 4)
        with torch.no_grad():
            self.layer.weight.copy_(torch.eye(4))
            self.layer.bias.copy_(torch.tensor([0, 0, 0, 1e4]))
        self.register_buffer("scale", torch.tensor([1.0, 2.0, -1.0, 0.5]))
        self.function, self.calls = forward, 0

    def forward(self, x):
        return self.function(self, self.layer(x))


def constant_changed_after_use(module, x):
    c = torch.ones(4, dtype=torch.float64)
    y = x * c
    c += 4e-4
    return y


def constant_shared_with_numpy(module, x):
    array = np.ones(4)
    y = x * torch.from_numpy(array)
    array += 4e-4
    return y


def buffer_counts(module, x):
    module._buffers["scale"].data.add_(1)
    return x * module.scale


def counts(module, x):
    module.calls += 1
    return x if module.calls < 2 else 1.001 * x


def random(module, x):
    return x + torch.rand(4, dtype=torch.float64)


def swallows_the_error(module, x):
    with contextlib.suppress(Exception):
        x = x if x.sum() > 0 else 2 * x
    return x


def detached_alias(module, x):
    y = x + 0
    if isinstance(x, Tensor):
        y.detach().mul_(1.001)
    return y


FORWARDS = {
    "constant changed after its use": constant_changed_after_use,
    "constant shared with numpy": constant_shared_with_numpy,
    "buffer counts calls": buffer_counts,
    "counts calls": counts,
    "random": random,
    "try around a branch": swallows_the_error,
    "detached alias": detached_alias,
    "isinstance of a tensor": lambda m, x: F.relu(x) if isinstance(x, Tensor) else x,
}


def has_float32(module):
    return next(module.parameters()).dtype == torch.float32


class OwnCast(nn.LeakyReLU):
    """A layer whose slope follows its precision."""

    def _apply(self, function, recurse=True):
        self.negative_slope = 0.5 if function(torch.zeros(1)).dtype == torch.float64 else -5.0
        return super()._apply(function, recurse)


PRECISIONS = {
    "constant": lambda m, x: x - (20000.0 if has_float32(m) else 0.0),
    "slope": lambda m, x: F.leaky_relu(x - 20000, -5.0 if has_float32(m) else 0.5),
    "another step": lambda m, x: -x if has_float32(m) else x,
    "another attribute": lambda m, x: x + (m.low if has_float32(m) else m.high),
    "tensor of its precision": lambda m, x: x - torch.full((), torch.finfo(next(m.parameters()).dtype).eps) * 1e15,
    "option of a layer": lambda m, x: m.own(x - 20000),
    "value of its own type": lambda m, x: x - 20000 if isinstance(x, Tensor) and x.dtype == torch.float32 else x,
}


def asking(name):
    model = Network(PRECISIONS[name])
    with torch.no_grad():
        model.layer.bias.fill_(10000.0)
    model.own = OwnCast(-5.0)
    model.register_buffer("low", torch.full((), -20000.0))
    model.register_buffer("high", torch.full((), 20000.0))
    return model.eval()


@pytest.mark.parametrize("name", PRECISIONS)
def test_a_forward_that_asks_for_its_precision_is_refused_or_bounded_rightly(name):
    """Verification proves in float64, also for float32 models; of a float64 model it first tries float32."""
    box = Box(torch.full((2, 4), 0.5), torch.full((2, 4), 0.5))
    spec = torch.eye(4).expand(2, -1, -1)
    for model, region in ((asking(name), box), (asking(name).double(), box.double())):
        try:
            result = verify(model, region, spec.to(region.center), branches=2)
        except UnsupportedOperator as error:
            assert "allowed" in str(error), error
            continue
        assert min(y.min() for y in outputs(model, region)) > 0 or "certified" not in result.status
    assert name == "value of its own type" or in_float32(asking(name).double()) is None


def outputs(model, box):
    """Yield outputs [rows, K] at points of the box: of one, two and three examples, with gradients and without."""
    for fraction in (-1, -0.5, 0, 0.5, 1):
        x = box.center + fraction * box.radius
        for rows in (1, 2, 3):
            with torch.no_grad():
                yield model(x[:rows].clone())
            yield model(x[:rows].clone().requires_grad_().clone()).detach()


@pytest.mark.parametrize("name", FORWARDS)
def test_a_forward_that_tracing_misreads_is_refused_or_bounded_rightly(name):
    """One output is large, which must not hide that others are wrong."""
    box = Box(torch.full((3, 4), 0.5).double(), torch.full((3, 4), 0.5).double())
    model = Network(FORWARDS[name]).double().eval()
    try:
        lower, upper = bound(model, box)
    except UnsupportedOperator as error:
        assert "allowed" in str(error) or "test_misread_modules.py, line" in str(error), error
        return
    for y in outputs(model, box):
        rounding = 4 * torch.finfo(y.dtype).eps * (1 + y.abs())
        assert (lower[: len(y)] <= y + rounding).all() and (y <= upper[: len(y)] + rounding).all()


class OwnSize(nn.Module):
    """A transposed convolution whose size is an argument of its call."""

    def __init__(self, by_name):
        super().__init__()
        self.up, self.by_name = nn.ConvTranspose2d(1, 1, 3, stride=2), by_name

    def forward(self, x):
        return self.up(x, output_size=[6, 6]) if self.by_name else self.up(x, [6, 6])


@pytest.mark.parametrize("by_name", [False, True])
def test_an_argument_of_a_layers_call_that_its_rule_does_not_take_is_refused(by_name):
    box = Box(torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2))
    with pytest.raises(UnsupportedOperator, match=r"conv_transpose2d.* at node 'up' .*line \d+: return self.up"):
        bound(OwnSize(by_name).eval(), box)


@pytest.mark.parametrize("curve", [torch.sigmoid, torch.tanh])
def test_a_curve_that_torch_computes_in_float32_is_the_one_that_rules_know(curve):
    x = 10 * torch.randn(2, 5000, generator=torch.Generator().manual_seed(0))
    lower, upper = bound(Lambda(lambda module, x: curve(x)).eval(), Box(x, torch.zeros_like(x)))
    assert (upper - lower <= 1e-6).all()


def test_an_output_that_depends_on_the_position_in_the_batch_is_refused():
    model = Lambda(lambda module, x: 5 - F.relu(x) - 2.25 * torch.arange(x.shape[0])[:, None]).eval()
    box = Box(torch.zeros(2, 4), torch.ones(2, 4))
    for refuse in (lambda: bound(model, box), lambda: verify(model, box, torch.eye(4).expand(2, -1, -1))):
        with pytest.raises(UnsupportedOperator, match="depends on other images in the batch"):
            refuse()


def test_an_infinite_region_hides_no_other_function():
    x = torch.rand(2, 4).double()
    with pytest.raises(UnsupportedOperator, match="misreads the model"):
        bound(Network(random).double().eval(), Box(x, torch.full_like(x, torch.inf)), "ibp")
