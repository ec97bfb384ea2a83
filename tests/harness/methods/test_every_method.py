"""What holds of every training method, met by walking the table: whatever is added is tested unasked."""

import copy
import dataclasses

import pytest
import torch
from image_batches import EPS, batch_of, with_adversary

from baselines import build
from cerdeq import LinfBall, bound, margin_spec
from cerdeq.bounds import trace
from harness.attacks.objectives import margins
from harness.attacks.pgd import worst_point
from harness.methods import METHODS, make_method
from harness.settings import EvaluationSettings
from harness.training.initialise import initialise

every_method = pytest.mark.parametrize("method", [make_method(name, {}) for name in METHODS], ids=list(METHODS))
every_network = pytest.mark.parametrize("name", ["cnn5", pytest.param("resnet9", marks=pytest.mark.slow), "cerdeq"])


def network_of(name):
    """In evaluation mode, where the public bounds are of the same function."""
    network = build(name, "digits", width=0.1).double()
    initialise(network)
    return network.eval()


def losses_at(method, network, batch, eps):
    """The losses at this radius, and the batch with its adversary."""
    program = trace(network, linear=method.linear)
    batch = dataclasses.replace(batch, eps=torch.tensor(eps, dtype=torch.float64))
    torch.manual_seed(1)
    batch = with_adversary(method, program, batch)
    return method.loss(program, batch), batch


@every_method
@every_network
def test_lower_bounds_are_the_public_ones_and_below_what_an_attack_finds(name, method):
    """IBP's in a method without backward rules; one that has them may be tighter."""
    network, batch = network_of(name), batch_of()
    losses, _ = losses_at(method, network, batch, EPS)
    torch.testing.assert_close(losses.clean, (batch.spec @ network(batch.x)[..., None]).squeeze(2))
    if losses.lower is None:
        return
    lower, _ = bound(network, LinfBall(batch.x, EPS), "ibp", margin_spec(batch.labels, 10))
    tolerance = 1e-5 * (1 + lower.abs().max())
    assert (losses.lower >= lower - tolerance).all()
    if not method.linear:
        assert (losses.lower <= lower + tolerance).all()
    attack, indices = EvaluationSettings(attack_steps=5, attack_restarts=1), torch.arange(len(batch.x))
    worst = worst_point(network, batch.x, batch.labels, EPS, attack, 0, indices)
    assert (losses.lower.amin(1) <= margins(network(worst), batch.labels)).all()


@every_method
@every_network
def test_the_loss_grows_with_eps_where_anything_is_bounded_or_attacked(name, method):
    network, batch = network_of(name), batch_of()
    tiny, small, large = (losses_at(method, network, batch, eps) for eps in (1e-4, 0.02, 0.1))
    losses = [losses.robust.item() for losses, _ in (tiny, small, large)]
    if tiny[0].lower is None and tiny[1].adversary is None:
        assert losses[0] == losses[1] == losses[2]
    else:
        assert losses[0] < losses[1] < losses[2]


@every_method
@every_network
def test_the_loss_falls_as_the_right_logit_rises(name, method):
    """By the classifier's bias, all images of one class, the adversary held."""
    network, batch = network_of(name), batch_of()
    batch = dataclasses.replace(batch, labels=torch.full_like(batch.labels, 3))
    before, batch = losses_at(method, network, batch, EPS)
    surer = copy.deepcopy(network)
    with torch.no_grad():
        surer.classifier.bias[3] += 1
    after = method.loss(trace(surer, linear=method.linear), batch)
    assert after.robust < before.robust
    torch.testing.assert_close(after.clean, before.clean + 1)


@pytest.mark.parametrize(
    ("name", "options"),
    [("sabr", {"subselection": 1.0}), *((name, {"alpha": 1.0}) for name in ("mtl-ibp", "cc-ibp", "exp-ibp"))],
)
def test_an_attack_without_weight_is_not_computed(name, options):
    batch, program = batch_of(), trace(network_of("cnn5"))
    assert make_method(name, options).attack(program, batch) is batch.x
    assert make_method(name, {}).attack(program, batch) is not batch.x
