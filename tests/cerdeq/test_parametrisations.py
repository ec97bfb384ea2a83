"""The Perron parametrisation: rho(|W|) within the margin, tight, differentiable; options out of range."""

import itertools

import pytest
import torch
from equilibria import channels, spectral_radius
from torch import nn

from cerdeq.equilibrium import Equilibrium, contraction
from cerdeq.equilibrium.weights import Perron


def perron_weight(kernel_shape, margin=0.3, gain=None, scale=1.0, dtype=torch.float32):
    part = Perron(kernel_shape[0], margin, gain).to(dtype)
    return part, scale * torch.randn(kernel_shape, dtype=dtype)


@pytest.mark.parametrize("margin", [0.01, 0.3, 0.9])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e6])
@pytest.mark.parametrize("shape", [(6, 6), (5, 5, 3, 3)])
def test_rho_is_within_the_margin_for_any_kernel(shape, scale, margin):
    part, kernel = perron_weight(shape, margin, scale=scale)
    for passes in range(4):
        weight = part.eval()(kernel)
        rho = spectral_radius(channels(weight))
        assert rho <= (1 - margin) * (1 + 1e-5)
        assert contraction(weight).rate < 1
        if passes == 3 and scale >= 1:
            assert rho >= (1 - margin) * 0.999, "power iteration did not make the bound tight"
        part.train()
        for _ in range(20):
            part(kernel)


def test_a_kernel_below_the_bound_is_left_alone():
    part, kernel = perron_weight((4, 4, 3, 3), margin=0.5, scale=1e-3)
    assert torch.equal(part(kernel), kernel)


@pytest.mark.parametrize("gain", [0.1, 0.5, 0.9])
def test_the_gain_scales_w(gain):
    part, kernel = perron_weight((4, 4), gain=gain)
    plain = Perron(4, 0.3, None)
    torch.testing.assert_close(part(kernel), gain * plain(kernel))
    assert part.gain.item() == pytest.approx(gain) and plain.gain.item() == 1
    assert spectral_radius(channels(part(kernel))) <= gain * 0.7 * (1 + 1e-5)


def test_rho_stays_within_the_margin_while_training():
    torch.manual_seed(3)
    model = Equilibrium(4, nn.Conv2d(2, 4, 3, padding=1), margin=0.2, gain=0.5, iterations=5, backward_iterations=5)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.1)
    for _ in range(25):
        optimiser.zero_grad()
        (-model(torch.rand(3, 2, 5, 5)).square().mean()).backward()  # outputs, and so W, want to grow
        optimiser.step()
        rho = spectral_radius(channels(model.recurrence.weight))
        assert rho <= 0.8 * (1 + 1e-5)
        gain = model.recurrence.parametrizations.weight[0].gain
        assert 0 <= gain <= 1
    assert rho > 0.5, "this training was meant to drive W to its bound"


@pytest.mark.parametrize("shape", [(3, 3), (3, 3, 3, 3)])
@pytest.mark.parametrize("training", [True, False])
def test_a_zero_kernel_gives_zero_w_and_finite_gradients(shape, training):
    part = Perron(3, 0.3, 0.5).train(training)
    kernel = torch.zeros(shape, requires_grad=True)
    for _ in range(3):
        weight = part(kernel)
        (weight * torch.randn(shape)).sum().backward()
    assert not weight.any() and kernel.grad.isfinite().all() and kernel.grad.any()
    assert part.gain_logit.grad.isfinite() and part.left.isfinite().all() and part.right.isfinite().all()


@pytest.mark.parametrize("shape", [(3, 3), (3, 3, 3, 3)])
def test_w_starting_at_zero_trains_away_from_it(shape):
    kernel_size = None if len(shape) == 2 else 3
    model = Equilibrium(3, nn.Identity(), kernel_size=kernel_size)
    with torch.no_grad():
        model.recurrence.parametrizations.weight.original.zero_()
    z = model(torch.rand(4, 3) if kernel_size is None else torch.rand(4, 3, 4, 4))
    z.square().sum().backward()
    gradient = model.recurrence.parametrizations.weight.original.grad
    assert gradient.isfinite().all() and gradient.any()


@pytest.mark.parametrize("shape", [(4, 4), (3, 3, 3, 3)])
@pytest.mark.parametrize("seed", range(3))
def test_gradient_of_the_scale_against_finite_differences(seed, shape):
    """W = M (1 - m) / rho(|M|) with rho from numpy, differenced; the Perron vectors have converged."""
    torch.manual_seed(seed)
    part, kernel = perron_weight(shape, margin=0.3, scale=3.0, dtype=torch.float64)
    for _ in range(300):
        part(kernel)
    part.eval()
    cotangent = torch.randn(shape, dtype=torch.float64)
    kernel.requires_grad_()
    found = torch.autograd.grad((part(kernel) * cotangent).sum(), kernel)[0]

    def value(m):
        return float((m * cotangent).sum()) * 0.7 / spectral_radius(channels(m))

    step = 1e-6
    for index in itertools.product(*[range(0, size, 2) for size in shape]):
        up, down = kernel.detach().clone(), kernel.detach().clone()
        up[index] += step
        down[index] -= step
        expected = (value(up) - value(down)) / (2 * step)
        assert found[index].item() == pytest.approx(expected, rel=5e-3, abs=5e-4)


@pytest.mark.parametrize("options", [{"margin": 0.0}, {"margin": 1.0}, {"margin": -1}, {"gain": 0.0}, {"gain": 1.0}])
def test_margin_and_gain_outside_their_range_are_refused(options):
    with pytest.raises(ValueError, match=r"margin|gain"):
        Equilibrium(3, nn.Identity(), **options)


@pytest.mark.parametrize(
    "options",
    [
        {"parametrisation": "peron"},
        {"kernel_size": 2},
        {"kernel_size": 0},
        {"iterations": 0},
        {"backward_iterations": 0},
    ],
)
def test_other_options_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match=r"parametrisation|kernel_size|iterations"):
        Equilibrium(3, nn.Identity(), **options)
