"""Trees of multipliers that prove rows of monotone equilibria: true rows are confirmed, false ones never.

All bounds against exact rational arithmetic, all boxes against equilibria by other iterations.
"""

import re
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from monotone import equilibria, exact_bound, network, random_monotone
from oracles import exact
from torch import nn

from cerdeq import Box as Region
from cerdeq import verify
from cerdeq.bounds import Context, Interval, trace
from cerdeq.bounds.ibp import values_of
from cerdeq.equilibrium import FixedPoint, PeacemanRachford
from harness.checker.bounds import monotone
from harness.checker.bounds.boxes import Box
from harness.checker.bounds.equilibrium import NotProvedError, prove_unique
from harness.checker.bounds.monotone import AffineMap, NotMonotoneError, first_box, multiply, prove
from harness.checker.bounds.network import read_network
from harness.checker.proofs import multipliers
from harness.checker.proofs import tree as trees
from harness.checker.proofs.example import CERTIFICATE, prove_rows

UNITS, INPUTS = 6, 3
SPEC = np.array([[1.0, -1.0], [2.0, -2.0]])  # the first output less the second, twice


def dense(seed, loops=0.0):
    """Return a network of two outputs, and a box of its inputs."""
    rng = np.random.default_rng(seed)
    weight = random_monotone(rng, UNITS, 0.3, UNITS**-0.25) - loops * np.eye(UNITS)
    u, c = rng.normal(size=(UNITS, INPUTS)), rng.normal(size=(2, UNITS))
    return network(weight, u, np.zeros(UNITS), c, np.zeros(2)), Box(np.zeros((1, INPUTS)), np.full((1, INPUTS), 0.7))


def convolution(seed, channels=2, size=3):
    """Return a network whose equilibrium is a strongly monotone convolution, and a box of images [1, size, size]."""
    rng = np.random.default_rng(seed)
    kernel = rng.normal(size=(channels, channels, 3, 3))
    kernel = kernel - kernel.transpose(1, 0, 2, 3)[..., ::-1, ::-1]  # skew-symmetric, zero padding included
    kernel[np.arange(channels), np.arange(channels), 1, 1] = -0.5
    first, last = nn.Conv2d(1, channels, 3, padding=1).double(), nn.Linear(channels * size**2, 2).double()
    for layer in (first, last):
        layer.weight.data = torch.tensor(rng.normal(size=layer.weight.shape))
    layer = FixedPoint(torch.tensor(kernel), PeacemanRachford())
    images = Box(np.full((1, 1, size, size), 0.1), np.full((1, 1, size, size), 0.2))
    return nn.Sequential(first, layer, nn.Flatten(), last).eval(), images


class Beside(nn.Module):
    """The layers of a network; two linear layers, side by side, in place of the first."""

    def __init__(self, model):
        super().__init__()
        self.layers, self.beside = model, nn.Linear(INPUTS, UNITS).double()
        with torch.no_grad():
            model[0].weight -= self.beside.weight
            model[0].bias -= self.beside.bias

    def __getitem__(self, number):
        return self.layers[number]

    def forward(self, x):
        return self.layers[2](self.layers[1](self.layers[0](x) + self.beside(x)))


def branches(seed):
    torch.manual_seed(seed)
    model, x = dense(seed)
    return Beside(model).eval(), x


CASES = {
    "branches": lambda: branches(0),
    "dense": lambda: dense(0),
    "another": lambda: dense(3),
    "boxes cut by images": lambda: dense(0, loops=20.0),
    "convolution": lambda: convolution(0),
}


@pytest.fixture(scope="module", params=CASES)
def proved(request):
    """Return a network that is certified by little, its box and certificate, and the same network made false."""
    (model, x), (false, _) = CASES[request.param](), CASES[request.param]()
    corners = np.sign(np.random.default_rng(9).normal(size=(2000, *x.center.shape[1:])))
    with torch.no_grad():
        false[-1].bias.copy_(model[-1].bias)
        y = model(torch.tensor(x.center + x.radius * corners))
        values = y[:, 0] - y[:, 1]
        false[-1].bias[0] -= values.min() + 0.01
    assert model[1].contraction(model[1].weight).rate >= 1
    model[-1].bias.data[0] -= values.min()
    for _ in range(20):
        model[-1].bias.data[0] += 0.1 * float(values.std())
        region = Region(torch.tensor(x.center), torch.tensor(x.radius))
        result = verify(model, region, torch.tensor(SPEC)[None], seconds=60, certificates=True)
        if result.status == ["certified"]:
            assert result.certificates[0]
            return model, x, {name: tensor.numpy() for name, tensor in result.certificates[0].items()}, false
    raise AssertionError("no shift is certified")


