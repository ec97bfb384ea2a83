"""Trees of multipliers that prove rows of monotone equilibria: the truth is confirmed, lies are not, errors count."""

import inspect
import re
import sys
from fractions import Fraction
from types import ModuleType

import numpy as np
import pytest
import torch
from test_rounding_terms import exact
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
from harness.checker.proofs.example import prove_rows

UNITS, INPUTS = 6, 3


def random_weight(rng, units=UNITS, modulus=0.3):
    a, b = rng.normal(size=(2, units, units))
    return (1 - modulus) * np.eye(units) - a.T @ a / units + b - b.T


def network(rng, shift=0.0, loops=0.0):
    """Return a module of two outputs, the first less the second raised by `shift`."""
    first, last = nn.Linear(INPUTS, UNITS).double(), nn.Linear(UNITS, 2).double()
    with torch.no_grad():
        first.weight.copy_(torch.tensor(rng.normal(size=(UNITS, INPUTS))))
        last.weight.copy_(torch.tensor(rng.normal(size=(2, UNITS))))
        first.bias.zero_()
        last.bias.copy_(torch.tensor([shift, 0.0]))
    layer = FixedPoint(torch.tensor(random_weight(rng) - loops * np.eye(UNITS)), PeacemanRachford())
    return nn.Sequential(first, layer, last).eval()


SPEC = np.array([[1.0, -1.0], [2.0, -2.0]])


def region():
    return Box(np.zeros((1, INPUTS)), np.full((1, INPUTS), 0.7))


def lowest(model):
    """Return the lowest first row at many points of the region, most of them corners."""
    x = np.random.default_rng(9).uniform(-1, 1, size=(2000, INPUTS))
    x[:1500] = np.sign(x[:1500])
    with torch.no_grad():
        y = model(torch.tensor(0.7 * x)).numpy()
    return float((y[:, 0] - y[:, 1]).min())


@pytest.fixture(scope="module", params=[(0, 0.0), (2, 0.0), (0, 20.0)], ids=str)
def proved(request):
    """A module that is certified by little, its certificate, and the same module made false by little.

    With loops the search begins with boxes that their images cut.
    """
    seed, loops = request.param
    model, false = (network(np.random.default_rng(seed), loops=loops) for _ in range(2))
    low, x, spec = lowest(model), region(), torch.tensor(SPEC)[None]
    assert model[1].contraction(model[1].weight).rate >= 1
    with torch.no_grad():
        false[2].bias[0] -= low + 0.01
        model[2].bias[0] -= low
    step = 0.05 / (1 + loops)
    box = Region(torch.tensor(x.center), torch.tensor(x.radius))
    for _ in range(8):
        with torch.no_grad():
            model[2].bias[0] += step
        result = verify(model, box, spec, seconds=60, certificates=True)
        if result.status == ["certified"]:
            assert result.certificates[0]
            return model, {name: tensor.numpy() for name, tensor in result.certificates[0].items()}, false
    raise AssertionError("no shift is certified")


def check(model, tensors):
    return prove_rows(read_network(model), region(), SPEC, tensors)


def test_an_honest_tree_is_confirmed(proved):
    model, tensors, false = proved
    assert check(model, tensors).proved_by == "certificate"
    assert check(false, tensors).proved_by == ""


def changed(tensors, rng):
    """Return a certificate with something changed at random."""
    tensors = {name: tensor.copy() for name, tensor in tensors.items()}
    name = rng.choice(sorted(tensors))
    tensor = tensors[name]
    kind = rng.integers(4)
    if kind == 0 and len(tensor):
        tensors[name] = np.delete(tensor, rng.integers(len(tensor)), axis=0)
    elif kind == 1 and tensor.size:
        tensor.ravel()[rng.integers(tensor.size)] = rng.integers(-1, 7)
    elif kind == 2 and tensor.size and tensor.dtype.kind == "f":
        tensor *= tensor.dtype.type(rng.choice([-1, 0.5, 2, 100]))
    elif tensor.size:
        tensors[name] = rng.permutation(tensor.ravel()).reshape(tensor.shape)
    return tensors


