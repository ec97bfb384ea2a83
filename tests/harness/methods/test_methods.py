"""Training methods against their formulas, and the attack that some begin with."""

import copy
import dataclasses
import re

import pytest
import torch
import torch.nn.functional as F
from image_batches import EPS, batch_of, with_adversary
from torch import nn

from baselines import build
from cerdeq import LinfBall, bound, margin_spec
from cerdeq.bounds import Context, trace
from harness.methods import METHODS, Batch, make_method
from harness.methods.adversarial import PGD, Plain
from harness.methods.certified import IBP, CrownIBP
from harness.methods.expressive import CCIBP, MTLIBP, SABR, ExpIBP
from harness.training.initialise import initialise

ATTACKING = {PGD(): 1, SABR(): 0.3, SABR(subselection=0.2, attack_steps=3): 0.8, MTLIBP(attack_radius=2.0): 2}
"""Methods and the radius of their attack over eps."""
NETWORKS = [pytest.param("cnn5", marks=pytest.mark.slow), pytest.param("resnet9", marks=pytest.mark.slow), "cerdeq"]


def network_of(name: str) -> nn.Sequential:
    network = build(name, "digits", width=0.2).double()
    initialise(network)
    return network.train()


def worst_logits(lower: torch.Tensor) -> torch.Tensor:
    """Cross entropy of (0, -lower)."""
    logits = torch.cat([torch.zeros(len(lower), 1).double(), -lower], dim=1)
    return F.cross_entropy(logits, torch.zeros(len(lower), dtype=torch.long))


@pytest.mark.parametrize("name", NETWORKS)
def test_plain_training_is_torch_s_own(name):
    ours = network_of(name)
    theirs, batch = copy.deepcopy(ours), batch_of()
    loss = Plain().loss(trace(ours), batch)
    loss.robust.backward()
    expected = F.cross_entropy(theirs(batch.x), batch.labels)
    expected.backward()
    assert loss.robust.item() == pytest.approx(expected.item(), rel=1e-12)
    for (key, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, msg=key)
    for key, value in theirs.state_dict().items():
        if not key.endswith("num_batches_tracked"):
            torch.testing.assert_close(ours.state_dict()[key], value)