def check(model, x, tensors):
    return prove_rows(read_network(model), x, SPEC, tensors)


def changed(tensors, rng):
    """Return a certificate with something changed at random."""
    tensors = {name: tensor.copy() for name, tensor in tensors.items()}
    name = rng.choice(sorted(tensors))
    tensor, kind = tensors[name], rng.integers(4)
    if kind == 0 and len(tensor):
        tensors[name] = np.delete(tensor, rng.integers(len(tensor)), axis=0)
    elif kind == 1 and tensor.size:
        tensor.ravel()[rng.integers(tensor.size)] = rng.integers(-1, 7)
    elif kind == 2 and tensor.size and tensor.dtype.kind == "f":
        tensor *= tensor.dtype.type(rng.choice([-1, 0.5, 2, 100]))
    elif tensor.size:
        tensors[name] = rng.permutation(tensor.ravel()).reshape(tensor.shape)
    return tensors


def test_a_tree_proves_what_is_true_and_no_change_of_it_what_is_false(proved):
    model, x, tensors, false = proved
    assert check(model, x, tensors).proved_by == CERTIFICATE
    assert check(false, x, tensors).proved_by == ""
    rng = np.random.default_rng(0)
    for _ in range(20):
        forged = tensors
        for _ in range(rng.integers(1, 4)):
            forged = changed(forged, rng)
        assert check(false, x, forged).proved_by == ""


@pytest.mark.parametrize(
    ("field", "change", "why"),
    [
        ("nodes", lambda t: t[:-1], "not its two halves|a row is of no node|^$"),
        ("nodes", lambda t: np.concatenate([t, t[-1:] + np.array([[0, 9, 0, 0]], np.int32)]), "no row|another row"),
        ("nodes", lambda t: t.astype(np.int64), "nodes is int64"),
        ("betas", lambda t: -t - 1, "beta is below 0"),
        ("scales", lambda t: t * np.float32(np.nan), "exact is float64|not finite"),
        ("rows", lambda t: t + np.array([[0, 0, 99, 0]], np.int32), "bounds no unit"),
        ("exact", lambda t: np.ones((len(t) + 1, UNITS)), r"exact is float64 \[\d+, 6\], expected"),
        ("rows", lambda t: np.array(0, np.int32), r"rows is int32 \[\], expected"),
    ],
)
def test_malformed_trees_are_refused(proved, field, change, why):
    model, x, tensors, _ = proved
    forged = tensors | {f"equilibrium/{field}": change(tensors[f"equilibrium/{field}"])}
    result = check(model, x, forged)
    assert result.proved_by == "" and re.search(why, result.refused), result


def test_a_tree_that_would_not_fit_into_memory_is_refused(proved, monkeypatch):
    model, x, tensors, _ = proved
    monkeypatch.setattr(trees, "_MOST_NUMBERS", UNITS)
    assert re.search(r"nodes, allowed: up to \d of \d+ units", check(model, x, tensors).refused)


def tree_of(nodes, units=UNITS, rows=()):
    """Return the tensors of a tree; each row has the multipliers 0, the scale 1 and beta 1."""
    count = len(rows)
    tensors = {
        "nodes": np.array(nodes, np.int32), "rows": np.array(rows, np.int32).reshape(count, 4),
        "multipliers": np.zeros((count, units), np.float16), "scales": np.ones(count, np.float32),
        "betas": np.ones(count, np.float32), "exact": np.zeros((0, units)),
    }  # fmt: skip
    return {f"equilibrium/{name}": tensor for name, tensor in tensors.items()}


def test_half_of_a_split_is_no_proof():
    for nodes in ([[-1, -1, -1, 0], [0, 0, -1, 0]], [[-1, -1, -1, 0], [0, 0, -1, 0], [1, 0, 2, 1], [1, 0, 2, -1]]):
        assert check(*dense(1), tree_of(nodes)).proved_by == ""


