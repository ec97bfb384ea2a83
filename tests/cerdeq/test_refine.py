"""Equilibria refined from float32, and followed by searches, against numpy's."""

import copy

import pytest
import torch
from equilibria import RHOS, exact_outputs, folded_network, random_h, random_weight, solutions
from torch import nn

from cerdeq.equilibrium import FixedPoint, follow, search
from cerdeq.equilibrium.refine import near_equilibrium, refined


@pytest.mark.parametrize("rho", RHOS)
@pytest.mark.parametrize("kernel", [None, 3])
def test_refinement_reaches_float64(kernel, rho):
    weight = random_weight(5, kernel, rho)
    h = random_h((4, 5) if kernel is None else (4, 5, 4, 4), 0, shift=0.3).center
    exact = solutions(weight, h)
    torch.testing.assert_close(near_equilibrium(weight, h), exact, rtol=0, atol=1e-11)
    rough = exact + 1e-6 * torch.randn_like(exact)
    assert (refined(weight, h, rough) - exact).abs().max() < 1e-11


def test_what_is_not_finite_is_left_at_relu_h_and_spares_its_neighbours():
    weight, h = torch.tensor([[0.5]]).double(), torch.tensor([[torch.inf], [1.0], [-torch.inf]]).double()
    assert near_equilibrium(weight, h)[:, 0].tolist() == pytest.approx([torch.inf, 2, 0])


@pytest.mark.parametrize("kernel, count", [(None, 2), (3, 1)])
def test_a_follower_is_near_the_network_and_its_gradient(kernel, count):
    model = folded_network(kernel, count)
    follower = copy.deepcopy(model)
    follow(follower)
    assert not any(isinstance(module, FixedPoint) for module in follower.modules())
    x = torch.randn(3, 3) if kernel is None else torch.randn(3, 1, 3, 3)
    for moved in (x.double(), x.double() + 0.1):
        exact = exact_outputs(model, moved[None])[0]
        assert (follower(moved) - exact).abs().max() <= 2e-2 * exact.abs().max()
        gradients = []
        for network in (model, follower):
            point = moved.clone().requires_grad_()
            gradients.append(torch.autograd.grad(network(point).sum(), point)[0])
        torch.testing.assert_close(*gradients, rtol=0.05, atol=0.05 * gradients[0].abs().max().item())


def test_a_follower_goes_on_from_its_last_solution(monkeypatch):
    layer = nn.Sequential(FixedPoint(random_weight(6, rho=0.97, signed=False), 5, 5)).double().eval()
    h = random_h((4, 6), 0, shift=1.0).center
    exact, counts, honest = layer(h), [], search.solve

    def counted(*arguments):
        solution = honest(*arguments)
        counts.append(int(solution.iterations.max()))
        return solution

    monkeypatch.setattr(search, "solve", counted)
    follow(layer)
    for moved in (h, h * 1.001, h[:2]):
        layer(moved)
    assert counts[1] < counts[0] and counts[2] > 1
    torch.testing.assert_close(layer(h), exact, rtol=2e-2, atol=0)
