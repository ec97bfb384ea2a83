"""Which leaves cover every input, against all signs of units; units whose signs follow from others."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from searches import checked, searched
from torch import nn

from cerdeq.boxes import Box
from cerdeq.branch.parallel import ParallelUnits
from harness.checker.proofs.cover import UnitLines, covers_everything
from harness.checker.proofs.example import CERTIFICATE

TREES = st.recursive(
    st.just(()), lambda sides: st.tuples(st.integers(0, 5), sides, sides), max_leaves=10
)  # unit, where its sign is 1, where it is -1
SIGNS = st.lists(st.lists(st.sampled_from([-1, 0, 1]), min_size=6, max_size=6), max_size=6)
HALVES = [-0.5, 0.5, 1.5, 2.5]  # between and beyond the thresholds


@st.composite
def six_lines(draw):
    groups, directions, thresholds = (
        draw(st.lists(st.sampled_from(values), min_size=6, max_size=6)) for values in ([0, 1, 2], [1, -1], [0, 1, 2])
    )
    return UnitLines(np.array(groups), np.array(directions), np.array(thresholds, float))


def complete(lines, signs):
    """Return signs [L, 6] with those that follow, as the search sees them."""
    order = lines.groups.argsort(kind="stable")
    fields = (np.arange(6), lines.groups, lines.directions.astype(np.int8), lines.thresholds)
    units = ParallelUnits(*(torch.from_numpy(field[order]) for field in fields))
    return units.complete(torch.from_numpy(np.array(signs, np.int8))).numpy()


def leaves_of(tree, lines, signs=(0,) * 6):
    """The leaves [L, 6] of a decision tree; a unit whose sign is known is not split again."""
    if not tree:
        return [signs]
    unit, *sides = tree
    if signs[unit]:
        return leaves_of(sides[0], lines, signs)
    cases = [(*signs[:unit], sign, *signs[unit + 1 :]) for sign in (1, -1)]
    completed = [tuple(complete(lines, [case])[0].tolist()) for case in cases]
    return [leaf for side, case in zip(sides, completed, strict=True) for leaf in leaves_of(side, lines, case)]


def covers(leaves, lines):
    """Return whether every combination of values of the three q, away from thresholds, is in a leaf."""
    points = np.array(list(itertools.product(HALVES, repeat=3)))
    p = lines.directions * (points[:, lines.groups] - lines.thresholds)
    return (p[:, None] * leaves[None] >= 0).all(2).any(1).all()


@given(TREES, six_lines(), st.randoms())
def test_trees_cover_everything_in_any_order_and_no_longer_without_a_leaf(tree, lines, random):
    leaves = np.array(leaves_of(tree, lines))
    random.shuffle(order := list(range(len(leaves))))
    assert covers_everything(leaves[order], lines) and covers(leaves, lines)
    faulty = leaves[order[1:]]
    assert not covers_everything(faulty, lines) and not covers(faulty, lines)


@given(SIGNS, six_lines())
def test_what_covers_everything_does(leaves, lines):
    leaves = np.array(leaves).reshape(-1, 6)
    assert covers(leaves, lines) or not covers_everything(leaves, lines)


class Sum(nn.Module):
    """f(x) + g(x) + 0.01."""

    def __init__(self, f, g):
        super().__init__()
        self.f, self.g, self.last = f, g, nn.Linear(1, 1)
        self.last.weight.data.fill_(1)
        self.last.bias.data.fill_(0.01)

    def forward(self, x):
        return self.last(self.f(x) + self.g(x))


def zero():
    """Return f - f + 0.01, where -f lists its units in another order."""
    torch.manual_seed(0)
    f, g = (nn.Sequential(nn.Linear(9, 6), nn.ReLU(), nn.Linear(6, 1)) for _ in range(2))
    g[0].weight.data, g[0].bias.data = f[0].weight.data.flip(0).clone(), f[0].bias.data.flip(0)
    g[2].weight.data, g[2].bias.data = -f[2].weight.data.flip(1), -f[2].bias.data
    return Sum(f, g).double().eval().requires_grad_(False)


def test_a_network_less_itself_is_decided_by_the_signs_of_one_of_the_two():
    model, ones = zero(), torch.ones(1, 9, dtype=torch.float64)
    region = Box(0 * ones, ones)
    result, tensors = searched(model, region, branches=150)
    assert result.status == ["certified"]
    assert checked(model, region, tensors).proved_by == CERTIFICATE
    model.g[0].bias += 1e-12
    assert "do not cover" in checked(model, region, tensors).refused


@pytest.mark.parametrize("seed", range(3))
def test_certificates_with_opposite_and_shifted_rows_are_confirmed(seed):
    """Of relu(q - t) and relu(t' - q), with t <= t', at most one is above 0."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(9, 8), nn.ReLU(), nn.Linear(8, 1)).double().eval().requires_grad_(False)
    rows = torch.randn(2, 9).double()
    model[0].weight[:] = torch.tensor([1, -1, 1, -1]).repeat(2)[:, None] * rows.repeat_interleave(4, 0)
    model[0].bias[:] = torch.randint(-2, 3, (8,)) / 2
    model[2].weight[:] = -1
    corners = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=9))).double()
    model[2].bias[:] += 0.02 - model(corners).min()  # the model is concave
    ones = torch.ones(1, 9, dtype=torch.float64)
    region = Box(0 * ones, ones)
    result, tensors = searched(model, region, branches=500)
    assert result.status == ["certified"] and 0 < result.lower <= 0.02
    assert checked(model, region, tensors).proved_by == CERTIFICATE
