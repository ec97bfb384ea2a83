"""Networks with one and two equilibria on extreme inputs and weights, by every method, in both precisions.

The oracles: values of the network with its equilibria solved by numpy, the explicit network without a recurrence, and
powers of two, which scale a network exactly.
"""

import copy
import functools

import numpy as np
import pytest
import torch
from equilibria import exact_outputs, folded_network
from graphs import SEARCHED
from oracles import DTYPES, assert_contains, points_of
from pairs import every_pair
from torch import nn

from cerdeq import Box, Equilibrium, LinfBall, bound
from cerdeq.bounds import BOUNDS

pytestmark = pytest.mark.usefixtures("slow_float64")
KERNELS, COUNTS = (None, 3), (1, 2)
every_kind = pytest.mark.parametrize(
    ("kernel", "count", "dtype", "method"), every_pair(KERNELS, COUNTS, DTYPES, BOUNDS)
)


def images(kernel, dtype, batch=2, side=3):
    return torch.rand(batch, *((3,) if kernel is None else (1, side, side)), dtype=dtype)


@torch.no_grad()
def assert_bounded(model, region, method, spec=None):
    """Return the bounds after comparing them with values at corners and inside."""
    lower, upper = bound(model, region, method, spec)
    assert lower.dtype == region.center.dtype
    wide = Box(region.center.double(), region.radius.double())
    values = exact_outputs(model, torch.cat([wide.center.unsqueeze(0), points_of(wide, 16)]))
    if spec is not None:
        values = torch.einsum("bkn,sbn->sbk", spec.double(), values)
    assert_contains(lower.double(), upper.double(), values)
    return lower, upper


def width(bounds):
    lower, upper = bounds
    return ((upper - lower) / (1 + torch.maximum(lower.abs(), upper.abs()))).max()


def rounding(dtype):
    """Return how wide the box of a point may be. Boxes of equilibria start from a float32 solution in both dtypes."""
    return 1e-3 if dtype == torch.float32 else 1e-6


@pytest.mark.parametrize(
    ("kernel", "layer", "dtype", "method"), every_pair(KERNELS, [(1, 0), (2, 0), (2, 1)], DTYPES, BOUNDS)
)
def test_a_dead_layer_lets_nothing_through(kernel, layer, dtype, method):
    """What comes after it is a constant: the bias of the head, after the last equilibrium."""
    count, dead = layer
    model = folded_network(kernel, count, dtype)
    nn.init.constant_(model[dead].inject.bias, -100.0)
    bounds = assert_bounded(model, LinfBall(images(kernel, dtype), 0.5), method)
    assert width(bounds) <= rounding(dtype)
    if dead == count - 1:
        torch.testing.assert_close(bounds[0], model[-1].bias.detach().expand(2, 3), rtol=1e-5, atol=1e-6)


def explicit(model):
    """The network with each equilibrium replaced by its injection and ReLU."""
    layers = [nn.Sequential(layer.inject, nn.ReLU()) if isinstance(layer, Equilibrium) else layer for layer in model]
    return nn.Sequential(*layers).eval()


@every_kind
def test_without_a_recurrence_bounds_are_those_of_the_explicit_network(kernel, count, dtype, method):
    model = folded_network(kernel, count, dtype)
    for block in model[:count]:
        nn.init.zeros_(block.recurrence.weight)
    region = LinfBall(images(kernel, dtype), 0.1)
    lower, upper = assert_bounded(model, region, method)
    expected = bound(explicit(model), region, method)
    # An ascent stops somewhere near its best, and two paths end at two such places.
    share = 0.02 if method in SEARCHED else rounding(dtype)
    tolerance = share * (expected[1] - expected[0]).max().item()
    torch.testing.assert_close((lower, upper), expected, rtol=0, atol=tolerance)


SCALES = {  # exponents of 2 of what goes into the equilibrium and of what comes out of it; in float64 times 8
    "huge injection": (120, 0),
    "huge": (80, 80),
    "tiny injection": (-60, 0),
    "tiny": (-40, -40),
    "huge, then tiny": (90, -90),
    "tiny, then huge": (-90, 90),
}


@functools.cache
@torch.no_grad()
def unscaled(kernel, dtype, method):
    """Return a network of one equilibrium without a last bias, a ball, the bounds over it and values in it."""
    torch.manual_seed(0)
    model = folded_network(kernel, 1, dtype)
    region = LinfBall(images(kernel, dtype), 0.1)
    nn.init.zeros_(model[-1].bias)
    return model, region, bound(model, region, method), exact_outputs(model, points_of(region, 16)).numpy()


@pytest.mark.parametrize(("kernel", "dtype", "method", "name"), every_pair(KERNELS, DTYPES, BOUNDS, SCALES))
@pytest.mark.usefixtures("short_searches")
@torch.no_grad()
def test_weights_of_any_size_give_right_bounds_or_none(kernel, dtype, method, name):
    """z is homogeneous in h, so the outputs are those of the plain network times a power of 2, wherever it leads."""
    inner, outer = (exponent * (1 if dtype == torch.float32 else 8) for exponent in SCALES[name])
    model, region, plain, values = unscaled(kernel, dtype, method)
    model = copy.deepcopy(model)
    for parameter, exponent in [(model[-1].weight, outer), *((p, inner) for p in model[0].inject.parameters())]:
        parameter.copy_(torch.from_numpy(np.ldexp(parameter.numpy(), exponent)))
        assert parameter.isfinite().all()
    ends = bound(model, region, method)
    assert not any(end.isnan().any() for end in ends)
    lower, upper = (np.ldexp(end.double().numpy(), -inner - outer) for end in ends)
    slack = 1e-12 * np.abs(values).max()
    assert (lower <= values + slack).all() and (values - slack <= upper).all()
    # In float64 boxes lose their tightness outside float32's range, where they start from.
    if dtype == torch.float32 and "huge" != name != "huge injection":
        size = (plain[1] - plain[0]).max().item()
        np.testing.assert_allclose(lower, plain[0], rtol=0, atol=0.1 * size)
        np.testing.assert_allclose(upper, plain[1], rtol=0, atol=0.1 * size)
