"""Certificates of hidden layers: boxes beside cerdeq's own and beside points; proofs that need them; faults."""

import itertools
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import nn

from cerdeq import Box, margin_spec, verify
from cerdeq.bounds import Context, Interval, trace, values_of
from cerdeq.branch.hidden_boxes import HiddenBounds
from cerdeq.branch.leaves import SearchQuery
from cerdeq.branch.search import TIMEOUT, Budget, Decision, Problem
from harness.checker.bounds import boxes
from harness.checker.bounds.network import read_network
from harness.checker.bounds.regions import interval_region, tight_region
from harness.checker.proofs.example import CERTIFICATE, prove, read_hidden

SIZES, RADIUS = (4, 8, 8, 8, 3), 0.5


def chain(seed):
    """Return a network, inputs of its ReLUs 1, 3 and 5, and the centre of its box."""
    torch.manual_seed(seed)
    layers = [nn.Flatten()]
    for inputs, outputs in itertools.pairwise(SIZES):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    model = nn.Sequential(*layers[:-1]).double().eval().requires_grad_(False)
    return model, torch.rand(1, 1, 2, 2, dtype=torch.float64)


def checked(x):
    return boxes.Box(x.numpy(), np.full(x.shape, RADIUS))


def region_with_hidden(network, images, tensors):
    """Return boxes that a certificate's hidden layers tighten."""
    return tight_region(network, images, read_hidden(network, interval_region(network, images), tensors))


def hidden_bounds(model, x, leaves_each):
    """Return cerdeq's values over tightened boxes, and the tensors of the certificate."""
    box = Interval(x, torch.full_like(x, RADIUS))
    program = trace(model, linear=True)
    query = SearchQuery(program, values_of(program, box, Context(sound=True)), torch.eye(3).double())
    hidden = HiddenBounds(Problem(query, query, torch.full((3,), -torch.inf).double(), memory=2**28))
    for count in (1, leaves_each):
        tight = hidden.tighten(count, Budget()).exact
    return tight.values, {name: tensor.numpy() for name, tensor in hidden.certificate().items()}


@pytest.mark.parametrize("seed", range(3))
def test_the_checker_proves_cerdeqs_boxes(seed):
    model, x = chain(seed)
    values, tensors = hidden_bounds(model, x, 8)
    network = read_network(model)
    region, plain = region_with_hidden(network, checked(x), tensors), tight_region(network, checked(x))
    assert {name.split("/")[1] for name in tensors} == {"4", "6"}, "the first layer's box is exact"
    for number in (4, 6):
        box, proved = region.values[number], values[number].box
        assert (box.lower >= proved.lower.numpy() - 1e-9).all() and (box.upper <= proved.upper.numpy() + 1e-9).all()
        assert box.radius.mean() < plain.values[number].radius.mean()


@pytest.mark.parametrize("seed", range(3))
def test_boxes_contain_points_whatever_the_leaves_choose(seed):
    model, x = chain(seed)
    values, tensors = hidden_bounds(model, x, 8)
    random = np.random.default_rng(seed)
    for name, tensor in tensors.items():
        if name.endswith("/slopes"):
            tensors[name] = random.integers(0, 256, tensor.shape, dtype=np.uint8)
        if name.endswith("/multipliers"):
            tensors[name] = tensor + random.exponential(size=tensor.shape).astype(np.float32)
    region = region_with_hidden(read_network(model), checked(x), tensors)
    points = x + RADIUS * (2 * torch.rand(4000, 1, 2, 2, dtype=torch.float64) - 1)
    for number in range(2, len(model)):
        exact = model[:number](points).numpy()
        for box in (region.values[number], values[number].box):
            assert (exact >= np.asarray(box.lower) - 1e-9).all() and (exact <= np.asarray(box.upper) + 1e-9).all()


@pytest.fixture(scope="module")
def proved():
    """Return a network, an image's box, its label and the tensors of a proof by hidden layers."""
    for seed in range(20):
        model, x = chain(seed)
        points = x + RADIUS * (2 * torch.rand(20000, 1, 2, 2, dtype=torch.float64) - 1)
        spec = margin_spec(torch.tensor([1]), 3).double()
        model[-1].bias[1] += 0.05 * float(model(points).std()) - (model(points) @ spec[0].T).amin()
        region = Box(x, torch.full_like(x, RADIUS))
        at_once = patch.multiple("cerdeq.branch.schedule", _FIRST_TURN=1e-3, _FEWEST_LEAVES=1)  # hidden layers
        timeout = Decision(TIMEOUT, torch.full((2,), -torch.inf).double())
        stopped = patch("cerdeq.branch.schedule._ProgramTurns.run", return_value=timeout)
        with at_once, stopped:
            result = verify(model, region, spec, seconds=60, certificates=True)
        tensors = {name: tensor.numpy() for name, tensor in result.certificates[0].items()}
        if result.status == ["certified"] and any(name.startswith("hidden/") for name in tensors):
            return read_network(model), checked(x), 1, tensors
    raise AssertionError("no network needed hidden layers")


def test_a_proof_by_hidden_layers_is_confirmed_and_needs_them(proved):
    network, images, label, tensors = proved
    assert prove(network, images, label, tensors).proved_by == CERTIFICATE
    without = {name: tensor for name, tensor in tensors.items() if not name.startswith("hidden/")}
    assert prove(network, images, label, without).proved_by == ""


def test_faulty_hidden_layers_are_refused(proved):
    network, images, label, tensors = proved
    row = tensors["hidden/6/row"]
    faults = {
        "int32": {"hidden/6/row": row.astype(np.int16)},
        " in 0 to 15": {"hidden/6/row": np.full_like(row, 16)},
        "names no activation": {"hidden/5/row": row},
        "no activation of the network": {"hidden/4/6/signs": np.zeros((1, 1), np.int8)},
        "another shape": {"hidden/6/2/slopes": tensors["hidden/6/2/slopes"][:-1]},
    }
    split = int(np.flatnonzero(np.bincount(row)[row] > 1)[0])  # a leaf with others beside it
    faults["do not cover"] = {
        name: np.delete(tensor, split, 0)
        for name, tensor in tensors.items()
        if name.startswith("hidden/6/") and not name.endswith("neurons")
    }
    for message, change in faults.items():
        proof = prove(network, images, label, tensors | change)
        assert proof.proved_by == "" and message in proof.refused, message


def test_certificates_of_a_kind_that_is_gone_are_refused(proved):
    """Splits of the input box, of searches up to December 2026."""
    network, images, label, _ = proved
    proof = prove(network, images, label, {"splits": np.zeros((1, 2), np.int32)})
    assert proof.proved_by == "" and proof.refused == "it has no tensor of rows, int16 [L]"