def test_no_forgery_proves_what_is_false(proved):
    _, tensors, false = proved
    rng = np.random.default_rng(0)
    for _ in range(25):
        forged = tensors
        for _ in range(rng.integers(1, 4)):
            forged = changed(forged, rng)
        assert check(false, forged).proved_by == ""


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
    model, tensors, _ = proved
    forged = tensors | {f"equilibrium/{field}": change(tensors[f"equilibrium/{field}"])}
    found = check(model, forged)
    assert found.proved_by == "" and re.search(why, found.refused), found


def test_a_tree_that_would_not_fit_into_memory_is_refused(proved, monkeypatch):
    model, tensors, _ = proved
    monkeypatch.setattr(trees, "_MOST_NUMBERS", UNITS)
    assert re.search(f"nodes, allowed: up to 1 of {UNITS} units", check(model, tensors).refused)


def test_half_of_a_split_is_no_proof():
    rng = np.random.default_rng(1)
    model = network(rng)
    none = {name: np.zeros((0, *shape), kind) for name, shape, kind in (
        ("rows", (4,), np.int32), ("multipliers", (UNITS,), np.float16), ("scales", (), np.float32),
        ("betas", (), np.float32), ("exact", (UNITS,), np.float64),
    )}  # fmt: skip
    for nodes in ([[-1, -1, -1, 0], [0, 0, -1, 0]], [[-1, -1, -1, 0], [0, 0, -1, 0], [1, 0, 2, 1], [1, 0, 2, -1]]):
        tree = {"nodes": np.array(nodes, np.int32), **none}
        assert check(model, {f"equilibrium/{name}": tensor for name, tensor in tree.items()}).proved_by == ""


def test_values_so_large_that_products_of_weights_may_underflow_are_refused():
    """With 2^-90 in exact arithmetic, the product of the first weights' coefficients is 0 in float64: a false row."""

    def linear(outputs, weight):
        layer = nn.Linear(1, outputs).double()
        layer.weight.data, layer.bias.data = torch.tensor(weight).double().view(-1, 1), torch.zeros(outputs).double()
        return layer

    head = linear(2, [-(2.0**100), 0.0])
    head.bias.data[0] = 1
    equilibrium = FixedPoint(-torch.ones(1, 1).double(), PeacemanRachford())
    model = nn.Sequential(
        *(linear(1, [weight]) for weight in [2.0**110] * 9 + [2.0**-120] * 9), equilibrium, head
    ).eval()
    tree = {
        "nodes": np.array([[-1, -1, -1, 0], [0, 0, -1, 0]], np.int32), "rows": np.array([[1, 0, 0, 0]], np.int32),
        "multipliers": np.zeros((1, 1), np.float16), "scales": np.ones(1, np.float32), "betas": np.ones(1, np.float32),
        "exact": np.zeros((0, 1)),
    }  # fmt: skip
    x = Box(np.array([[0.6]]), np.array([[0.1]]))
    found = prove_rows(
        read_network(model), x, SPEC[:1], {f"equilibrium/{name}": tensor for name, tensor in tree.items()}
    )
    assert found.proved_by == "" and "may be above" in found.refused


def test_layers_that_are_not_strongly_monotone_are_refused():
    for excess in (0.0, 2.0**-52, 1e-3):
        weight = np.array([[0.5, 0.5 + excess], [0.5, 0.5]])
        with pytest.raises(NotMonotoneError):
            prove(weight)
        with pytest.raises(NotProvedError, match=r"rho\(\|W\|\) < 1 is not proved.*positive definite"):
            prove_unique(weight, weight.shape[:1])
    prove_unique(-3 * np.eye(2), (2,))


