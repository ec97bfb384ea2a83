"""Projected gradient descent, against brute force and by hand."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import nn

from baselines import build
from cerdeq.equilibrium import use_attack_solvers
from harness.attacks import pgd
from harness.attacks.objectives import margins
from harness.attacks.pgd import random_starts, worst_point
from harness.settings import EvaluationSettings

EPS = Fraction(1, 10)


def attack_points(model, x, labels, eps=EPS, indices=None, seed=0, **settings):
    indices = torch.arange(len(x)) if indices is None else indices
    return worst_point(model, x, labels, eps, EvaluationSettings(**settings), seed, indices)


def small_network(seed, inputs=6, hidden=8, classes=3):
    """Return a network that predicts all classes."""
    torch.manual_seed(seed)
    layers = nn.Flatten(), nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, classes)
    model = nn.Sequential(*layers).double().requires_grad_(False)
    model[3].bias -= model(images(100, inputs)).mean(0)
    return model


def images(count, inputs=6):
    return torch.rand(count, 1, 1, inputs, dtype=torch.float64)


@torch.no_grad()
def predicted(model, x):
    return model(x).argmax(1)


@torch.no_grad()
def margins_at(model, points, labels):
    return margins(model(points), labels)


def test_starts_depend_on_the_seeds_and_each_image_alone():
    shape, indices = torch.Size((1, 4, 4)), torch.tensor([7, 3, 1000])
    starts = random_starts((5, 0, 0), indices, shape)
    assert starts.shape == (3, 1, 4, 4) and starts.min() >= 0 and starts.max() < 1
    for row, index in enumerate(indices):
        assert random_starts((5, 0, 0), index[None], shape).equal(starts[row : row + 1])
    others = [random_starts(seeds, indices, shape) for seeds in [(6, 0, 0), (5, 1, 0), (5, 0, 1)]]
    drawn = torch.cat([starts, *others])
    assert len({tuple(start.flatten().tolist()) for start in drawn}) == len(drawn)


def test_steps_fall_linearly_from_attack_step_times_eps(monkeypatch):
    points = []
    monkeypatch.setattr(pgd, "random_starts", lambda seeds, indices, shape: torch.zeros(1, *shape))
    model = nn.Sequential(nn.Flatten(), nn.Linear(1, 2)).double()
    model[1].weight.data, model[1].bias.data = torch.tensor([[-1.0], [0.0]]).double(), torch.tensor([9.0, 0.0]).double()
    model.register_forward_pre_hook(lambda _, inputs: points.append(inputs[0].item()))
    x, labels = torch.full((1, 1, 1, 1), 0.5).double(), torch.tensor([0])
    attack_points(model, x, labels, attack="margin", attack_steps=4, attack_step=0.25, attack_restarts=1)
    assert points == pytest.approx([0.5, 0.4, 0.425, 0.44375, 0.45625, 0.4625])  # from the lower end, which start 0 is


@pytest.mark.parametrize("attack", ["margin", "all"])
def test_the_attack_does_not_depend_on_batches_and_slices(attack, monkeypatch):
    model, x = small_network(1), images(12)
    labels, settings = predicted(model, x), {"attack": attack, "attack_steps": 5, "attack_restarts": 2}
    expected = attack_points(model, x, labels, **settings)
    backwards = torch.arange(11, -1, -1)
    batches = [attack_points(model, x[rows], labels[rows], indices=rows, **settings) for rows in backwards.split(5)]
    torch.testing.assert_close(torch.cat(batches).flip(0), expected)
    monkeypatch.setattr(pgd, "_PIXELS_AT_ONCE", 2 * x[0, 0].numel())
    torch.testing.assert_close(attack_points(model, x, labels, **settings), expected)


def test_an_equilibrium_is_attacked_alike_in_any_batch():
    model = build("cerdeq", "digits", width=0.1).double().eval()
    x = torch.rand(6, 1, 8, 8, dtype=torch.float64)
    labels = predicted(model, x)
    use_attack_solvers(model)
    settings = {"eps": Fraction(1, 2), "attack_steps": 10, "attack_restarts": 1}  # examples leave at several steps
    first, again = (attack_points(model, x, labels, **settings) for _ in range(2))
    assert first.equal(again)  # earlier attacks leave nothing behind
    last = attack_points(model, x[4:], labels[4:], indices=torch.tensor([4, 5]), **settings)
    torch.testing.assert_close(last, first[4:])


class Counting(nn.Module):
    """A network that counts its examples."""

    def __init__(self, model):
        super().__init__()
        self.model, self.count = model, 0

    def forward(self, x):
        self.count += len(x)
        return self.model(x)


@pytest.mark.parametrize("attack", ["margin", "all"])
@pytest.mark.parametrize("seed", range(2))
def test_leaving_early_loses_no_falsified_example_and_saves_steps(seed, attack, monkeypatch):
    model, x = Counting(small_network(seed)), images(60)
    labels, settings = predicted(model, x), {"attack": attack, "attack_steps": 10, "attack_restarts": 2}
    model.count = 0
    early, early_count = margins_at(model, attack_points(model, x, labels, **settings), labels), model.count
    monkeypatch.setattr(pgd, "_ROUNDING", torch.inf)
    model.count = 0
    full, full_count = margins_at(model, attack_points(model, x, labels, **settings), labels), model.count
    assert 0 < (full < 0).sum() < 60
    assert ((early < 0) == (full < 0)).all()
    torch.testing.assert_close(early[full >= 0], full[full >= 0])
    assert early_count < full_count


def test_a_misclassified_image_is_its_own_counterexample():
    model, x = Counting(small_network(0)), images(4)
    labels = (predicted(model, x) + 1) % 3
    model.count = 0
    assert attack_points(model, x, labels).equal(x)
    assert model.count == 4


def smallest_margin(model, x, label, eps):
    """Return the exact smallest margin over the ball: a linear program for each pattern of units and other class."""
    first, last = model[1], model[3]
    (w, b), (v, c) = ([p.detach().numpy() for p in (layer.weight, layer.bias)] for layer in (first, last))
    ball = [(max(value - eps, 0), min(value + eps, 1)) for value in x.flatten().tolist()]
    smallest = np.inf
    for on in itertools.product([-1, 1], repeat=len(b)):
        signs, live = np.array(on), np.array(on) > 0
        for other in set(range(len(c))) - {label}:
            row = (v[label] - v[other]) * live
            program = linprog(row @ w, A_ub=-signs[:, None] * w, b_ub=signs * b, bounds=ball)
            if program.status == 0:
                smallest = min(smallest, program.fun + row @ b + c[label] - c[other])
    return smallest


@pytest.mark.parametrize("seed", range(4))
def test_the_attack_is_never_beyond_the_exact_minimum_and_often_there(seed):
    model, x = small_network(seed, inputs=3, hidden=4), images(6, inputs=3)
    x[::2] = x[::2].round()  # at the ends of the range of pixels
    labels = predicted(model, x)
    point = attack_points(model, x, labels, attack="all")
    assert ((point - x).abs() <= 0.1 + 1e-12).all() and ((point >= 0) & (point <= 1)).all()
    smallest = margins_at(model, point, labels)
    exact = torch.tensor(
        [smallest_margin(model, image, int(label), 0.1) for image, label in zip(x, labels, strict=True)]
    )
    assert (smallest >= exact - 1e-9).all()
    assert ((smallest < 0) == (exact < 0)).all()
    robust = exact >= 0
    torch.testing.assert_close(smallest[robust], exact[robust], atol=2e-3, rtol=0)
