"""The checker's margins: at points those of the network, over boxes below every attack and as good as IBP's."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from baselines import build, network_names, required_options
from cerdeq import LinfBall, bound, margin_spec
from cerdeq.equilibrium import FixedPoint, fold
from harness.checker import equilibrium as equilibrium_module
from harness.checker.boxes import Box, ball
from harness.checker.equilibrium import NotProvedError, contraction, equilibrium
from harness.checker.network import Network, UnknownLayerError

EPS = Fraction(1, 100)
OPTIONS = [("cerdeq", {"parametrisation": name}) for name in ("nonnegative", "monotone", "orthogonal")]
OPTIONS += [("cerdeq", {"equilibria": 2, "margin": 0.05, "gain": None}), ("cnn5", {"pool": True})]


def sample_networks(slow_kinds=()):
    """Return parameters (name, options): by default the first network of each kind; others are slow.

    Networks of a kind share their name but for its digits, and are made of the same layers.
    """
    built = [name for name in network_names() if not required_options(name)]
    shallow = [name for name in built if int("".join(filter(str.isdigit, name)) or 0) <= 11]
    first = {}
    for name in shallow:
        first.setdefault(name.rstrip("0123456789"), name)
    fast = {name for kind, name in first.items() if kind not in slow_kinds}
    plain = [pytest.param(name, {}, marks=() if name in fast else pytest.mark.slow) for name in shallow]
    return plain + [pytest.param(*case) for case in OPTIONS]


def network_of(name, dataset="digits", **options):
    """A network with batch norm's statistics, weights and biases as if it had been trained."""
    model = build(name, dataset, 0.1, **options)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean, std=0.2)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
            torch.nn.init.uniform_(module.weight, 0.5, 2)
            torch.nn.init.normal_(module.bias, std=0.2)
    fold(model)
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize(("name", "options"), sample_networks())
def test_margins_are_the_network_s_and_below_those_of_every_image_in_the_ball(name, options):
    model = network_of(name, **options)
    pixels = torch.randint(0, 256, (3, 1, 8, 8))
    labels = torch.tensor([3, 0, 7])
    network, exact = Network(model), model.double()
    spec = margin_spec(labels, 10).double()

    def margins(x):
        return (spec @ exact(x)[..., None])[..., 0].numpy()

    x = pixels.double() / 255
    own = network.margins(ball(pixels.numpy().astype(float), 0.0), labels.numpy())
    np.testing.assert_allclose(own, margins(x), rtol=1e-6, atol=1e-6)
    lower = network.margins(ball(pixels.numpy().astype(float), float(EPS)), labels.numpy())
    for _ in range(20):
        point = (x + float(EPS) * torch.randn_like(x).sign()).clamp(0, 1)
        assert (lower <= margins(point) + 1e-9).all()
    ours, _ = bound(exact, LinfBall(x, EPS), "ibp", spec)
    np.testing.assert_allclose(lower, ours.numpy(), rtol=1e-4, atol=1e-4)


class TwoInputs(torch.nn.Module):
    def forward(self, x, y):
        return x + y


REFUSED = {
    "Softplus": torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Softplus(), torch.nn.Linear(4, 2)),
    "second input": TwoInputs(),
    "last layer": torch.nn.Sequential(torch.nn.Linear(4, 2), torch.nn.ReLU()),
}


@pytest.mark.parametrize("message", REFUSED)
def test_a_network_without_a_rule_is_refused(message):
    with pytest.raises(UnknownLayerError, match=message):
        Network(REFUSED[message])


@pytest.mark.parametrize("kernel", [None, 3])
@pytest.mark.parametrize("rate", [0.0, 0.5, 0.97])
def test_boxes_hold_the_equilibria_of_points_of_their_box(kernel, rate):
    weight = torch.randn(4, 4, *([kernel] * 2 if kernel else [])).double()
    matrix = weight.abs().reshape(4, 4, -1).sum(2)
    weight *= rate / torch.linalg.eigvals(matrix).abs().max()
    h = torch.randn(5, 4, *([6] * 2 if kernel else [])).double()
    box = equilibrium(weight.numpy(), Box(h.numpy(), np.full(h.shape, 0.1)))
    assert np.isfinite(box.radius).all()
    layer = FixedPoint(weight, 1, 1).double().eval()
    for _ in range(20):
        z = layer.solve(h + 0.1 * (2 * torch.rand_like(h) - 1), tolerance=1e-12, solver="anderson").value.numpy()
        assert (box.lower <= z + 1e-9).all() and (z - 1e-9 <= box.upper).all()


@pytest.mark.parametrize("h", [-1.0, 0.0])
def test_equilibria_of_dead_units_are_zero(h):
    box = equilibrium(np.array([[0.3, -0.5], [0.2, 0.1]]), Box(np.full((1, 2), h), np.zeros((1, 2))))
    assert (box.lower <= 0).all() and (box.upper >= 0).all() and (box.upper < 1e-300).all()


@pytest.mark.parametrize("size", [1.0, 1 + 1e-12, 3.0, np.nan, np.inf])
def test_a_w_that_may_not_contract_is_refused(size):
    """At rho(|W|) = 1 exactly, too."""
    with pytest.raises(NotProvedError):
        contraction(size * np.array([[0.5, 0.5], [0.5, 0.5]]))


def test_a_bad_guess_costs_only_tightness(monkeypatch):
    weight, h = np.array([[0.0, 0.5], [-0.5, 0.0]]), Box(np.array([[1.0, 2.0]]), np.array([[0.1, 0.1]]))
    tight = equilibrium(weight, h)
    monkeypatch.setattr(
        equilibrium_module, "_guess", lambda weight, h: Box(np.zeros_like(h.center), np.zeros_like(h.radius))
    )
    loose = equilibrium(weight, h)
    assert (loose.lower <= tight.lower + 1e-12).all() and (loose.upper >= tight.upper - 1e-12).all()
    monkeypatch.setattr(equilibrium_module, "inside", lambda inner, outer: np.zeros(len(inner.center), dtype=bool))
    assert np.isinf(equilibrium(weight, h).radius).all(), "no box is returned without a proof"
