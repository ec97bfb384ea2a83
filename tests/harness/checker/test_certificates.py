"""Leaves and certificates of small networks against exact minima of every pattern of ReLUs; faulty certificates."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pattern_minima import at_point, full_certificate, minimum_at_pattern, patterns
from safetensors.numpy import save_file
from torch import nn

import cerdeq
from cerdeq import verify
from cerdeq.equilibrium import Equilibrium, FixedPoint, fold
from harness.checker.bounds import regions
from harness.checker.bounds.boxes import Box, ball
from harness.checker.bounds.linear import lower_bounds
from harness.checker.bounds.network import read_network
from harness.checker.bounds.regions import interval_region, tight_region
from harness.checker.bounds.relu_lines import Leaves
from harness.checker.proofs.certificates import read_tensors, split_by_example
from harness.checker.proofs.example import CERTIFICATE, LINEAR, prove, prove_rows

BOX, LABEL, OTHERS = ball(np.array([[[[100.0, 30.0, 200.0]]]]), 0.2), 1, [0, 2]
SHAPE = BOX.center.shape[1:]


def recurrence(rho, *shape):
    weight = torch.randn(*shape).double()
    matrix = weight.abs().reshape(*shape[:2], -1).sum(2)
    return FixedPoint(weight * rho / torch.linalg.eigvals(matrix).abs().max())


def linear(inputs, outputs):
    return nn.Linear(inputs, outputs)


NETWORKS = {
    "explicit": lambda: [nn.Flatten(), linear(3, 3), nn.ReLU(), linear(3, 3), nn.ReLU(), linear(3, 3)],
    "equilibrium": lambda: [nn.Flatten(), linear(3, 5), recurrence(0.5, 5, 5), linear(5, 3)],
    "equilibrium of rho .97": lambda: [nn.Flatten(), linear(3, 5), recurrence(0.97, 5, 5), linear(5, 3)],
    "two equilibria": lambda: [
        nn.Flatten(), linear(3, 3), recurrence(0.9, 3, 3), linear(3, 3), recurrence(0.5, 3, 3), linear(3, 3)
    ],
    "convolutional equilibrium": lambda: [
        nn.Conv2d(1, 2, 3, padding=1), recurrence(0.8, 2, 2, 3, 3), nn.Flatten(), linear(6, 3)
    ],
}  # fmt: skip
every = pytest.mark.parametrize("name", NETWORKS)


def small(name):
    """Return a network whose pre-activations are near 0 at the ball's centre."""
    model = nn.Sequential(*NETWORKS[name]()).double().eval().requires_grad_(False)
    x = torch.from_numpy(BOX.center)
    for layer in model:
        if isinstance(layer, nn.Linear | nn.Conv2d):
            layer.weight *= 2
            mean = layer(x).mean((2, 3)) if x.dim() == 4 else layer(x)
            layer.bias -= mean[0] - 0.1 * torch.rand_like(layer.bias)
        x = layer(x)
    return model


def spec_of(other):
    spec = np.zeros(3)
    spec[LABEL], spec[other] = 1, -1
    return spec


def set_margins(model, smallest):
    """Shift the biases so that the smallest margin over the box against every class is `smallest`."""
    for other in OTHERS:
        minimum = min(minimum_at_pattern(model, BOX, spec_of(other), signs)[0] for signs in patterns(model, SHAPE))
        model[-1].bias[other] -= smallest - minimum


def leaf(signs, multipliers, slopes=0.3, line_shares=1.0):
    """Return one leaf at an activation."""
    ones = np.ones((1, *signs.shape))
    return Leaves(slopes * ones, signs[None].astype(float), multipliers[None], line_shares * ones)


def shapes(region, network):
    return {step.name: box.center.shape[1:] for step, box in zip(network.steps, region.values[1:], strict=False)}


