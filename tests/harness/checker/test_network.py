"""The checker's margins of whole networks, and its boxes of equilibria."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from oracles import Lambda

from baselines import build, network_names, required_options
from cerdeq import LinfBall, bound, margin_spec, verify
from cerdeq.equilibrium import adjoint_bound, fold
from harness.checker.bounds import equilibrium as equilibrium_module
from harness.checker.bounds.boxes import Box, ball
from harness.checker.bounds.equilibrium import NotProvedError, contraction, equilibrium
from harness.checker.bounds.linear import lower_bounds
from harness.checker.bounds.network import UnknownLayerError, read_network
from harness.checker.bounds.regions import interval_region, tight_region

EPS = Fraction(1, 100)
OPTIONS = [("cerdeq", {"parametrisation": name}) for name in ("nonnegative", "monotone", "orthogonal")]
OPTIONS += [("cerdeq", {"image": True, "channel_gain": True, "kernel_size": 1})]
OPTIONS += [("cerdeq", {"equilibria": 2, "margin": 0.05, "gain": None})]


def sample_networks():
    """Return parameters (name, options): by default the first network of each kind; others are slow.

    Networks of a kind share their name but for its digits, and are made of the same layers.
    """
    built = [name for name in network_names() if not required_options(name)]
    shallow = [name for name in built if int("".join(filter(str.isdigit, name)) or 0) <= 11]
    first = {}
    for name in shallow:
        first.setdefault(name.rstrip("0123456789"), name)
    plain = [pytest.param(name, {}, marks=() if name in first.values() else pytest.mark.slow) for name in shallow]
    return plain + [pytest.param(*case) for case in OPTIONS]


def network_of(name, **options):
    """A network with batch norm's statistics, weights and biases as if it had been trained."""
    model = build(name, "digits", 0.05, **options)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean, std=0.2)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
            torch.nn.init.uniform_(module.weight, 0.5, 2)
            torch.nn.init.normal_(module.bias, std=0.2)
    fold(model)
    return model.eval().requires_grad_(False)


def attack(margins_of, x, steps=5):
    """Return the smallest margin of each row over corners of the ball and over points of a descent, [B, K - 1]."""
    eps, smallest = float(EPS), margins_of(x)
    for start in (x, *[(x + eps * torch.randn_like(x).sign()).clamp(0, 1) for _ in range(2)]):
        point = start
        for _ in range(steps):
            point = point.detach().requires_grad_()
            margins = margins_of(point)
            smallest = torch.minimum(smallest, margins.detach())
            (gradient,) = torch.autograd.grad(margins.min(1).values.sum(), point)
            point = torch.clamp(point - 0.3 * eps * gradient.sign(), x - eps, x + eps).clamp(0, 1)
    return smallest.numpy()