def test_values_so_large_that_products_of_weights_may_underflow_are_refused():
    """With 2^-90 in exact arithmetic, the product of the first weights' coefficients is 0 in float64: a false row."""

    def linear(outputs, weight):
        layer = nn.Linear(1, outputs).double()
        layer.weight.data, layer.bias.data = torch.tensor(weight).double().view(-1, 1), torch.zeros(outputs).double()
        return layer

    head = linear(2, [-(2.0**100), 0.0])
    head.bias.data[0] = 1
    equilibrium = FixedPoint(-torch.ones(1, 1).double(), PeacemanRachford())
    stem = (linear(1, [weight]) for weight in [2.0**110] * 9 + [2.0**-120] * 9)
    tree = tree_of([[-1, -1, -1, 0], [0, 0, -1, 0]], 1, [[1, 0, 0, 0]])
    x, model = Box(np.array([[0.6]]), np.array([[0.1]])), nn.Sequential(*stem, equilibrium, head).eval()
    result = prove_rows(read_network(model), x, SPEC[:1], tree)
    assert result.proved_by == "" and "may be above" in result.refused


def test_maps_around_an_equilibrium_count_their_rounding():
    """In exact arithmetic, at points of the box of their arguments."""
    rng, missed = np.random.default_rng(0), 0
    sizes = [(INPUTS, 4), (4, UNITS), (UNITS, 3), (3, 2)]
    layers = [nn.Linear(*pair).double().requires_grad_(False) for pair in sizes]
    weight = torch.tensor(random_monotone(rng, UNITS))
    model = nn.Sequential(*layers[:2], FixedPoint(weight, PeacemanRachford()), *layers[2:]).eval()
    network = read_network(model)
    values = network.boxes(Box(np.zeros((1, INPUTS)), np.ones((1, INPUTS))))
    layer, rows = trees.equilibrium_bounds(network, values, SPEC)
    for computed, (first, second), box, spec in (
        (layer.inject, layers[:2], layer.x, np.eye(UNITS)),
        (rows, layers[2:], layer.z, SPEC),
    ):
        for _ in range(20):
            point = exact(box.center) + exact(rng.uniform(-1, 1, box.center.shape)) * exact(box.radius)
            value = exact(second.weight) @ (exact(first.weight) @ point + exact(first.bias)) + exact(second.bias)
            errors = abs(exact(spec) @ value - exact(computed.matrix) @ point - exact(computed.offset))
            assert (errors <= exact(computed.error)).all()
            missed += (errors > 0).any()
    assert missed


def test_layers_that_are_not_strongly_monotone_are_refused():
    for excess in (0.0, 2.0**-52, 1e-3):
        weight = np.array([[0.5, 0.5 + excess], [0.5, 0.5]])
        with pytest.raises(NotMonotoneError):
            prove(weight)
        with pytest.raises(NotProvedError, match=r"rho\(\|W\|\) < 1 is not proved.*positive definite"):
            prove_unique(weight, weight.shape[:1])
    prove_unique(-3 * np.eye(2), (2,))