@every
def test_leaves_of_known_signs_reach_their_exact_minima(name):
    """No lower than the float32 of multipliers costs; the smallest of all leaves is the exact minimum."""
    model = small(name)
    network, spec = read_network(model), spec_of(0)
    region = interval_region(network, BOX)
    shape_of = shapes(region, network)
    exact, bounds = [], []
    for signs in patterns(model, SHAPE):
        value, multipliers = minimum_at_pattern(model, BOX, spec, signs)
        leaves = {n: leaf(s.reshape(shape_of[n]), multipliers[n].reshape(shape_of[n])) for n, s in signs.items()}
        exact.append(value)
        bounds.append(lower_bounds(network, region, {len(network.steps): spec[None]}, leaves)[0])
    exact, bounds = np.array(exact), np.array(bounds)
    feasible = np.isfinite(exact)
    assert feasible.sum() > 4 and (bounds[feasible] <= exact[feasible] + 1e-7).all()
    np.testing.assert_allclose(bounds[feasible], exact[feasible], atol=2e-5)
    assert (bounds[~feasible] > exact[feasible].min()).all(), "bounds of empty leaves have no limit"


@every
@settings(max_examples=15)
@given(data=st.data(), seed=st.integers(0, 10**6))
def test_any_choices_of_leaves_are_sound(name, data, seed):
    """Slopes beyond [0, 1] are clamped; signs are those of a point, or none."""
    torch.manual_seed(seed % 7)
    random, model = np.random.default_rng(seed), small(name)
    network = read_network(model)
    region = data.draw(st.sampled_from([interval_region, tight_region]))(network, BOX)
    shape_of, leaves = shapes(region, network), {}
    corner = random.choice([-1, 1, 0.3], size=(1, *SHAPE))
    x = BOX.center + BOX.radius * corner
    before, output = at_point(model, x)
    for step, p in before.items():
        shape = (1, *shape_of[step])
        split = np.sign(np.where(np.abs(p) > 1e-9, p, 0)).reshape(shape) * random.choice([0, 1], size=shape)
        multipliers = random.exponential(data.draw(st.sampled_from([0, 0.1, 10])), size=shape)
        leaves[step] = Leaves(random.uniform(-0.5, 1.5, shape), split, multipliers, random.uniform(0.9, 1, shape))
    spec = random.normal(size=(1, 3))
    bound = lower_bounds(network, region, {len(network.steps): spec}, leaves)
    assert np.isfinite(bound[0]) and bound[0] <= spec[0] @ output + 1e-9


@every
def test_certificates_prove_what_is_true_and_nothing_else(name):
    model = small(name)
    set_margins(model, 0.02)
    assert prove(read_network(model), BOX, LABEL).proved_by == "", "the test needs a case for a certificate"
    tensors = full_certificate(model, BOX, {row: spec_of(other) for row, other in enumerate(OTHERS)})
    assert prove(read_network(model), BOX, LABEL, tensors).proved_by == CERTIFICATE
    model[-1].bias[2] += 0.03
    proof = prove(read_network(model), BOX, LABEL, tensors)
    assert proof.proved_by == "" and proof.minimum < -0.005 and not proof.refused


@pytest.fixture(scope="module")
def proved():
    """Return a network whose smallest margins are 1e-4, and the tensors that prove them."""
    torch.manual_seed(0)
    model = small("equilibrium")
    set_margins(model, 1e-4)
    return model, full_certificate(model, BOX, {row: spec_of(other) for row, other in enumerate(OTHERS)})


def change_tensor(name, change):
    def fault(tensors):
        tensors[name] = change(tensors[name])

    return fault


def set_at(value, *position):
    def change(tensor):
        tensor[position] = value
        return tensor

    return change


def without_leaf(tensors):
    remaining = np.arange(len(tensors["row"])) != 5
    for name, tensor in tensors.items():
        if len(tensor) == len(remaining):
            tensors[name] = tensor[remaining]


