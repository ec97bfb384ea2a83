"""Projected gradient descent, against brute force and by hand."""

import itertools
from fractions import Fraction

import pytest
import torch
from torch import nn

from harness.attacks import pgd
from harness.attacks.pgd import ascend, last_point, margins, worst_point


def test_a_step_goes_up_by_its_size_and_stays_within_the_ends():
    start, low, high = torch.tensor([[0.5, 0.2, 0.9]]), torch.zeros(1, 3), torch.ones(1, 3)
    slope = torch.tensor([3.0, -0.1, 2.0])
    point, value = ascend(lambda points: points @ slope, start, 0.25, low, high)
    torch.testing.assert_close(point, torch.tensor([[0.75, 0.0, 1.0]]))
    torch.testing.assert_close(value, start @ slope)
    assert not point.requires_grad and not value.requires_grad


def test_the_last_point_is_that_of_as_many_steps():
    start, low, high = torch.zeros(2, 1), torch.full((2, 1), -9.0), torch.full((2, 1), 9.0)
    assert last_point(lambda points: points.sum(1), start, 0.5, 3, low, high).tolist() == [[1.5], [1.5]]


def test_margins_are_the_true_logit_minus_the_best_other():
    logits = torch.tensor([[1.0, 4.0, 2.0], [5.0, 5.0, 1.0]])
    assert margins(logits, torch.tensor([1, 0])).tolist() == [2.0, 0.0]


def test_the_attack_does_not_depend_on_its_slices(monkeypatch):
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    x, labels = torch.rand(5, 1, 2, 3).double(), torch.tensor([0, 1, 2, 0, 1])
    found = []
    for size in (2, 5):
        monkeypatch.setattr(pgd, "_AT_ONCE", {"cpu": size})
        generator = torch.Generator().manual_seed(0)
        found.append(worst_point(model, x, labels, Fraction(1, 10), steps=5, restarts=2, generator=generator))
    torch.testing.assert_close(*found)


def test_the_attack_finds_the_worst_corner_of_a_linear_network():
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 3)).double()
    x, labels, eps = torch.rand(5, 1, 2, 3).double(), torch.tensor([0, 1, 2, 0, 1]), Fraction(1, 10)
    point = worst_point(model, x, labels, eps, steps=20, restarts=2, generator=torch.Generator().manual_seed(0))
    corners = torch.tensor(list(itertools.product([-0.1, 0.1], repeat=6))).double().view(-1, 1, 2, 3)
    for row in range(5):
        inside = (x[row] + corners).clamp(0, 1)
        best = margins(model(inside), labels[row].expand(len(inside))).min()
        assert margins(model(point[row : row + 1]), labels[row : row + 1]).item() == pytest.approx(
            best.item(), abs=1e-6
        )
    assert ((point - x).abs() <= 0.1 + 1e-12).all()
    assert ((point >= 0) & (point <= 1)).all()