def test_the_attack_finds_the_worst_corner_of_a_linear_network():
    """Of two classes: the gradient's sign is that of the difference of their weights everywhere."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 2)).double()
    batch = dataclasses.replace(batch_of(), labels=torch.randint(0, 2, (12,)), classes=2)
    adversary = PGD().attack(trace(network), batch)
    weight = network[1].weight
    away = torch.stack([(weight[1 - y] - weight[y]).sign() for y in batch.labels]).view_as(batch.x)
    torch.testing.assert_close(adversary, (batch.x + EPS * away).clamp(0, 1).detach())


@pytest.mark.parametrize(("method", "reach"), ATTACKING.items())
def test_the_attack_is_signed_gradient_steps_from_a_random_start(method, reach):
    network, batch = network_of("resnet9").eval(), batch_of()
    torch.manual_seed(5)
    adversary = method.attack(trace(network), batch)
    torch.manual_seed(5)
    radius = reach * EPS
    low, high = (batch.x - radius).clamp(min=0), (batch.x + radius).clamp(max=1)
    point = low + torch.rand_like(batch.x) * (high - low)
    for _ in range(method.attack_steps):
        point = point.detach().requires_grad_(True)
        F.cross_entropy(network(point), batch.labels, reduction="sum").backward()
        point = torch.clamp(point + method.attack_step * radius * point.grad.sign(), low, high)
    torch.testing.assert_close(adversary, point.detach(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", [make_method(name, {}) for name in METHODS])
def test_running_statistics_follow_the_clean_batch_once(method):
    network = network_of("cnn5")
    other, batch = copy.deepcopy(network), batch_of()
    program = trace(network, linear=True)
    method.loss(program, with_adversary(method, program, batch))
    other(batch.x)
    for key, value in other.state_dict().items():
        if not key.endswith("num_batches_tracked"):
            torch.testing.assert_close(network.state_dict()[key], value, msg=key)


def test_pgd_trains_on_adversarial_images_by_the_clean_batch_s_statistics():
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 10)).double()
    program, batch = trace(network.train()), batch_of()
    batch = with_adversary(PGD(), program, batch)
    clean, hidden = network[1](batch.x.flatten(1)), network[1](batch.adversarial.flatten(1))
    variance, mean = torch.var_mean(clean, 0, correction=0)
    normal = (hidden - mean) / (variance + network[2].eps).sqrt() * network[2].weight + network[2].bias
    expected = F.cross_entropy(network[4](torch.relu(normal)), batch.labels)
    losses = PGD().loss(program, batch)
    assert losses.robust.item() == pytest.approx(expected.item(), rel=1e-12) and losses.lower is None
    parameters = list(network.parameters())
    for mine, other in zip(
        torch.autograd.grad(losses.robust, parameters), torch.autograd.grad(expected, parameters), strict=True
    ):
        torch.testing.assert_close(mine, other)


def test_sabr_is_ibp_over_the_small_box():
    """Against the public bounds, in evaluation mode."""
    network, batch = network_of("resnet9").eval(), batch_of()
    program = trace(network)
    batch = with_adversary(SABR(subselection=0.3), program, batch)
    assert ((batch.adversarial - batch.x).abs().max() + 0.3 * EPS) <= EPS + 1e-12
    lower, _ = bound(network, LinfBall(batch.adversarial, 0.3 * EPS), spec=margin_spec(batch.labels, 10))
    losses = SABR(subselection=0.3).loss(program, batch)
    assert losses.robust.item() == pytest.approx(worst_logits(lower).item(), rel=1e-9)
    assert losses.lower is None and losses.input_radius.max() <= 0.3 * EPS + 1e-12


def test_sabr_shrinks_the_upper_ends_after_unstable_relus():
    """Written out: the upper end after each unstable ReLU, 0.8 of what it was; other units and clean values as ever."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 9), nn.ReLU(), nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, 10))
    batch, method = batch_of(), SABR(subselection=0.4, relu_shrinkage=0.8)
    program = trace(network.double())
    batch = with_adversary(method, program, batch)
    radius = 0.4 * EPS
    low, high = ((batch.adversarial + sign * radius).clamp(0, 1).flatten(1) for sign in (-1, 1))
    unstable = 0
    for layer in (network[1], network[3]):
        positive, negative = layer.weight.clamp(min=0), layer.weight.clamp(max=0)
        low, high = (F.linear(a, positive, layer.bias) + F.linear(b, negative) for a, b in ((low, high), (high, low)))
        crossing = (low < 0) & (high > 0)
        unstable += int(crossing.sum())
        low, high = low.clamp(min=0), torch.where(crossing, 0.8 * high, high.clamp(min=0))
    weight = batch.spec @ network[5].weight
    lower = (weight.clamp(min=0) @ low[..., None] + weight.clamp(max=0) @ high[..., None]).squeeze(2)
    expected = worst_logits(lower + batch.spec @ network[5].bias)
    losses = method.loss(program, batch)
    assert unstable > 20 and losses.lower is None
    assert losses.robust.item() == pytest.approx(expected.item(), rel=1e-10)
    parameters = list(network.parameters())
    for mine, other in zip(
        torch.autograd.grad(losses.robust, parameters), torch.autograd.grad(expected, parameters), strict=True
    ):
        torch.testing.assert_close(mine, other)
    torch.testing.assert_close(losses.clean, (batch.spec @ network(batch.x)[..., None]).squeeze(2))


def test_shrunk_relus_never_bound_anything():
    with pytest.raises(ValueError, match="use it in training only"):
        Context(sound=True, relu_shrinkage=0.8)


def test_mtl_ibp_mixes_pgd_and_ibp():
    network, batch = network_of("resnet9"), batch_of()
    program = trace(network)
    batch = with_adversary(PGD(), program, batch)
    pgd, ibp, mixed = (method.loss(program, batch) for method in (PGD(), IBP(), MTLIBP(alpha=0.3)))
    assert mixed.robust.item() == pytest.approx(0.7 * pgd.robust.item() + 0.3 * ibp.robust.item(), rel=1e-9)
    torch.testing.assert_close(mixed.lower, ibp.lower)


def test_exp_ibp_multiplies_powers_of_pgd_and_ibp():
    network, batch = network_of("resnet9"), batch_of()
    program = trace(network)
    batch = with_adversary(PGD(), program, batch)
    pgd, ibp, product = (method.loss(program, batch) for method in (PGD(), IBP(), ExpIBP(alpha=0.3)))
    assert product.robust.item() == pytest.approx(pgd.robust.item() ** 0.7 * ibp.robust.item() ** 0.3, rel=1e-9)
    torch.testing.assert_close(product.lower, ibp.lower)


