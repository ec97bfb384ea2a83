"""Leaves and certificates of small networks against exact minima, pattern by pattern; faults planted in them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pattern_minima import at_point, full_certificate, least_at_pattern, neurons, patterns
from safetensors.numpy import save_file
from torch import nn

from cerdeq.equilibrium import FixedPoint
from harness.checker.boxes import ball
from harness.checker.certificates import RefusedError, checked, complete, read
from harness.checker.linear import lower_bounds
from harness.checker.network import Network
from harness.checker.proofs import CERTIFICATE, prove
from harness.checker.regions import plain, tightened
from harness.checker.relaxation import Leaves
from harness.errors import InputError

BOX, LABEL, OTHERS = ball(np.array([[[[100.0, 30.0, 200.0]]]]), 0.2), 1, [0, 2]
SHAPE = BOX.center.shape[1:]


def recurrence(rho, *shape):
    weight = torch.randn(*shape).double()
    matrix = weight.abs().reshape(*shape[:2], -1).sum(2)
    return FixedPoint(weight * rho / torch.linalg.eigvals(matrix).abs().max(), 1, 1)


def linear(inputs, outputs):
    return nn.Linear(inputs, outputs)


NETWORKS = {
    "explicit": lambda: [nn.Flatten(), linear(3, 4), nn.ReLU(), linear(4, 3), nn.ReLU(), linear(3, 3)],
    "equilibrium": lambda: [nn.Flatten(), linear(3, 5), recurrence(0.5, 5, 5), linear(5, 3)],
    "equilibrium of rho .97": lambda: [nn.Flatten(), linear(3, 5), recurrence(0.97, 5, 5), linear(5, 3)],
    "two equilibria": lambda: [
        nn.Flatten(), linear(3, 3), recurrence(0.9, 3, 3), linear(3, 3), recurrence(0.5, 3, 3), linear(3, 3)
    ],
    "convolutional equilibrium": lambda: [nn.Conv2d(1, 2, 3, padding=1), recurrence(0.8, 2, 2, 3, 3), nn.Flatten(), linear(6, 3)],
}  # fmt: skip
every = pytest.mark.parametrize("name", NETWORKS)


def small(name):
    """A network whose activations have 0 inside, near the ball's centre."""
    model = nn.Sequential(*NETWORKS[name]()).double().eval().requires_grad_(False)
    x = torch.from_numpy(BOX.center)
    for layer in model:
        if isinstance(layer, nn.Linear | nn.Conv2d):
            layer.weight *= 2
            mean = layer(x).mean((2, 3)) if x.dim() == 4 else layer(x)
            layer.bias -= mean[0] - 0.1 * torch.rand_like(layer.bias)
        x = layer(x)
    return model


def spec_of(other):
    spec = np.zeros(3)
    spec[LABEL], spec[other] = 1, -1
    return spec


def shifted(model, least):
    """The network with biases such that the least margins, by classes, are those."""
    for other, value in least.items():
        model[-1].bias[other] -= value
    return model


def leaf(signs, multipliers, slopes=0.3, kept=1.0):
    """One leaf at an activation."""
    ones = np.ones((1, *signs.shape))
    return Leaves(slopes * ones, signs[None].astype(float), multipliers[None], kept * ones)


def shapes(region, network):
    return {step.name: box.center.shape[1:] for step, box in zip(network.steps, region.values[1:], strict=False)}


@every
def test_leaves_of_known_signs_reach_their_exact_minima(name):
    """No lower than multipliers' float32 and iterations cost; the least of all leaves is the exact minimum."""
    model = small(name)
    network, spec = Network(model), spec_of(0)
    region = plain(network, BOX)
    shape_of = shapes(region, network)
    exact, bounds = [], []
    for signs in patterns(model, SHAPE):
        value, multipliers = least_at_pattern(model, BOX, spec, signs)
        leaves = {n: leaf(s.reshape(shape_of[n]), multipliers[n].reshape(shape_of[n])) for n, s in signs.items()}
        exact.append(value)
        bounds.append(lower_bounds(network, region, {len(network.steps): spec[None]}, leaves)[0])
    exact, bounds = np.array(exact), np.array(bounds)
    full = np.isfinite(exact)
    assert full.sum() > 4 and (bounds[full] <= exact[full] + 1e-7).all()
    np.testing.assert_allclose(bounds[full], exact[full], atol=2e-5)
    assert (bounds[~full] > exact[full].min()).all(), "empty leaves are pushed as far as one likes"


@every
@settings(max_examples=40, deadline=None)
@given(data=st.data(), seed=st.integers(0, 10**6))
def test_whatever_leaves_choose_bounds_what_they_hold(name, data, seed):
    """Slopes beyond [0, 1] are clamped; signs are those of a point, or none."""
    torch.manual_seed(seed % 7)
    random, model = np.random.default_rng(seed), small(name)
    network = Network(model)
    region = data.draw(st.sampled_from([plain, tightened]))(network, BOX)
    shape_of, leaves = shapes(region, network), {}
    corner = random.choice([-1, 1, 0.3], size=(1, *SHAPE))
    x = BOX.center + BOX.radius * corner
    before, output = at_point(model, x)
    for step, p in before.items():
        shape = (1, *shape_of[step])
        split = np.sign(np.where(np.abs(p) > 1e-9, p, 0)).reshape(shape) * random.choice([0, 1], size=shape)
        push = random.exponential(data.draw(st.sampled_from([0, 0.1, 10])), size=shape)
        leaves[step] = Leaves(random.uniform(-0.5, 1.5, shape), split, push, random.uniform(0.9, 1, shape))
    spec = random.normal(size=(1, 3))
    bound = lower_bounds(network, region, {len(network.steps): spec}, leaves)
    assert np.isfinite(bound[0]) and bound[0] <= spec[0] @ output + 1e-9


@every
def test_certificates_prove_what_is_true_and_nothing_else(name):
    model = small(name)
    least = {o: min(least_at_pattern(model, BOX, spec_of(o), s)[0] for s in patterns(model, SHAPE)) for o in OTHERS}
    shifted(model, {other: 0.02 - value for other, value in least.items()})
    assert prove(Network(model), BOX, LABEL).by == "", "no task for a certificate"
    tensors = full_certificate(model, BOX, {row: spec_of(other) for row, other in enumerate(OTHERS)})
    assert prove(Network(model), BOX, LABEL, tensors).by == CERTIFICATE
    shifted(model, {2: -0.03})
    proof = prove(Network(model), BOX, LABEL, tensors)
    assert proof.by == "" and proof.least < -0.005 and not proof.refused