@pytest.mark.parametrize(("name", "options"), sample_networks())
def test_margins_lie_below_attacks_and_where_ibp_s_and_crown_s_do(monkeypatch, name, options):
    monkeypatch.setattr(
        adjoint_bound, "_ADJOINT_TOLERANCE", 1e-6
    )  # at its 1e-4, CROWN alone stops that far from its limit
    """Two derivations of each bound. Tighter boxes are no looser."""
    model = network_of(name, **options)
    pixels, labels = torch.randint(0, 256, (2, 1, 8, 8)), torch.tensor([3, 0])
    network, exact = read_network(model), model.double()
    spec, x = margin_spec(labels, 10).double(), pixels.double() / 255

    def margins_of(points):
        return (spec @ exact(points)[..., None])[..., 0]

    grey, images = pixels.numpy().astype(float), ball(pixels.numpy().astype(float), float(EPS))
    at_point = network.margins(network.boxes(ball(grey, 0.0)), labels.numpy())
    np.testing.assert_allclose(at_point.center, margins_of(x), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(at_point.lower, at_point.upper, rtol=1e-6, atol=1e-6)
    worst, ibp = attack(margins_of, x), network.margins(network.boxes(images), labels.numpy()).lower
    np.testing.assert_allclose(ibp, bound(exact, LinfBall(x, EPS), "ibp", spec)[0].numpy(), rtol=1e-4, atol=1e-4)
    first = Box(images.center[:1], images.radius[:1])
    regions = [interval_region(network, first), tight_region(network, first)]
    functional = {len(network.steps): spec[0].numpy()}
    loose, tight = (lower_bounds(network, region, functional, {}) for region in regions)
    assert (ibp <= worst + 1e-9).all() and (loose <= worst[0] + 1e-9).all() and (tight <= worst[0] + 1e-9).all()
    crown = bound(exact, LinfBall(x, EPS), "crown-ibp", spec)[0]
    ours, theirs = np.maximum(ibp[0], loose), crown[0].numpy()
    if name == "monotone":  # cerdeq's CROWN stops at the equilibrium's box
        assert (ours >= theirs - 1e-4).all()
    else:
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)
    for a, b in zip(*(region.values for region in regions), strict=True):
        assert (b.lower >= a.lower - 1e-9).all() and (b.upper <= a.upper + 1e-9).all()
    loose_size, tight_size = (sum(box.radius.sum() for box in region.values) for region in regions)
    assert tight_size <= loose_size * (1 + 1e-12)  # equal where nothing behind the first activation is unstable


class TwoInputs(torch.nn.Module):
    def forward(self, x, y):
        return x + y


REFUSED = {
    "Softplus": torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Softplus(), torch.nn.Linear(4, 2)),
    "a second": TwoInputs(),
    "last layer": torch.nn.Sequential(torch.nn.Linear(4, 2), torch.nn.ReLU()),
}


@pytest.mark.parametrize("message", REFUSED)
def test_a_network_without_a_rule_is_refused(message):
    with pytest.raises(UnknownLayerError, match=message):
        read_network(REFUSED[message].eval())


@pytest.mark.parametrize("layer", [torch.nn.Conv2d(2, 2, 1), torch.nn.AvgPool2d(2)])
def test_a_layer_of_images_is_refused_for_sequences(layer):
    """Torch takes their first dimension for channels."""
    network = read_network(torch.nn.Sequential(layer, torch.nn.Flatten(), torch.nn.Linear(4, 2)).eval())
    with pytest.raises(UnknownLayerError, match=r"of a value of shape \[2, 4\]"):
        network.boxes(Box(np.zeros((2, 2, 4)), np.zeros((2, 2, 4))))


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


class DeadLayer(torch.nn.Module):
    """Its last call has no part in the output."""

    def __init__(self):
        super().__init__()
        self.flatten, self.hidden, self.relu = torch.nn.Flatten(), torch.nn.Linear(64, 8), torch.nn.ReLU()
        self.head, self.dead = torch.nn.Linear(8, 3), torch.nn.Linear(8, 3)
        self.constant = torch.nn.Parameter(torch.zeros(1, 8))

    def forward(self, x):
        y = self.head(self.relu(self.hidden(self.flatten(x))))
        self.dead(self.constant)
        return y


def test_the_last_layer_is_the_one_of_the_output():
    model = DeadLayer().eval().double()
    network = read_network(model)
    assert np.array_equal(network.weight, model.head.weight.detach().numpy())
    assert np.array_equal(network.bias, model.head.bias.detach().numpy())


def test_the_message_says_that_float32_is_what_a_network_does_not_fit():
    """A divisor is 0 in float32, in which the network was trained; a float64 network alone has bounds."""
    model = Lambda(lambda module, x: module.last(x / module.scale), scale=torch.full((3,), 1e-50, dtype=torch.float64))
    model.last = torch.nn.Linear(3, 2)
    model.double().eval()
    with pytest.raises(UnknownLayerError, match=r"this network in float32, where small numbers become 0: .*by zero"):
        read_network(model)
    region = LinfBall(torch.rand(1, 3).double(), 0.1)
    verify(model, region, torch.eye(2).double()[None], branches=1)
