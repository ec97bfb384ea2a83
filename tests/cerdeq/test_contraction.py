"""The proof of rho(|W|) < 1, against numpy eigenvalues and exact arithmetic."""

from fractions import Fraction

import pytest
import torch
from equilibria import channels, hard_matrices, random_h, random_weight, spectral_radius
from oracles import dense_operator, fractions
from torch import nn

from cerdeq.equilibrium import Equilibrium, FixedPoint, NotContractiveError, contraction, layer, verified_box


@pytest.mark.parametrize(("kernel", "signed"), [(1, True), (3, True), (3, False), (5, True)])
def test_rate_bounds_the_true_spectral_radius_on_any_image_size(kernel, signed):
    weight = random_weight(2, kernel, rho=0.8, signed=signed)
    rate = contraction(weight).rate
    radii = []
    for height, width in [(1, 1), (1, 5), (3, 2), (4, 4), (7, 6)]:
        radii.append(spectral_radius(dense_operator(weight.abs(), (2, height, width))))
    assert max(radii) <= rate * (1 + 1e-12)
    assert radii[0] <= radii[2] <= radii[3] <= radii[4]
    assert max(radii) > 0.6 * rate or kernel == 5
    signed_radius = spectral_radius(dense_operator(weight, (2, 7, 6)))
    assert signed_radius <= rate


def exactly_contractive(weight, v, rate) -> bool:
    """(|W| v)_i <= rate v_i and v_i > 0, in rational arithmetic."""
    magnitudes, v = fractions(weight.double().abs().flatten(1)), fractions(v)
    kernel = weight[0, 0].numel()
    sums = [sum(w * v[j // kernel] for j, w in enumerate(row)) for row in magnitudes]
    return all(b > 0 and a <= Fraction(rate) * b for a, b in zip(sums, v, strict=True))


@pytest.mark.parametrize("kernel", [None, 3])
@pytest.mark.parametrize("seed", range(2))
def test_the_proof_holds_in_exact_arithmetic(seed, kernel):
    torch.manual_seed(seed)
    weight = torch.randn(4, 4) if kernel is None else torch.randn(4, 4, kernel, kernel)
    weight = weight * 10.0 ** torch.randint(-8, 3, weight.shape)
    proof = contraction(weight)
    assert proof.v.dtype == torch.float64
    assert exactly_contractive(weight, proof.v, proof.rate)


@pytest.mark.parametrize("name", hard_matrices())
def test_rates_of_hard_matrices_are_proved_and_close(name):
    """Reducible, periodic and degenerate ones: proved, and close enough to be of use."""
    weight = hard_matrices()[name]
    exact, proof = spectral_radius(channels(weight)), contraction(weight)
    assert exactly_contractive(weight, proof.v, proof.rate)
    assert exact * (1 - 1e-12) <= proof.rate <= 1.01 * exact + 0.02 * weight.abs().max().item() + 1e-300


@pytest.mark.parametrize("scale", [1e2, 1e6])
@pytest.mark.parametrize("name", ["perron", "nonnegative"])
def test_badly_scaled_rows_and_columns_keep_their_margin(name, scale):
    """Similar to a matrix of one scale, by a diagonal with entries that far apart."""
    layer = Equilibrium(12, nn.Identity(), None, name, margin=0.01, gain=None)
    with torch.no_grad():
        kernel = layer.recurrence.parametrizations.weight.original
        kernel.copy_(torch.randn(12, 12))
        kernel[0] *= scale
        kernel[:, 0] /= scale
        for _ in range(25):
            layer.recurrence.weight  # noqa: B018  reading it in training follows the Perron vectors
    assert contraction(layer.eval().recurrence.weight).rate <= 0.99


@pytest.mark.parametrize("kernel", [None, 3])
@pytest.mark.parametrize("rho", [1.0, 1.0001, float("nan"), float("inf")])
def test_a_w_that_is_no_contraction_has_no_box(rho, kernel):
    weight = random_weight(3, kernel, rho=rho)
    h = random_h((2, 3) if kernel is None else (2, 3, 4, 4), 0.1)
    with pytest.raises(NotContractiveError, match="not proved"):
        verified_box(weight, h)


def test_a_proof_is_kept_for_as_long_as_w_stays_the_same(monkeypatch):
    weights = []
    monkeypatch.setattr(layer, "contraction", lambda weight: (weights.append(weight), contraction(weight))[1])
    module = FixedPoint(0.1 * torch.eye(3), iterations=1, backward_iterations=1)
    first = module.contraction(module.weight)
    assert module.contraction(module.weight) is first and len(weights) == 1
    with torch.no_grad():
        module.weight *= 2
    second = module.contraction(module.weight)
    assert len(weights) == 2 and second.rate == pytest.approx(2 * first.rate)
    assert module.contraction(module.weight.double()).rate == pytest.approx(second.rate) and len(weights) == 3