def convolution(rng, channels=2, size=3, shift=0.0):
    """Return a module whose equilibrium is a strongly monotone convolution on images [1, size, size]."""
    kernel = rng.normal(size=(channels, channels, 3, 3))
    kernel = kernel - kernel.transpose(1, 0, 2, 3)[..., ::-1, ::-1]  # skew-symmetric, zero padding included
    kernel[np.arange(channels), np.arange(channels), 1, 1] = -0.5
    first = nn.Conv2d(1, channels, 3, padding=1).double()
    last = nn.Linear(channels * size**2, 2).double()
    with torch.no_grad():
        first.weight.copy_(torch.tensor(rng.normal(size=first.weight.shape)))
        last.weight.copy_(torch.tensor(rng.normal(size=last.weight.shape)))
        last.bias.copy_(torch.tensor([shift, 0.0]))
    layer = FixedPoint(torch.tensor(kernel), PeacemanRachford())
    return nn.Sequential(first, layer, nn.Flatten(), last).eval()


def test_a_convolution_is_read_as_its_matrix():
    for channels, shape, kernel in ((2, (2, 3, 4), 3), (3, (3, 2, 2), 5), (1, (1, 3, 3), 1)):
        weight = np.random.default_rng(kernel).normal(size=(channels, channels, kernel, kernel))
        units = np.eye(int(np.prod(shape))).reshape(-1, *shape)
        columns = nn.functional.conv2d(torch.tensor(units), torch.tensor(weight), padding=kernel // 2).flatten(1)
        np.testing.assert_array_equal(monotone.dense(weight, shape), columns.numpy().T)
    with pytest.raises(NotMonotoneError, match="up to 4000 units"):
        monotone.dense(np.zeros((5, 5, 3, 3)), (5, 30, 30))


def test_trees_of_a_convolution_are_confirmed_and_lies_are_not():
    model, false = (convolution(np.random.default_rng(0)) for _ in range(2))
    images = Box(np.full((1, 1, 3, 3), 0.1), np.full((1, 1, 3, 3), 0.2))
    x = images.center + images.radius * np.sign(np.random.default_rng(9).normal(size=(1000, 1, 3, 3)))
    with torch.no_grad():
        y = model(torch.tensor(x)).numpy()
        low = float((y[:, 0] - y[:, 1]).min())
        model[3].bias[0] += 0.8 - low
        false[3].bias[0] -= low + 0.01
    assert model[1].contraction(model[1].weight).rate >= 1
    region, spec = Region(torch.tensor(images.center), torch.tensor(images.radius)), torch.tensor(SPEC)[None]
    result = verify(model, region, spec, seconds=100, certificates=True)
    assert result.status == ["certified"] and result.certificates[0]
    tensors = {name: tensor.numpy() for name, tensor in result.certificates[0].items()}
    assert prove_rows(read_network(model), images, SPEC, tensors).proved_by == "certificate"
    rng = np.random.default_rng(0)
    for number in range(10):
        forged = changed(tensors, rng) if number else tensors
        assert prove_rows(read_network(false), images, SPEC, forged).proved_by == ""


def test_a_proof_is_repeated_only_when_w_changes(monkeypatch):
    weight, count, cholesky = random_weight(np.random.default_rng(5)), 0, np.linalg.cholesky

    def counted(matrix):
        nonlocal count
        count += 1
        return cholesky(matrix)

    monkeypatch.setattr(np.linalg, "cholesky", counted)
    first = prove(weight)
    assert prove(weight.copy()) is first and count == 1
    weight[0, 0] = 7  # in place: the old proof is none of this W
    with pytest.raises(NotMonotoneError):
        prove(weight)
    weight[0, 0] = -7
    assert prove(weight).weight[0, 0] == -7 and count == 3


@pytest.mark.parametrize("seed", range(4))
def test_first_boxes_contain_equilibria(seed):
    rng = np.random.default_rng(seed)
    weight, u, b = random_weight(rng), rng.normal(size=(UNITS, INPUTS)), rng.normal(size=UNITS)
    x = Box(rng.normal(size=INPUTS), rng.uniform(0, 1, size=INPUTS))
    box = first_box(prove(weight), AffineMap(u, b, np.zeros(UNITS)), x)
    h = (x.center + x.radius * np.sign(rng.normal(size=(50, INPUTS)))) @ u.T + b
    z = monotone._solve(weight, h)[0]
    assert (np.abs(z - box.center) <= box.radius + 1e-12).all()
    points = monotone.equilibrium_boxes(weight, Box(h, np.zeros_like(h)))
    assert (np.abs(z - points.center) <= points.radius).all() and points.radius.max() < 1e-9


def test_a_tree_begins_with_the_box_that_images_have_cut():
    rng = np.random.default_rng(0)
    proof, u = prove(random_weight(rng)), rng.normal(size=(UNITS, INPUTS))
    inject, x = AffineMap(u, np.zeros(UNITS), np.zeros(UNITS)), Box(np.zeros(INPUTS), np.ones(INPUTS))
    first = first_box(proof, inject, x)
    cut = Box(first.center, first.radius / 2)
    assert np.allclose(multipliers.EquilibriumBounds(proof, inject, x, cut).z.radius, cut.radius)


@pytest.mark.parametrize("seed", range(4))
def test_boxes_cut_by_images_contain_equilibria_and_are_as_small_as_cerdeqs(seed):
    rng = np.random.default_rng(seed)
    weight = random_weight(rng) - 4 * np.eye(UNITS)  # so that images help
    h = Box(rng.normal(size=(1, UNITS)), rng.uniform(0, 0.3, size=(1, UNITS)))
    box = monotone.equilibrium_boxes(weight, h)
    z = monotone._solve(weight, h.center + h.radius * rng.uniform(-1, 1, size=(400, UNITS)))[0]
    assert (np.abs(z - box.center) <= box.radius + 1e-12).all()
    layer = FixedPoint(torch.tensor(weight), PeacemanRachford()).eval()
    region = Interval(torch.tensor(h.center), torch.tensor(h.radius))
    other = values_of(trace(layer), region, Context(sound=True))[-1]
    assert np.allclose(box.radius, other.radius.numpy(), rtol=1e-9)


def mutant(module, old, new):
    """Return a copy of a module with one term of its source changed."""
    source = inspect.getsource(module)
    assert source.count(old) >= 1, old
    copy = ModuleType(module.__name__)
    copy.__dict__["__name__"] = module.__name__
    before = sys.modules[module.__name__]
    sys.modules[module.__name__] = copy  # dataclasses look their module up
    try:
        exec(source.replace(old, new), copy.__dict__)
    finally:
        sys.modules[module.__name__] = before
    return copy


def layer_of(module, loops, off_diagonal, inject, x):
    layer = module.EquilibriumBounds.__new__(module.EquilibriumBounds)
    layer.loops, layer.off_diagonal, layer.divisor, layer.inject, layer.x = loops, off_diagonal, 1 - loops, inject, x
    terms = len(loops) + len(x.center)
    layer.relative = module.SLACK * (terms + 8) * module.U
    layer.h_size = np.abs(inject.matrix) @ (np.abs(x.center) + x.radius) + np.abs(inject.offset)
    layer.h_size = layer.h_size + terms * module.TINY
    layer.underflow = module.TINY * module.SLACK * (terms + 8) ** 2 * (1 + (np.abs(x.center) + x.radius).sum())
    return layer


def cases(seed):
    """Yield arguments in which one kind of rounding decides: of W, of 1 - w, of U, of a sum, errors, underflow."""
    rng = np.random.default_rng(seed)
    n, d = 3, 3
    zero, flat = np.zeros(n), np.zeros((n, n))
    nothing = AffineMap(np.zeros((n, d)), zero, zero), Box(np.zeros(d), np.zeros(d))
    ones, a = np.ones(1), rng.normal(size=(1, n))
    off = rng.normal(size=(n, n)) * (1 - np.eye(n))
    near_one = np.full(n, 1 - 2.0**-40)
    row = -(a @ off)[0]
    yield (near_one, off, *nothing), (zero, np.full(n, 1e10), np.zeros((1, n)), a, ones, row, 0.0)
    loops = rng.uniform(-2, 0.9, size=n)
    e = np.eye(n)[:1]
    yield (loops, flat, *nothing), (np.full(n, -1e10), np.full(n, -1e9), e, e / (1 - loops), 0 * ones, zero, 0.0)
    u, center = rng.normal(size=(n, d)), rng.normal(size=d)
    of_x = (a @ u)[0]
    center = 1e10 * (center - of_x * (of_x @ center) / (of_x @ of_x))
    yield (loops, flat, AffineMap(u, zero, zero), Box(center, np.zeros(d))), (zero, zero, 0 * e, a, 0 * ones, zero, 0.0)
    yield (loops, flat, *nothing), (zero, zero, 0 * e, 0 * a, rng.uniform(0, 2, size=1), zero, rng.normal())
    inject = AffineMap(np.zeros((n, d)), zero, np.abs(rng.normal(size=n)))
    yield (loops, flat, inject, nothing[1]), (zero, zero, 0 * e, a, 0 * ones, zero, 0.0)
    tiny = np.full((1, n), -(2.0**-600))
    small = 2.0**-600 * (1 - np.eye(n))
    yield (np.ones(n), small, *nothing), (zero, np.full(n, 2.0**990), 0 * e, tiny, 0 * ones, zero, 0.0)


def exact_bound(layer, low, high, e, a, betas, row, offset):
    loops, v, (low, high) = exact(layer.loops), exact(layer.off_diagonal), (exact(low), exact(high))
    e, a, beta, row = exact(e)[0], exact(a)[0], Fraction(float(betas[0])), exact(row)
    u, b, error = (exact(value) for value in (layer.inject.matrix, layer.inject.offset, layer.inject.error))
    of_z, of_q = beta * row + a @ v, e - (1 - loops) * a
    total = beta * Fraction(float(offset)) + a @ b - abs(a) @ error
    for i in range(len(a)):
        corners = [(max(low[i], 0), low[i]), (max(high[i], 0), high[i])] + [(0, 0)] * (low[i] < 0 < high[i])
        total += min(of_z[i] * z + of_q[i] * q for z, q in corners)
    of_x = a @ u
    return total + of_x @ exact(layer.x.center) - abs(of_x) @ exact(layer.x.radius)


def violations(module, seeds=range(30)):
    """Return how many bounds lie above their formula in exact arithmetic."""
    count = 0
    for seed in seeds:
        for parts, arguments in cases(seed):
            layer = layer_of(module, *parts)
            found = layer.lower_bounds(*arguments)[0]
            count += np.isfinite(found) and Fraction(float(found)) > exact_bound(layer, *arguments)
    return count


def test_bounds_are_at_most_their_formula_in_exact_arithmetic():
    assert violations(multipliers) == 0


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("(betas[:, None] * np.abs(row) + size @ np.abs(self.off_diagonal)) @ z_high", "0 * z_high.sum()"),
        ("sizes + (np.abs(e) + size * self.divisor) @ q_size", "sizes"),
        ("sizes = sizes + size @ self.h_size", "sizes = sizes"),
        ("size @ self.inject.error", "0"),
        ("lost = lost + self.underflow", "lost = lost + 0"),
        ("- SLACK * U * (np.abs(total) + lost)", ""),
    ],
)
def test_without_a_rounding_term_a_bound_is_too_high(old, new):
    assert violations(mutant(multipliers, old, new)) > 0


def products_too_small(multiply_boxes):
    """Return how many products of boxes miss the product of two of their matrices, in exact arithmetic."""
    count = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        a, b = rng.normal(size=(2, 4, 4))
        none = np.zeros((4, 4))
        for ra, rb, size in (
            (none, none, 1),
            (0.5 * abs(a), none, 1),
            (none, 0.5 * abs(b), 1),
            (none, none, 2.0**-540),
        ):
            box = multiply_boxes(Box(a * size, ra), Box(b * size, rb))
            exact_a, exact_b = exact(a * size) + exact(ra), exact(b * size) + exact(rb)
            count += bool((abs(exact_a @ exact_b - exact(box.center)) > exact(box.radius)).any())
    return count


def test_products_of_boxes_contain_all_products():
    assert products_too_small(multiply) == 0


@pytest.mark.parametrize(
    "term",
    [
        "np.abs(a.center) @ b.radius + ",
        " + a.radius @ size_b",
        " + relative * (size_a @ size_b)",
        " + 2 * (terms + 4) * TINY",
    ],
)
def test_without_a_term_a_product_is_too_small(term):
    assert products_too_small(mutant(monotone, term, "").multiply) > 0
