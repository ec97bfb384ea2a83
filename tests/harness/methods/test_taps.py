"""TAPS and STAPS against their definition: the split, the attack in the latent box, the connector, the loss."""

import dataclasses
import itertools

import pytest
import torch
import torch.nn.functional as F
from image_batches import EPS, batch_of
from torch import nn

from baselines import build
from cerdeq import LinfBall, bound, margin_spec
from cerdeq.bounds import Context, Interval, points_of, trace, values_of
from harness.common.errors import InputError
from harness.config.buildable import check_buildable
from harness.config.training import Training
from harness.data import load
from harness.methods import make_method
from harness.methods.certified import IBP
from harness.methods.expressive import SABR
from harness.methods.taps import STAPS, TAPS, classifier_start, connected_points, lowest_positions, margins_at
from harness.settings import Recipe
from harness.training.initialise import initialise
from harness.training.loop import train

RECIPE = {"epochs": 4, "batch_size": 32, "ramp_start": 1, "ramp_epochs": 2, "decay_epochs": (3,), "learning_rate": 5e-3}
CONNECTORS = [0.1, 0.5, 1.0]


def network_of(name="cnn5"):
    network = build(name, "digits", width=0.2).double()
    initialise(network)
    return network.train()


def config_of(method, **options):
    train = Recipe(**RECIPE, eps="1/32")
    network = {"dataset": "digits", "seed": 0, "model": "cnn5", "width": 0.1}
    return Training(**network, method=method, method_options=options, train=train)


def attacked(method, program, batch):
    torch.manual_seed(2)
    return dataclasses.replace(batch, adversary=method.attack(program, batch))


@pytest.mark.parametrize("connector", CONNECTORS)
def test_the_connector_s_gradient_is_the_paper_s(connector):
    """Mao et al. 2023: linear from 1 at an end of the box to 0 at `connector` of the width away from it."""
    lower = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    upper = (lower.detach() + torch.rand(3, 4) + 0.1).requires_grad_(True)
    positions = torch.cat([2 * torch.rand(3, 5, 4) - 1, torch.ones(3, 1, 4), -torch.ones(3, 1, 4)], 1).double()
    latent = Interval((lower + upper) / 2, (upper - lower) / 2)
    points, weight = connected_points(latent, positions, connector), torch.randn(3, 7, 4).double()
    torch.testing.assert_close(points, latent.center[:, None] + positions * latent.radius[:, None])
    of_lower, of_upper = torch.autograd.grad((weight * points).sum(), [lower, upper])
    for b, i in itertools.product(range(3), range(4)):
        low, high = lower[b, i].item(), upper[b, i].item()
        zone = connector * (high - low)
        ends = [0.0, 0.0]
        for k in range(7):
            z = points[b, k, i].item()
            ends[0] += weight[b, k, i].item() * (max(0.0, low + zone - z) / zone)
            ends[1] += weight[b, k, i].item() * (max(0.0, z - (high - zone)) / zone)
        assert [of_lower[b, i].item(), of_upper[b, i].item()] == pytest.approx(ends, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("connector", CONNECTORS)
def test_a_linear_classifier_is_bounded_exactly(connector):
    """Each margin's attack ends in its worst corner: so the loss is the square of IBP's, also its gradient."""
    network, batch = network_of(), batch_of()
    program = trace(network)
    method = TAPS(classifier_relus=0, gradient_scale=3.0, connector=connector)
    batch = attacked(method, program, batch)
    losses, ibp = method.loss(program, batch), IBP().loss(program, batch)
    assert losses.robust.item() == pytest.approx(ibp.robust.item() ** 2, rel=1e-9)
    torch.testing.assert_close(losses.lower, ibp.lower)
    parameters = list(network.parameters())
    mine, other = (torch.autograd.grad(loss.robust, parameters) for loss in (losses, ibp))
    for gradient, other_gradient in zip(mine, other, strict=True):
        expected = (3.0 + 1.0) * ibp.robust.item() * other_gradient
        is_rounding = expected.abs().max() < 1e-8  # biases before batch norm; others reach 1e6
        torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-8 if is_rounding else 1e-9)


@pytest.mark.parametrize(
    "method", [TAPS(latent_steps=3), TAPS(latent_steps=10, latent_restarts=2), STAPS(latent_steps=3)]
)
def test_the_latent_attack_stays_in_the_box_and_below_no_bound(method):
    network, batch = network_of(), batch_of()
    program = trace(network)
    batch = attacked(method, program, batch)
    center, positions = batch.pair
    assert positions.abs().max() <= 1 and positions.shape[:2] == (12, 9)
    assert ((center - batch.x).abs() + (1 - method._is_whole_ball) * 0.7 * EPS <= EPS + 1e-12).all()
    box = method._box(program, batch, center)
    latent = box.values[classifier_start(program, 1)]
    points = latent.center[:, None] + positions * latent.radius[:, None]
    assert (points <= latent.box.upper[:, None] + 1e-12).all() and (points >= latent.box.lower[:, None] - 1e-12).all()
    lowest = margins_at(program, classifier_start(program, 1), box, points)
    middle = margins_at(program, classifier_start(program, 1), box, latent.center[:, None].expand_as(points))
    assert (lowest >= box.margins.box.lower - 1e-9).all() and (lowest < middle).all()


