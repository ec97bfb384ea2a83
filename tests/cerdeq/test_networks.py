"""Bounds of networks that must be exact or equal others; parametrised layers, shapes and regions."""

import pytest
import torch
from cases import Residual, mlp
from oracles import affine_extremes, assert_contains, dense_affine, points_of, random_box
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from cerdeq import Box, LinfBall, bound, margin_spec
from cerdeq.bounds import BOUNDS


@pytest.mark.parametrize("method", BOUNDS)
def test_an_affine_network_is_bounded_exactly(method):
    model, box = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).double().eval(), random_box(2, 3)
    exact = affine_extremes(*dense_affine(model, (3,)), box)
    bounds = bound(model, box, method)
    loose = method == "ibp"
    assert (bounds[0] <= exact[0] + 1e-12).all() and (exact[1] - 1e-12 <= bounds[1]).all()
    assert loose or torch.allclose(torch.stack(bounds), torch.stack(exact), rtol=1e-9, atol=1e-9)


def test_a_monotone_network_is_bounded_exactly():
    """Non-negative weights: interval bounds are the values at two corners, so that loose rules would show."""
    model = mlp().double().eval()
    with torch.no_grad():
        for layer in model[::2]:
            layer.weight.abs_()
        box = Box(torch.rand(3, 2, dtype=torch.float64), torch.full((3, 2), 0.3, dtype=torch.float64))
        lower, upper = bound(model, box)
        torch.testing.assert_close(lower, model(box.lower), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(upper, model(box.upper), rtol=1e-12, atol=1e-12)


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight + 0.1


PARAMETRISED = {
    "custom": lambda layer: parametrize.register_parametrization(layer, "weight", Doubled()),
    "custom bias": lambda layer: parametrize.register_parametrization(layer, "bias", Doubled()),
    "spectral norm": parametrizations.spectral_norm,
    "weight norm": parametrizations.weight_norm,
    "orthogonal": parametrizations.orthogonal,
}


@pytest.mark.parametrize("name", PARAMETRISED)
def test_parametrised_layers_are_bounded_as_plain_ones(name):
    """The layer's class is torch's own subclass; its weight is what the parametrisation says now."""
    linear, convolution = nn.Linear(18, 3).double(), nn.Conv2d(1, 2, 2).double()
    model = nn.Sequential(PARAMETRISED[name](convolution), nn.ReLU(), nn.Flatten(), PARAMETRISED[name](linear)).eval()
    box = random_box(4, 1, 4, 4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5).add_(0.1)
        plain = [nn.Conv2d(1, 2, 2).double(), nn.ReLU(), nn.Flatten(), nn.Linear(18, 3).double()]
        for number, layer in ((0, convolution), (3, linear)):
            plain[number].weight.copy_(layer.weight)
            plain[number].bias.copy_(layer.bias)
        lower, upper = bound(model, box)
        assert_contains(lower, upper, torch.stack([model(x) for x in points_of(box, 64)]))
        expected = bound(nn.Sequential(*plain).eval(), box)
    torch.testing.assert_close((lower, upper), expected)


def test_bounds_have_the_shape_and_precision_of_the_outputs():
    model = mlp().eval()
    lower, upper = bound(model, LinfBall(torch.rand(5, 2), 0.1))
    assert lower.shape == upper.shape == (5, 3) and lower.dtype == upper.dtype == torch.float32
    lower, upper = bound(model, LinfBall(torch.rand(5, 2), 0.1), spec=margin_spec(torch.zeros(5, dtype=torch.long), 3))
    assert lower.shape == upper.shape == (5, 2) and (lower <= upper).all()


def test_a_larger_ball_has_larger_bounds():
    model, x = Residual().double().eval(), torch.rand(3, 2, dtype=torch.float64)
    before = bound(model, LinfBall(x, 0))
    for eps in (1e-6, 1e-3, 0.01, 0.1, 0.5, 1.0):
        lower, upper = bound(model, LinfBall(x, eps))
        assert (lower <= before[0]).all() and (before[1] <= upper).all()
        before = lower, upper
