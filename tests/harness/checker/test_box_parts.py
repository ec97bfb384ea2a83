"""Certificates of the search over parts of the input box: confirmed where they are right, refused elsewhere."""

import copy
import itertools
from fractions import Fraction

import numpy as np
import pytest
import torch
from searches import checked, searched
from torch import nn

from cerdeq import Box
from harness.bench.verifier import edge_case
from harness.checker.bounds import boxes
from harness.checker.proofs.box_parts import PART, SPLITS, halves_of, parts_of
from harness.checker.proofs.certificates import MULTIPLIERS, SIGNS, RefusedError
from harness.checker.proofs.certificates import ROW as LEAF_ROW
from harness.checker.proofs.example import CERTIFICATE


@pytest.fixture(scope="module")
def proved():
    """Return a network, a box and the certificate of its parts; the output's exact minimum is just above 0."""
    case = edge_case(6, False, 0, 0.1)
    result, tensors = searched(case.model, case.region, branches=10**4)
    assert result.status == ["certified"]
    return case.model, case.region, {SPLITS: tensors[SPLITS]}


def test_a_proof_by_parts_is_confirmed_and_needs_them(proved):
    model, region, tensors = proved
    assert checked(model, region, tensors).proved_by == CERTIFICATE
    assert checked(model, region).proved_by == ""


def test_an_equilibrium_is_proved_by_parts():
    case = edge_case(6, True, 0, 0.1)
    result, tensors = searched(case.model, case.region, branches=2000)
    assert result.status == ["certified"] and SPLITS in tensors
    assert checked(case.model, case.region, tensors).proved_by == CERTIFICATE


class Largest(nn.Module):
    """The largest of a network's three outputs, made of ReLUs."""

    def __init__(self, network):
        super().__init__()
        self.network, self.relus = network, nn.ModuleList([nn.ReLU(), nn.ReLU()])
        self.same = nn.Linear(1, 1, dtype=torch.float64)
        self.same.load_state_dict({"weight": torch.ones(1, 1), "bias": torch.zeros(1)})

    def forward(self, x):
        values = self.network(x)
        a, b, c = values[:, 0:1], values[:, 1:2], values[:, 2:3]
        a = a + self.relus[0](b - a)
        return self.same(a + self.relus[1](c - a))


@pytest.fixture(scope="module")
def proved_by_weights():
    """Return a network whose output is the largest of three, a box, and the certificate of its parts with slopes.

    The output's minimum over a fine grid is 0.02 before rounding; no single one of the three is positive everywhere.
    """
    generator = torch.Generator().manual_seed(3)
    layers = [nn.Linear(a, b, dtype=torch.float64) for a, b in ((2, 20), (20, 20), (20, 3))]
    for layer in layers:
        layer.weight.data = torch.randn(layer.weight.shape, generator=generator).double() / layer.weight.shape[1] ** 0.5
        layer.bias.data = 0.3 * torch.randn(layer.bias.shape, generator=generator).double()
    model = Largest(nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])).requires_grad_(False).eval()
    ends = torch.linspace(-1, 1, 401, dtype=torch.float64)
    layers[2].bias -= model(torch.cartesian_prod(ends, ends)).amin() - 0.02
    region = Box(torch.zeros(1, 2, dtype=torch.float64), torch.ones(1, 2, dtype=torch.float64))
    assert (model.network(torch.cartesian_prod(ends, ends)).amin(0) < 0).all()
    result, tensors = searched(model, region, branches=10**4)
    assert result.status == ["certified"]
    return model, region, tensors


def test_slopes_of_parts_are_read_and_checked(proved_by_weights):
    model, region, tensors = proved_by_weights
    assert {SPLITS, PART, LEAF_ROW, "relus.0/slopes", "relus.1/slopes"} <= tensors.keys()
    assert checked(model, region, tensors).proved_by == CERTIFICATE
    signs = {f"relus.0/{SIGNS}": np.ones_like(tensors["relus.0/slopes"], np.int8)}
    multipliers = {f"relus.0/{MULTIPLIERS}": np.ones_like(tensors["relus.0/slopes"], np.float32)}
    for wrong, message in [
        ({PART: tensors[PART].astype(np.int64)}, "no tensor part"),
        ({PART: tensors[PART][1:]}, "no tensor part"),
        ({LEAF_ROW: tensors[LEAF_ROW] + np.int16(1)}, "a row that is not"),
        (signs | multipliers, "leaves of parts have signs"),
        ({"hidden/relus.0/row": tensors[LEAF_ROW]}, "names no activation"),
    ]:
        assert message in checked(model, region, tensors | wrong).refused
    without = {name: tensor for name, tensor in tensors.items() if name != PART}
    assert "no tensor part" in checked(model, region, without).refused