def test_a_convolution_is_read_as_its_matrix():
    for channels, shape, kernel in ((2, (2, 3, 4), 3), (3, (3, 2, 2), 5), (1, (1, 3, 3), 1)):
        weight = np.random.default_rng(kernel).normal(size=(channels, channels, kernel, kernel))
        units = np.eye(int(np.prod(shape))).reshape(-1, *shape)
        columns = nn.functional.conv2d(torch.tensor(units), torch.tensor(weight), padding=kernel // 2).flatten(1)
        np.testing.assert_array_equal(monotone.dense(weight, shape), columns.numpy().T)
    with pytest.raises(NotMonotoneError, match="up to 4000 units"):
        monotone.dense(np.zeros((5, 5, 3, 3)), (5, 30, 30))


def test_a_proof_is_none_of_another_w():
    weight = random_monotone(np.random.default_rng(5), UNITS)
    prove(weight)
    weight[0, 0] = 7  # in place
    with pytest.raises(NotMonotoneError):
        prove(weight)
    weight[0, 0] = -7
    assert prove(weight).weight[0, 0] == -7


@pytest.mark.parametrize("seed", range(4))
def test_boxes_contain_equilibria_and_are_as_small_as_cerdeqs(seed):
    rng = np.random.default_rng(seed)
    weight, u, b = random_monotone(rng, UNITS), rng.normal(size=(UNITS, INPUTS)), rng.normal(size=UNITS)
    x = Box(rng.normal(size=INPUTS), rng.uniform(0, 1, size=INPUTS))
    box = first_box(prove(weight), AffineMap(u, b, np.zeros(UNITS)), x)
    h = (x.center + x.radius * np.sign(rng.normal(size=(50, INPUTS)))) @ u.T + b
    z = equilibria(weight, h)
    assert (np.abs(z - box.center) <= box.radius + 1e-11).all()
    points = monotone.equilibrium_boxes(weight, Box(h, np.zeros_like(h)))
    assert (np.abs(z - points.center) <= points.radius + 1e-11).all() and points.radius.max() < 1e-9
    weight -= 4 * np.eye(UNITS)  # so that images help
    h = Box(rng.normal(size=(1, UNITS)), rng.uniform(0, 0.3, size=(1, UNITS)))
    box = monotone.equilibrium_boxes(weight, h)
    z = equilibria(weight, h.center + h.radius * rng.uniform(-1, 1, size=(400, UNITS)))
    assert (np.abs(z - box.center) <= box.radius + 1e-11).all()
    layer = FixedPoint(torch.tensor(weight), PeacemanRachford()).eval()
    region = Interval(torch.tensor(h.center), torch.tensor(h.radius))
    expected = values_of(trace(layer), region, Context(sound=True))[-1]
    assert np.allclose(box.radius, expected.radius.numpy(), rtol=1e-9)


def cases_of_rounding(seed):
    """Yield W, inject, x and arguments of `lower_bounds` in which one kind of rounding decides.

    Of W, of 1 - w, of U, of a sum, of errors of the injection, of underflow.
    """
    rng, n = np.random.default_rng(seed), 3
    zero, one, unit, none = np.zeros(n), np.ones(1), np.eye(n)[:1], np.zeros((1, n))
    still = AffineMap(np.zeros((n, n)), zero, zero), Box(zero, zero)
    a, off = rng.normal(size=(1, n)), rng.normal(size=(n, n)) * (1 - np.eye(n))
    yield off + np.eye(n) * (1 - 2.0**-40), *still, (zero, np.full(n, 1e10), none, a, one, -(a @ off)[0], 0.0)
    loops = rng.uniform(-2, 0.9, size=n)
    w = np.diag(loops)
    yield w, *still, (np.full(n, -1e10), np.full(n, -1e9), unit, unit / (1 - loops), 0 * one, zero, 0.0)
    u, center = rng.normal(size=(n, n)), rng.normal(size=n)
    of_x = (a @ u)[0]
    center = 1e10 * (center - of_x * (of_x @ center) / (of_x @ of_x))
    yield w, AffineMap(u, zero, zero), Box(center, zero), (zero, zero, none, a, 0 * one, zero, 0.0)
    yield w, *still, (zero, zero, none, 0 * a, rng.uniform(0, 2, size=1), zero, rng.normal())
    inject = AffineMap(np.zeros((n, n)), zero, np.abs(rng.normal(size=n)))
    yield w, inject, still[1], (zero, zero, none, a, 0 * one, zero, 0.0)
    tiny, small = np.full((1, n), -(2.0**-600)), 2.0**-600 * (1 - np.eye(n)) + np.eye(n)
    yield small, *still, (zero, np.full(n, 2.0**990), none, tiny, 0 * one, zero, 0.0)


@pytest.mark.parametrize("seed", range(30))
def test_bounds_are_at_most_their_formula_in_exact_arithmetic(seed, monkeypatch):
    everything = Box(np.zeros(3), np.full(3, 1e300))
    monkeypatch.setattr(multipliers, "first_box", lambda *_: everything)
    for weight, inject, x, arguments in cases_of_rounding(seed):
        layer = multipliers.EquilibriumBounds(SimpleNamespace(weight=weight), inject, x, everything)
        result = layer.lower_bounds(*arguments)[0]
        low, high, e, a, betas, row, offset = arguments
        expected = exact_bound(weight, inject, x, low, high, e[0], a[0], betas[0], row, offset)
        assert not np.isfinite(result) or Fraction(float(result)) <= expected


@pytest.mark.parametrize("seed", range(20))
def test_products_of_boxes_contain_all_products(seed):
    a, b = np.random.default_rng(seed).normal(size=(2, 4, 4))
    none = np.zeros((4, 4))
    for ra, rb, size in ((none, none, 1), (0.5 * abs(a), none, 1), (none, 0.5 * abs(b), 1), (none, none, 2.0**-540)):
        box = multiply(Box(a * size, ra), Box(b * size, rb))
        exact_a, exact_b = exact(a * size) + exact(ra), exact(b * size) + exact(rb)
        assert (abs(exact_a @ exact_b - exact(box.center)) <= exact(box.radius)).all()
