"""The checker's margins: of the network itself at points, below every attack over boxes, no worse than IBP's."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from baselines import build, network_names, required_options
from cerdeq import LinfBall, bound, margin_spec
from cerdeq.equilibrium import FixedPoint, fold
from harness.checker import equilibrium as checked
from harness.checker.boxes import Box, ball
from harness.checker.equilibrium import NotProvedError, contraction, equilibrium
from harness.checker.network import Network, UnknownLayerError

EPS = Fraction(1, 100)
SHALLOW = [(name, {}) for name in network_names() if not required_options(name)]
OPTIONS = [("cerdeq", {"parametrisation": name}) for name in ("nonnegative", "monotone", "orthogonal")]
OPTIONS += [("cerdeq", {"equilibria": 2, "margin": 0.05, "gain": None}), ("cnn5", {"pool": True})]


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


@pytest.mark.parametrize(("name", "options"), SHALLOW + OPTIONS)
def test_margins_are_the_network_s_and_below_those_of_every_image_in_the_ball(name, options):
    """Deeper networks are made of the same layers."""
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
        moved = (x + float(EPS) * torch.randn_like(x).sign()).clamp(0, 1)
        assert (lower <= margins(moved) + 1e-9).all()
    ours, _ = bound(exact, LinfBall(x, EPS), "ibp", spec)
    np.testing.assert_allclose(lower, ours.numpy(), rtol=1e-4, atol=1e-4)


def test_a_layer_without_a_rule_is_refused():
    with pytest.raises(UnknownLayerError, match="Softplus"):
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Softplus(), torch.nn.Linear(4, 2)).eval()
        Network(model).margins(ball(np.zeros((1, 1, 2, 2)), 0.1), np.array([0]))


class Shifted(torch.nn.Module):
    def forward(self, x, y):
        return x + y


def test_a_second_input_is_refused():
    with pytest.raises(UnknownLayerError, match="second input"):
        Network(Shifted())


def test_a_last_layer_that_is_not_linear_is_refused():
    with pytest.raises(UnknownLayerError, match="last layer"):
        Network(torch.nn.Sequential(torch.nn.Linear(4, 2), torch.nn.ReLU()))


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
def test_equilibria_without_life_are_known(h):
    box = equilibrium(np.array([[0.3, -0.5], [0.2, 0.1]]), Box(np.full((1, 2), h), np.zeros((1, 2))))
    assert (box.lower <= 0).all() and (box.upper >= 0).all() and (box.upper < 1e-300).all()


@pytest.mark.parametrize("size", [1.0, 1 + 1e-12, 3.0, np.nan, np.inf])
def test_a_w_that_may_not_contract_is_refused(size):
    """At rho(|W|) = 1 exactly, too."""
    with pytest.raises(NotProvedError):
        contraction(size * np.array([[0.5, 0.5], [0.5, 0.5]]))


def test_a_bad_guess_costs_tightness_alone(monkeypatch):
    weight, h = np.array([[0.0, 0.5], [-0.5, 0.0]]), Box(np.array([[1.0, 2.0]]), np.array([[0.1, 0.1]]))
    tight = equilibrium(weight, h)
    monkeypatch.setattr(checked, "_guess", lambda weight, h: Box(np.zeros_like(h.center), np.zeros_like(h.radius)))
    loose = equilibrium(weight, h)
    assert (loose.lower <= tight.lower + 1e-12).all() and (loose.upper >= tight.upper - 1e-12).all()
    monkeypatch.setattr(checked, "inside", lambda inner, outer: np.zeros(len(inner.center), dtype=bool))
    assert np.isinf(equilibrium(weight, h).radius).all(), "nothing is handed out without a proof"
