"""IBP's and CROWN-IBP's losses, against the public bounds and each other."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from image_batches import batch_of

from baselines import build
from cerdeq import LinfBall, bound, margin_spec
from cerdeq.bounds import trace
from harness.methods import Batch
from harness.methods.certified import IBP, CrownIBP

every_network = pytest.mark.parametrize("name", ["cnn5", pytest.param("resnet9", marks=pytest.mark.slow), "cerdeq"])


def network_of(name: str) -> torch.nn.Module:
    return build(name, "digits", width=0.2).double().eval()


def test_the_ibp_loss_is_the_cross_entropy_of_the_worst_logits():
    """Against the public bounds, in float64, with batch norm's running statistics set to the batch's."""
    model = build("cnn5", "digits", width=0.2).double()
    x, labels, eps = torch.rand(20, 1, 8, 8).double(), torch.randint(0, 10, (20,)), 0.02
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d | torch.nn.BatchNorm1d):
            module.momentum = 1.0
    model.train()
    batch = Batch(x, labels, 10, torch.tensor(eps).double(), torch.tensor(0.5).double())
    losses = IBP().loss(trace(model), batch)
    for module in model.modules():  # torch keeps the unbiased variance; the step normalises by the biased one
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_var *= 1 - 1 / (20 * (16 if module is model.norm3 else 64))
        elif isinstance(module, torch.nn.BatchNorm1d):
            module.running_var *= 1 - 1 / 20
    model.eval()
    lower, _ = bound(model, LinfBall(x, eps), spec=margin_spec(labels, 10))
    worst = torch.zeros(20, 10).double()
    for row, label in enumerate(labels):
        others = [k for k in range(10) if k != label]
        worst[row, others] = -lower[row]
    assert losses.robust.item() == pytest.approx(F.cross_entropy(worst, labels).item(), rel=1e-6)
    torch.testing.assert_close(losses.lower, lower, rtol=1e-6, atol=1e-9)


@every_network
@pytest.mark.parametrize("fusion", [True, False])
def test_crown_ibp_without_beta_is_ibp(name, fusion):
    model, batch = network_of(name), batch_of(progress=1.0)
    program = trace(model, linear=True)
    expected, losses = IBP().loss(program, batch), CrownIBP(fusion).loss(program, batch)
    assert losses.robust.item() == pytest.approx(expected.robust.item(), rel=1e-12)
    parameters = list(model.parameters())
    for gradient, expected_gradient in zip(
        *(torch.autograd.grad(x.robust, parameters) for x in (losses, expected)), strict=True
    ):
        torch.testing.assert_close(gradient, expected_gradient)


def test_the_crown_ibp_loss_is_the_cross_entropy_of_the_public_bounds():
    """beta 1, nothing fused: where CROWN-IBP beats IBP everywhere, which `bound` never falls behind."""
    model, batch = network_of("resnet9"), batch_of(progress=0.0)
    losses = CrownIBP(loss_fusion=False).loss(trace(model, linear=True), batch)
    ball, spec = LinfBall(batch.x, 0.05), margin_spec(batch.labels, 10)
    lower, looser = (bound(model, ball, method, spec)[0] for method in ("crown-ibp", "ibp"))
    assert (lower > looser).all()
    worst = torch.cat([torch.zeros(12, 1).double(), -lower], dim=1)
    expected = F.cross_entropy(worst, torch.zeros(12, dtype=torch.long))
    assert losses.robust.item() == pytest.approx(expected.item(), rel=1e-9)


@every_network
@pytest.mark.parametrize("progress", [0.0, 0.4])
def test_the_fused_loss_is_no_less_than_that_of_any_point(name, progress):
    """beta mixes two upper bounds of the loss at each point of the ball."""
    model, batch = network_of(name), batch_of(progress=progress)
    program = trace(model, linear=True)
    for eps in (1e-6, 0.01, 0.1):
        at = dataclasses.replace(batch, eps=torch.tensor(eps).double())
        loss = CrownIBP().loss(program, at).robust.item()
        ball = LinfBall(batch.x, eps)
        for _ in range(20):
            point = ball.center + ball.radius * torch.sign(torch.randn_like(batch.x))
            assert F.cross_entropy(model(point), batch.labels).item() <= loss * (1 + 1e-9) + 1e-9


def test_fusing_tends_to_the_margins_bounds_at_small_eps():
    """The chords touch exp at both ends, so that at eps 0 both are the clean loss."""
    model, batch = network_of("cnn5"), batch_of(progress=0.0)
    at = dataclasses.replace(batch, eps=torch.tensor(0.0).double())
    clean = F.cross_entropy(model(batch.x), batch.labels).item()
    for fusion in (True, False):
        loss = CrownIBP(fusion).loss(trace(model, linear=True), at).robust.item()
        assert loss == pytest.approx(clean, rel=1e-9)


@pytest.mark.parametrize("fusion", [True, False])
@every_network
def test_every_parameter_has_a_finite_gradient(name, fusion):
    model = network_of(name).train()
    for eps in (1e-6, 0.1):
        at = dataclasses.replace(batch_of(progress=0.3), eps=torch.tensor(eps).double())
        loss = CrownIBP(fusion).loss(trace(model, linear=True), at).robust
        for parameter, gradient in zip(
            model.parameters(), torch.autograd.grad(loss, list(model.parameters())), strict=True
        ):
            assert gradient.isfinite().all() and gradient.shape == parameter.shape