def test_no_slopes_prove_what_is_false(proved_by_weights):
    model, region, tensors = proved_by_weights
    shifted, random = copy.deepcopy(model), np.random.default_rng(0)
    shifted.network[-1].bias -= 0.02 + 1e-9
    for _ in range(3):
        changed = {n: random.permutation(t) if n.endswith((PART, "slopes")) else t for n, t in tensors.items()}
        proof = checked(shifted, region, changed)
        assert proof.proved_by == proof.refused == "" and proof.minimum <= 0


def test_no_splits_prove_what_is_false(proved):
    model, region, tensors = proved
    points = region.center + region.radius * (2 * torch.rand(20000, 5, dtype=torch.float64) - 1)
    shifted = copy.deepcopy(model)
    shifted[-1].bias -= model(points).amin() + 1e-6
    random = np.random.default_rng(0)
    for _ in range(3):
        splits = tensors[SPLITS].copy()
        splits[:, 1] = random.integers(0, 5, len(splits))
        proof = checked(shifted, region, {SPLITS: splits})
        assert proof.proved_by == "" and proof.minimum <= 0


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        (np.zeros((3, 2), np.int64), "int64"),
        (np.zeros((2, 3), np.int32), "expected int32"),
        (np.zeros(2, np.int32), "expected int32"),
        (np.zeros((2**20 + 1, 2), np.int32), "up to 1,048,576"),
        (np.array([[0, 0], [0, 1]], np.int32), "no part 0"),
        (np.array([[1, 0]], np.int32), "no part 1"),
        (np.array([[0, 5]], np.int32), "an input 5"),
        (np.array([[0, -1]], np.int32), "an input -1"),
    ],
)
def test_faulty_splits_are_refused(proved, splits, message):
    model, region, _ = proved
    assert message in checked(model, region, {SPLITS: splits}).refused
    with pytest.raises(RefusedError):
        parts_of(boxes.Box(region.center.numpy(), region.radius.numpy()), splits)


def test_parts_that_do_not_fit_into_memory_are_refused():
    """A file of 8 MB would become parts of 13 GB."""
    image = np.zeros((1, 1, 28, 28))
    splits = np.array([[2 * (number // 2), 0] for number in range(2**17)], np.int32)
    with pytest.raises(RefusedError, match="131,072 rows, allowed: up to 85,598 of 784 inputs"):
        parts_of(boxes.Box(image, image), splits)


def contains(parts, point):
    """Return whether a part holds the exact point."""
    ends = ((part.center.ravel().tolist(), part.radius.ravel().tolist()) for _, part in parts)
    return any(all(abs(x - Fraction(c)) <= Fraction(r) for x, c, r in zip(point, *pair, strict=True)) for pair in ends)


def test_parts_cover_the_box_exactly():
    random = np.random.default_rng(1)
    for scale in (1.0, 1e-200, 1e17):
        center = scale * random.normal(size=(1, 3))
        box = boxes.Box(center, scale * np.array([[0.3, 1e-17, 0.0]]))
        splits, alive = [], [0]
        for split in range(40):
            splits.append((alive.pop(random.integers(len(alive))), random.integers(3)))
            alive += [2 * split + 1, 2 * split + 2]
        parts = list(parts_of(box, np.array(splits, np.int32)))
        assert len(parts) == 41
        ends = [
            (Fraction(c) - Fraction(r), Fraction(c) + Fraction(r))
            for c, r in zip(center[0], box.radius[0], strict=True)
        ]
        grid = [[low + share * (high - low) for share in map(Fraction, (0, 0.25, 0.5, 0.75, 1))] for low, high in ends]
        assert all(contains(parts, point) for point in itertools.product(*grid))
        first = parts[0][1]
        halves = [(0, half) for half in halves_of(first, box)]
        assert all(
            contains(
                halves,
                [Fraction(c) + share * Fraction(r) for c, r in zip(first.center[0], first.radius[0], strict=True)],
            )
            for share in (-1, 0, 1)
        )


def test_several_rows_are_proved_together():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)).double().eval()
    model.requires_grad_(False)
    region = Box(torch.zeros(1, 2, dtype=torch.float64), torch.ones(1, 2, dtype=torch.float64))
    points = 2 * torch.rand(50000, 2, dtype=torch.float64) - 1
    values = model(points)
    model[-1].bias += 0.05 * values.std(0) - values.amin(0)
    result, tensors = searched(model, region, torch.eye(2), branches=10**4)
    assert result.status == ["certified"] and SPLITS in tensors
    assert (result.lower[0] <= model(points).amin(0)).all()
    proof = checked(model, region, tensors, np.eye(2))
    assert proof.proved_by == CERTIFICATE and proof.minimum <= float(model(points).amin())