def test_each_margin_s_point_is_the_lowest_of_all_steps_and_restarts():
    """Against a grid, of two latent dimensions and a function with several minima for each margin."""
    shifts = torch.tensor([0.3, 1.1, 2.0]).double()

    def margins(s):
        return (torch.cos(5 * s + shifts[:, None]) + 0.2 * s).sum(-1)

    torch.manual_seed(0)
    best = lowest_positions(margins, torch.zeros(4, 3, 2).double(), steps=20, restarts=8)
    grid = torch.cartesian_prod(*[torch.linspace(-1, 1, 401).double()] * 2)[:, None].expand(-1, 3, -1)
    lowest = margins(grid).amin(0)
    assert best.abs().max() <= 1 and (margins(best) - lowest <= 0.3).all() and (margins(best) >= lowest - 1e-3).all()


@pytest.mark.parametrize("options", [{}, {"classifier_relus": 2, "relu_shrinkage": 0.8}])
def test_staps_over_the_whole_ball_is_taps(options):
    network, batch = network_of(), batch_of()
    program = trace(network)
    staps, taps = STAPS(subselection=1.0, latent_steps=3, **options), TAPS(latent_steps=3, **options)
    batch = attacked(staps, program, batch)
    torch.testing.assert_close(batch.pair[0], batch.x)
    mine, other = staps.loss(program, batch), taps.loss(program, batch)
    torch.testing.assert_close(mine.robust, other.robust)
    parameters = list(network.parameters())
    for gradients in zip(*(torch.autograd.grad(loss.robust, parameters) for loss in (mine, other)), strict=True):
        torch.testing.assert_close(*gradients)
    assert mine.lower is None and staps.ignored().keys() == {"attack_steps", "attack_step"}
    assert (other.lower is None) == ("relu_shrinkage" in options)


def test_the_loss_is_a_product_and_weighs_the_attack_s_gradient():
    """Written out for two layers, in evaluation: points at the latent box's positions, then the classifier."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 9), nn.ReLU(), nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, 10))
    batch, program = batch_of(), trace(network.double())
    method = TAPS(gradient_scale=4.0, connector=1.0, latent_steps=4)
    batch = attacked(method, program, batch)
    low, high = ((batch.x + sign * EPS).clamp(0, 1).flatten(1) for sign in (-1, 1))
    center, radius = (low + high) / 2, (high - low) / 2
    center, radius = F.linear(center, network[1].weight, network[1].bias), F.linear(radius, network[1].weight.abs())
    low, high = torch.relu(center - radius), torch.relu(center + radius)
    positions = batch.pair[1]
    points = (low + high)[:, None] / 2 + positions * (high - low)[:, None] / 2
    margins = (batch.spec * network[3:](points)).sum(2)
    worst = F.cross_entropy(F.pad(-margins, (1, 0)), torch.zeros(12, dtype=torch.long))
    ibp = IBP().loss(program, batch).robust
    losses = method.loss(program, batch)
    assert losses.robust.item() == pytest.approx((worst * ibp).item(), rel=1e-9)
    parameters = list(network.parameters())
    of_worst, of_ibp = (torch.autograd.grad(loss, parameters) for loss in (worst, ibp))
    for mine, a, b in zip(torch.autograd.grad(losses.robust, parameters), of_worst, of_ibp, strict=True):
        torch.testing.assert_close(mine, 4 * ibp * a + worst * b)


@pytest.mark.parametrize("name", ["cnn5", "cerdeq", "resnet9"])
def test_the_classifier_continues_from_the_extractor(name):
    network, x = network_of(name).eval(), batch_of().x
    program = trace(network)
    start = classifier_start(program, 1)
    values = values_of(program, Interval(x, torch.zeros_like(x)), Context(sound=False))
    torch.testing.assert_close(points_of(program, values[start].center, Context(sound=False), start), network(x))


def test_residual_blocks_are_not_divided():
    program = trace(network_of("resnet9"))
    names = [program.steps[classifier_start(program, relus) - 1].name for relus in range(8)]
    assert len(set(names)) < 8 and names == sorted(names, key=[step.name for step in program.steps].index, reverse=True)


def test_a_classifier_with_too_many_relus_is_refused_before_training():
    check_buildable(config_of("taps", classifier_relus=3), [])
    with pytest.raises(
        InputError, match="method_options: classifier_relus: found 4, allowed: so few of the network's 4"
    ):
        check_buildable(config_of("taps", classifier_relus=4), [])


def test_bounds_train_while_eps_grows():
    assert make_method("taps", {}).at(0.99) == IBP() and TAPS().at(1.0) == TAPS()
    assert TAPS(relu_shrinkage=0.8).at(0.5) == SABR(1, subselection=1.0, relu_shrinkage=0.8)
    assert STAPS(subselection=0.4).at(0.5) == SABR(subselection=0.4) and STAPS().at(1.0) == STAPS()


STAPS_OPTIONS = {"method": "staps", "attack_steps": 1, "attack_step": 2.0}


@pytest.mark.parametrize("options", [{"method": "taps"}, pytest.param(STAPS_OPTIONS, marks=pytest.mark.slow)])
def test_training_on_digits_learns_to_certify(tmp_path, options):
    config, rows, digits = config_of(**options, latent_steps=2), [], load("digits")
    data = digits.train.images[:640], digits.train.labels[:640]
    network = train(config, *data, tmp_path, rows.append)
    images, labels = digits.test.images[:200].float() / 255, digits.test.labels[:200]

    def certified(model):
        lower, _ = bound(model.eval().float(), LinfBall(images, 1 / 32), "ibp", margin_spec(labels, 10))
        return (lower > 0).all(1).float().mean()

    untrained = build("cnn5", "digits", width=0.1)
    initialise(untrained)
    assert certified(network) > 0.5 > 0.3 > certified(untrained)
    assert rows[-1]["train/loss"] < rows[-2]["train/loss"]  # after the ramp