FAULTS = {
    "a leaf missing": (without_leaf, "do not cover"),
    "a sign turned": (change_tensor("2/signs", lambda signs: set_at(-signs[3, 2], 3, 2)(signs)), "do not cover"),
    "a sign left out": (change_tensor("2/signs", set_at(0, 3, 2)), "do not cover"),
    "a sign of 2": (change_tensor("2/signs", set_at(2, 3, 2)), "a sign is not"),
    "a leaf moved to another row": (change_tensor("row", set_at(1, 3)), "do not cover"),
    "a row too many": (change_tensor("row", set_at(2, 3)), " in 0 to"),
    "a row below 0": (change_tensor("row", set_at(-1, 3)), " in 0 to"),
    "a negative multiplier": (change_tensor("2/multipliers", set_at(-1e-9, 3, 2)), "multiplier"),
    "an infinite multiplier": (change_tensor("2/multipliers", set_at(np.inf, 3, 2)), "multiplier"),
    "a neuron twice": (change_tensor("2/neurons", set_at(0, 1)), "twice"),
    "a neuron too many": (change_tensor("2/neurons", set_at(5, 1)), " in 0 to"),
    "a neuron below 0": (change_tensor("2/neurons", set_at(-1, 1)), " in 0 to"),
    "another type": (change_tensor("2/multipliers", lambda m: m.astype(np.float64)), "expected float32"),
    "another shape": (change_tensor("2/slopes", lambda s: s[:, :4]), "another shape"),
    "no rows": (lambda tensors: tensors.clear(), "rows"),
    "no signs": (lambda tensors: tensors.pop("2/signs"), "missing"),
    "a step that is none": (lambda tensors: tensors.update({"3/signs": tensors["2/signs"]}), "no activation"),
    "fewer line shares": (lambda tensors: tensors.update({"2/line_shares": tensors["2/slopes"][:1]}), "another shape"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faulty_certificates_are_refused(proved, fault):
    model, tensors = proved
    change, message = FAULTS[fault]
    faulty = {name: tensor.copy() for name, tensor in tensors.items()}
    change(faulty)
    proof = prove(read_network(model), BOX, LABEL, faulty)
    assert proof.proved_by == "" and message in proof.refused


def test_every_leaf_counts_where_few_are_bounded_at_a_time(proved, monkeypatch):
    """The leaf in which the row is not positive comes first in one of both orders at most."""
    model, tensors = proved
    monkeypatch.setattr(regions, "rows_at_once", lambda region: 1)
    for order in (tensors, {name: t if name == "2/neurons" else t[::-1] for name, t in tensors.items()}):
        assert prove(read_network(model), BOX, LABEL, order).proved_by == CERTIFICATE
        model[-1].bias[OTHERS[0]] += 2e-4
        assert prove(read_network(model), BOX, LABEL, order).proved_by == ""
        model[-1].bias[OTHERS[0]] -= 2e-4


def test_a_row_without_leaves_needs_a_proof_of_its_own(proved):
    model, tensors = proved
    first = tensors["row"] == 0
    part = {name: t if name == "2/neurons" else t[first] for name, t in tensors.items()}
    assert prove(read_network(model), BOX, LABEL, part).proved_by == ""
    model[-1].bias[2] -= 10
    assert prove(read_network(model), BOX, LABEL, part).proved_by == CERTIFICATE
    model[-1].bias[2] += 10


def test_files_are_read_by_example(tmp_path):
    path, rows = tmp_path / "certificates.safetensors", np.zeros(2, dtype=np.int16)
    assert split_by_example(read_tensors(path)) == {}
    save_file({"3/row": rows, "12/block.relu/signs": rows}, path)
    examples = split_by_example(read_tensors(path))
    assert {index: list(tensors) for index, tensors in examples.items()} == {"3": ["row"], "12": ["block.relu/signs"]}


def test_what_a_search_proves_of_an_equilibrium_without_splits_is_confirmed():
    """Smaller boxes of pre-activations choose other lines, which do not prove it."""
    torch.manual_seed(324)
    model = nn.Sequential(Equilibrium(8, nn.Linear(4, 8), None, margin=0.1, gain=None), nn.Linear(8, 1)).double().eval()
    x, radius = torch.rand(1, 4).double(), torch.full((1, 4), 0.3).double()
    fold(model.requires_grad_(False))
    network, box = read_network(model), Box(x.numpy(), radius.numpy())
    result = verify(model, cerdeq.Box(x, radius), torch.ones(1, 1, 1).double(), 10.0, certificates=True)
    assert result.status == ["certified"] and not result.certificates[0]
    one, region = np.eye(1), tight_region(network, box)
    assert not lower_bounds(network, region, {len(network.steps): one}, {}) > 0
    assert prove_rows(network, box, one).proved_by == LINEAR
    model[-1].bias -= result.lower[0, 0] + 0.02  # more than the bound
    steps = torch.linspace(-1, 1, 7).double()
    assert model(x + radius * torch.cartesian_prod(*[steps] * 4)).min() < 0
    assert prove_rows(read_network(model), box, one).proved_by == ""
