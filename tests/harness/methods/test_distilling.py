"""CC-Dist and AD-CERT against their formulas as we read them, and teachers."""

import copy
import dataclasses

import pytest
import torch
from image_batches import EPS, batch_of, with_adversary
from torch import nn

from baselines import build
from cerdeq import LinfBall, bound, margin_spec
from cerdeq.bounds import Context, points_of, trace
from cerdeq.equilibrium import FixedPoint
from harness.methods import make_method, make_teacher
from harness.methods.certified import IBP
from harness.methods.distilling import ADCERT, CCDist, features_of
from harness.methods.expressive import CCIBP
from harness.training.initialise import initialise


def network_of(name: str) -> nn.Sequential:
    network = build(name, "digits", width=0.1).double()
    initialise(network)
    return network.eval()


def loss_of(method, program, batch, pair):
    return method.loss(program, dataclasses.replace(batch, adversary=pair)).robust


@pytest.mark.parametrize("name", ["cnn5", "cerdeq"])
def test_a_teacher_answers_as_its_network_and_is_frozen(name):
    network, x = network_of(name).float(), torch.rand(6, 1, 8, 8)
    program = make_teacher(copy.deepcopy(network))
    ctx = Context(sound=False, follow=False)
    tolerance = {"rtol": 1e-3, "atol": 1e-3}  # an equilibrium is iterated as in training
    torch.testing.assert_close(points_of(program, x, ctx), network(x), **tolerance)
    torch.testing.assert_close(features_of(program, x, ctx), network[:-1](x), **tolerance)
    assert not any(value.requires_grad for step in program.steps for value in _parameters(step.target))


def test_a_teacher_iterates_its_equilibrium_as_at_the_end_of_training():
    program = make_teacher(build("cerdeq", "digits", width=0.1, early_iterations=1, iterations=7))
    assert [step.target.iterations for step in program.steps if isinstance(step.target, FixedPoint)] == [7]


def _parameters(target):
    return target.parameters() if isinstance(target, nn.Module) else []


def test_ad_cert_is_the_divergence_from_the_teacher_and_ibp():
    network, batch = network_of("cnn5"), batch_of()
    program, teacher = trace(network), torch.randn(12, 10).double()
    images = with_adversary(ADCERT(), program, batch).pair[0]
    ours, taught = network(images).softmax(1), teacher.softmax(1)
    divergence = (taught * (taught / ours).log()).sum(1).mean()
    bounded = IBP().loss(program, batch).robust
    for alpha in (0.0, 0.3, 1.0):
        expected = (1 - alpha) * divergence + alpha * bounded
        found = loss_of(ADCERT(alpha=alpha), program, batch, (images, teacher))
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)


def test_cc_dist_is_cc_ibp_and_distances_of_features():
    """The largest distance in IBP's box, against the public bounds of the network without its last layer."""
    network, batch = network_of("cnn5"), batch_of()
    program = trace(network)
    images, teacher = with_adversary(CCDist(), program, batch).pair
    lower, upper = bound(network[:-1].eval(), LinfBall(batch.x, EPS))
    largest = torch.maximum((upper - teacher).abs(), (teacher - lower).abs())
    attacked = (network[:-1](images) - teacher).abs()
    assert (attacked[:, None] <= largest[:, None] + 1e-9).all()
    for alpha in (0.0, 0.3, 1.0):
        alone = loss_of(CCIBP(alpha=alpha), program, batch, images)
        expected = alone + 2 * ((1 - alpha) * attacked + alpha * largest).square().mean()
        found = loss_of(CCDist(alpha=alpha, distillation=2.0), program, batch, (images, teacher))
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
        assert loss_of(CCDist(alpha=alpha, distillation=0.0), program, batch, (images, teacher)) == alone


def test_the_attack_asks_the_teacher_at_the_student_s_images():
    network, batch = network_of("cnn5"), batch_of()
    program, teacher = trace(network), network_of("cnn5")
    batch = dataclasses.replace(batch, teacher=make_teacher(teacher))
    for method, part in ((ADCERT(), teacher), (CCDist(), teacher[:-1])):
        torch.manual_seed(1)
        images, answer = method.attack(program, batch)
        torch.manual_seed(1)
        assert torch.equal(images, CCIBP().attack(program, batch))
        torch.testing.assert_close(answer, part(images))


def test_a_teacher_with_other_features_is_refused():
    small, large = (trace(build("cnn5", "digits", width=width)) for width in (0.1, 0.2))
    CCDist().check(small, small)
    ADCERT().check(small, large)
    with pytest.raises(ValueError, match=r"teacher: found \d+, allowed: \d+ features before its last layer"):
        CCDist().check(small, large)
    ends_in_relu = trace(nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.ReLU()))
    with pytest.raises(ValueError, match="a linear layer"):
        CCDist().check(ends_in_relu, small)
    with pytest.raises(ValueError, match="distillation: found -1"):
        make_method("cc-dist", {"distillation": -1.0})


def test_bounds_are_those_of_ibp():
    network, batch = network_of("cnn5"), batch_of()
    program = trace(network)
    lower, _ = bound(network, LinfBall(batch.x, EPS), spec=margin_spec(batch.labels, 10))
    for method in (ADCERT(), CCDist()):
        losses = method.loss(program, with_adversary(method, program, batch))
        torch.testing.assert_close(losses.lower, lower, rtol=1e-6, atol=1e-9)