def test_cc_ibp_is_the_cross_entropy_of_mixed_logits():
    """Of the adversarial and IBP's worst logits less those of the label, against public bounds, in evaluation mode."""
    network, batch = network_of("resnet9").eval(), batch_of()
    program = trace(network)
    batch = with_adversary(CCIBP(), program, batch)
    lower, _ = bound(network, LinfBall(batch.x, EPS), spec=margin_spec(batch.labels, 10))
    logits = network(batch.adversarial)
    rows = [
        torch.cat([row[label] - row[:label], row[label] - row[label + 1 :]])
        for row, label in zip(logits, batch.labels, strict=True)
    ]
    losses = CCIBP(alpha=0.3).loss(program, batch)
    assert losses.robust.item() == pytest.approx(worst_logits(0.7 * torch.stack(rows) + 0.3 * lower).item(), rel=1e-9)
    torch.testing.assert_close(losses.lower, lower, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("kind", [MTLIBP, CCIBP, ExpIBP])
def test_an_expressive_loss_is_pgd_s_at_alpha_0_and_ibp_s_at_1(name, kind):
    """Values and gradients; so the whole family agrees at both ends."""
    network, batch = network_of(name), batch_of()
    program, parameters = trace(network), list(network.parameters())
    torch.manual_seed(3)
    batch = with_adversary(PGD(), program, batch)
    torch.manual_seed(3)
    assert torch.equal(kind(alpha=0).attack(program, batch), batch.adversarial)
    for method, expected in ((kind(alpha=0.0), PGD()), (kind(alpha=1.0), IBP())):
        losses = [each.loss(program, batch).robust for each in (method, expected)]
        torch.testing.assert_close(*losses, rtol=1e-9, atol=0)
        gradients = [torch.autograd.grad(loss, parameters) for loss in losses]
        for mine, other in zip(*gradients, strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-9)


def test_exp_ibp_has_a_gradient_where_a_cross_entropy_rounds_to_0():
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    nn.init.constant_(network[1].bias, 0)
    network[1].bias.data[0] = 200
    x, labels = torch.rand(4, 1, 8, 8), torch.zeros(4, dtype=torch.long)
    batch = Batch(x, labels, 2, torch.tensor(EPS), torch.tensor(1.0), adversary=x)
    loss = ExpIBP().loss(trace(network), batch).robust
    assert all(part.isfinite().all() for part in torch.autograd.grad(loss, list(network.parameters())))


DERIVATIVE = {name: {"connector": 1.0, "gradient_scale": 1.0} for name in ("taps", "staps")}
"""Options with which the gradient of a method is the derivative of its loss."""


@pytest.mark.parametrize(
    "method",
    [
        *(make_method(name, DERIVATIVE.get(name, {})) for name in METHODS),
        SABR(relu_shrinkage=0.8),
        CrownIBP(loss_fusion=False),
    ],
)
@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_are_those_of_finite_differences(name, method):
    """In training mode, through the batch statistics, the adversary held."""
    network, batch = network_of(name), batch_of(6)
    program = trace(network, linear=True)
    batch = with_adversary(method, program, batch)
    state = copy.deepcopy(network.state_dict())
    weight = network.conv1.weight

    def loss() -> torch.Tensor:
        network.load_state_dict(state, strict=True)
        return method.loss(program, batch).robust

    (gradient,) = torch.autograd.grad(loss(), weight)
    step = 1e-6 * torch.randn_like(weight)
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            state["conv1.weight"] += sign * step
            values.append(loss())
            state["conv1.weight"] -= sign * step
    assert float(values[0] - values[1]) == pytest.approx(2 * float((gradient * step).sum()), rel=2e-3)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("sabr", {"subselection": 0.0}, "subselection: found 0.0"),
        ("sabr", {"relu_shrinkage": 1.1}, "relu_shrinkage: found 1.1"),
        ("mtl-ibp", {"alpha": 1.5}, "alpha: found 1.5"),
        ("cc-ibp", {"alpha": -0.1}, "alpha: found -0.1"),
        ("mtl-ibp", {"attack_radius": 0.0}, "attack_radius: found 0.0"),
        ("pgd", {"attack_steps": 0}, "attack_steps: found 0"),
        ("pgd", {"attack_step": 0.0}, "attack_step: found 0.0"),
        ("crown-ibp", {"final_beta": 2.0}, "final_beta: found 2.0"),
        ("taps", {"classifier_relus": -1}, "classifier_relus: found -1"),
        ("taps", {"gradient_scale": 0.0}, "gradient_scale: found 0.0"),
        ("taps", {"connector": 0.0}, "connector: found 0.0"),
        ("taps", {"latent_steps": 0}, "latent_steps: found 0"),
        ("taps", {"latent_restarts": 0}, "latent_restarts: found 0"),
        ("taps", {"relu_shrinkage": 0.0}, "relu_shrinkage: found 0.0"),
        ("staps", {"subselection": 1.1}, "subselection: found 1.1"),
        ("trades", {}, "unknown training method 'trades'"),
    ],
)
def test_options_out_of_range_are_refused(name, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make_method(name, options)


def test_an_unknown_option_is_refused():
    with pytest.raises(TypeError, match="unknown option 'alpha' of plain; allowed: none"):
        make_method("plain", {"alpha": 0.5})
