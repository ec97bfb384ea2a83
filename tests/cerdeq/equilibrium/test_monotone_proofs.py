"""Proofs of strong monotonicity, first boxes, and bounds from multipliers: nothing is proved that is not so."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from monotone import equilibria, exact_bound, network, random_monotone
from oracles import exact

from cerdeq import Box, bound, verify
from cerdeq.bounds import Context, Interval, trace
from cerdeq.bounds.ibp import values_of
from cerdeq.equilibrium import FixedPoint, NotContractiveError, PeacemanRachford
from cerdeq.equilibrium.gradients import split_with_implicit_gradient
from cerdeq.equilibrium.monotone.bounds import EquilibriumBounds, TighteningStep
from cerdeq.equilibrium.monotone.box import AffineMap, cut_by_images, equilibrium_boxes, first_box
from cerdeq.equilibrium.monotone.enclosure import Enclosure, largest_eigenvalue
from cerdeq.equilibrium.monotone.network import EquilibriumNetwork, equilibrium_network
from cerdeq.equilibrium.monotone.proof import check_root, monotonicity
from cerdeq.equilibrium.monotone.splitting import Splitting

F = torch.float64


@pytest.mark.parametrize("seed", range(8))
def test_the_modulus_holds_in_exact_arithmetic(seed):
    rng = np.random.default_rng(seed)
    weight = random_monotone(rng, 6, 10.0 ** rng.uniform(-9, 1), size=10.0 ** rng.uniform(-2, 2))
    proof = monotonicity(torch.tensor(weight))
    assert proof.is_proved and proof.modulus > 0
    rest = exact(np.eye(6)) * (1 - Fraction(float(proof.modulus)))
    rest = rest - (exact(weight) + exact(weight.T)) / 2
    for i in range(6):  # positive definite, by elimination
        assert rest[i, i] > 0
        rest[i + 1 :] -= np.outer(rest[i + 1 :, i] / rest[i, i], rest[i])
    smallest = np.linalg.eigvalsh((2 * np.eye(6) - weight - weight.T) / 2)[0]
    assert proof.modulus > smallest * (1 - 1e-3) - 1e-8


@pytest.mark.parametrize("excess", [0.0, 2.0**-40])
def test_a_layer_without_a_modulus_is_refused(excess):
    # I - (W + W^T) / 2 has the eigenvalue 1 - 1 - excess, in the direction (1, 1)
    weight = torch.tensor([[0.5, 0.5 + excess], [0.5, 0.5]], dtype=F)
    assert not monotonicity(weight).is_proved
    layer = torch.nn.Sequential(FixedPoint(weight, PeacemanRachford())).eval()
    with pytest.raises(NotContractiveError, match=r"rho\(\|W\|\) < 1, whose bound is .*, or .* eigenvalue is about"):
        bound(layer, Box(torch.ones(1, 2, dtype=F), torch.zeros(1, 2, dtype=F)))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_prove_nothing(value):
    weight = -torch.eye(3, dtype=F)
    weight[0, 1] = value
    assert not monotonicity(weight).is_proved


def test_any_root_is_checked():
    weight = torch.tensor(random_monotone(np.random.default_rng(0), 4))
    good = monotonicity(weight)
    for root in (torch.zeros_like(weight), 2 * good.root, torch.full_like(weight, torch.nan)):
        assert not check_root(weight, root).is_proved
    assert not check_root(2 * torch.eye(4, dtype=F) - weight, good.root).is_proved  # I - W has the opposite sign


@pytest.mark.parametrize("outer", [1.0, 2.0**100])
def test_weights_whose_product_underflows_prove_nothing_false(outer):
    # 2^-460 (2^-660 x) is 2^-120 on the box; the product of the weights is 0 in float64
    layers = [torch.nn.Linear(1, 1, dtype=F) for _ in range(3)]
    for layer, weight in zip(layers, (2.0**-660, 2.0**-460, -outer), strict=True):
        layer.weight.data.fill_(weight), layer.bias.data.zero_()
    equilibrium = FixedPoint(torch.tensor([[-1.0]], dtype=F), PeacemanRachford())
    model = torch.nn.Sequential(*layers[:2], equilibrium, layers[2]).eval()
    layers[2].bias.data.fill_(outer * 2.0**-123)  # the row is outer (2^-123 - 2^-121) < 0
    x = torch.full((1, 1), 2.0**1000, dtype=F)
    spec = torch.ones(1, 1, 1, dtype=F)
    assert verify(model, Box(x, torch.zeros_like(x)), spec, seconds=5).status != ["certified"]
    values = [Interval(x, torch.zeros_like(x))]
    program = trace(model, linear=True)
    values = values_of(program, values[0], Context(sound=True))
    read_map = equilibrium_network(program, values, torch.ones(1, 1, dtype=F))
    assert read_map is None or read_map.inject.error[0] >= 2.0**-120


def test_the_largest_eigenvalue_is_an_upper_bound():
    rng = np.random.default_rng(1)
    for size in (1.0, 1e-120, 1e100):
        a = rng.normal(size=(6, 3)) * size
        matrix = a @ a.T
        largest = np.linalg.eigvalsh(matrix)[-1]
        assert 1 - 1e-14 <= largest_eigenvalue(Enclosure.exact(torch.tensor(matrix))) / largest <= 1 + 1e-9


def instance(seed, units=5, inputs=3):
    rng = np.random.default_rng(seed)
    weight, u, b = random_monotone(rng, units), rng.normal(size=(units, inputs)), rng.normal(size=units)
    return rng, weight, u, b, rng.normal(size=inputs), rng.uniform(0, 1, size=inputs)


def samples(rng, center, radius, count=40):
    points = rng.uniform(-1, 1, size=(count, len(center)))
    points[: count // 2] = np.sign(points[: count // 2])
    return center + radius * points


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e6])
@pytest.mark.parametrize("seed", range(4))
def test_a_box_cut_by_its_images_contains_all_equilibria_and_is_smaller(seed, size):
    rng, weight, u, b, center, radius = instance(seed)
    weight -= 4 * np.eye(5)  # so that images help
    radius, b = 0.1 * radius, size * b
    u = size * u
    x = samples(rng, center, radius, count=400)
    z = equilibria(weight, x @ u.T + b)
    inject = AffineMap(torch.tensor(u), torch.tensor(b), torch.zeros(5, dtype=F))
    h = inject.range_over(Box(torch.tensor(center), torch.tensor(radius)))
    h, w = Box(h.value[None], h.error[None]), torch.tensor(weight)
    ball = equilibrium_boxes(monotonicity(w), h)
    cut = cut_by_images(Context(sound=True), w, h, ball, 20)
    for box in (cut, cut_by_images(Context(sound=False), w, h, ball, 5)):
        assert (np.abs(z - box.center[0].numpy()) <= box.radius[0].numpy() + 1e-11 * size).all()
        assert box.radius.sum() < 0.9 * ball.radius.sum()


def interval(low, high):
    """Return the box [1, N] between two arrays."""
    return Box(torch.tensor((low + high) / 2)[None], torch.tensor((high - low) / 2)[None])


def read(weight, u, b, c, offset, center, radius):
    """Return the network as `verify` reads it, over the box."""
    program = trace(network(weight, u, b, c, offset), linear=True)
    x = Interval(torch.tensor(center)[None], torch.tensor(radius)[None])
    return equilibrium_network(program, values_of(program, x, Context(sound=True)), torch.eye(len(c), dtype=F))


def differentiable_equilibria(weight, h, splitting, in_training=False):
    return split_with_implicit_gradient(weight, h, splitting.equilibria(h, in_training), splitting)


def test_solutions_and_their_gradients():
    rng, weight, u, b, center, radius = instance(3)
    h = torch.tensor(samples(rng, center, radius, 6) @ u.T + b)
    w = torch.tensor(weight)
    solution = Splitting(w).solve(h)
    assert bool(solution.converged.all())
    assert np.allclose(solution.value.numpy(), equilibria(weight, h.numpy()), atol=1e-10)
    w, h = w.requires_grad_(), h[:2].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda w, h: differentiable_equilibria(w, h, Splitting(w)), (w, h))


def test_solutions_and_gradients_in_training_have_four_digits():
    rng = np.random.default_rng(0)
    w, h = torch.tensor(random_monotone(rng, 20, 5)), torch.tensor(rng.normal(size=(8, 20)))
    direction = torch.tensor(rng.normal(size=(8, 20)))
    results = []
    for dtype, in_training in ((torch.float32, True), (torch.float64, False)):
        inputs = [value.to(dtype).requires_grad_() for value in (w, h)]
        z = differentiable_equilibria(*inputs, Splitting(w), in_training)
        results.append([z, *torch.autograd.grad((z * direction.to(dtype)).sum(), inputs)])
    for computed, exact_value in zip(*results, strict=True):
        assert (computed.double() - exact_value).abs().max() < 1e-3 * exact_value.abs().max()


def test_bounds_contain_the_outputs():
    rng, weight, u, b, center, radius = instance(4)
    c, offset = rng.normal(size=(3, 5)), rng.normal(size=3)
    model, region = network(weight, u, b, c, offset), Box(torch.tensor(center)[None], torch.tensor(radius)[None])
    assert model[1].contraction(model[1].weight).rate >= 1
    outputs = equilibria(weight, samples(rng, center, radius) @ u.T + b) @ c.T + offset
    before = first = -np.inf
    for method in ("ibp", "crown-ibp", "crown", "alpha-crown"):
        lower, upper = (end.detach().numpy() for end in bound(model, region, method))
        assert (lower <= outputs + 1e-10).all() and (upper >= outputs - 1e-10).all()
        assert (lower >= before).all()
        before, first = lower, lower if method == "ibp" else first
    assert (outputs.min(0) - lower < 0.5 * (outputs.min(0) - first)).all()  # multipliers are much tighter


def test_convolutional_weights_are_made_dense():
    torch.manual_seed(0)
    kernel = torch.randn(2, 2, 3, 3, dtype=F) * 0.3
    layer = FixedPoint(
        kernel - 3 * torch.eye(2, dtype=F)[:, :, None, None] * (torch.arange(9).view(3, 3) == 4), PeacemanRachford()
    )
    stem, head = torch.nn.Conv2d(1, 2, 3, padding=1).double(), torch.nn.Linear(32, 2).double()
    model = torch.nn.Sequential(stem, layer, torch.nn.Flatten(), head).eval()
    assert layer.contraction(layer.weight).rate >= 1
    x = torch.rand(1, 1, 4, 4, dtype=F)
    z, h = layer(stem(x)), stem(x)
    assert torch.allclose(z, torch.relu(torch.nn.functional.conv2d(z, layer.weight, padding=1) + h), atol=1e-12)
    label = int(model(x).argmax())
    spec = torch.eye(2, dtype=F)[[label]] - torch.eye(2, dtype=F)[[1 - label]]
    assert verify(model, Box(x, torch.full_like(x, 1e-4)), spec[None], seconds=20).status == ["certified"]


@pytest.mark.parametrize(
    ("size_a", "size_b", "error"), [(1, 1, 0), (1, 1, 1e-3), (1e300, 2.0**-1050, 0), (2.0**-540, 2.0**-540, 0)]
)
def test_products_count_every_rounding(size_a, size_b, error):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 5, 5)) * 10.0 ** rng.integers(-4, 5, size=(2, 5, 5))
    a, b = size_a * a, size_b * b
    errors = error * np.abs(a), error * np.abs(b)
    product = Enclosure(*map(torch.tensor, (a, errors[0]))) @ Enclosure(*map(torch.tensor, (b, errors[1])))
    missed = abs(exact(a + 0.99 * errors[0]) @ exact(b - 0.99 * errors[1]) - exact(product.value))
    assert missed.max() > 0 and (missed <= exact(product.error)).all()


@pytest.mark.parametrize("seed", range(6))
def test_first_boxes_contain_all_equilibria(seed):
    rng, weight, u, b, center, radius = instance(seed)
    h = samples(rng, center, radius) @ u.T + b
    z, proof = equilibria(weight, h), monotonicity(torch.tensor(weight))
    inject = AffineMap(torch.tensor(u), torch.tensor(b), torch.zeros(5, dtype=F))
    x = Box(torch.tensor(center), torch.tensor(radius))
    box_h = inject.range_over(x)
    of_all = equilibrium_boxes(proof, Box(box_h.value[None], box_h.error[None]))
    of_each = equilibrium_boxes(proof, Box(torch.tensor(h), torch.zeros(len(h), 5, dtype=F)))
    for box in (first_box(proof, inject, x), of_all, of_each):
        assert (np.abs(z - box.center.numpy()) <= box.radius.numpy() + 1e-11).all()
    assert of_each.radius.max() < 1e-9


@pytest.mark.parametrize("images", [1, 3])
def test_images_of_a_box_count_every_rounding(images):
    """In exact arithmetic they lie in the computed ones, where 1 - W_ii is rounded, too; an empty one is no box."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        weight, low = rng.normal(size=(4, 4)) - 3 * np.eye(4), rng.uniform(0, 1, size=4)
        z = interval(low, low + rng.uniform(0, 1, size=4))
        h = interval(low_h := rng.normal(size=4), low_h + rng.uniform(0, 0.1, size=4))
        cut = cut_by_images(Context(sound=True), torch.tensor(weight), h, z, images)
        w, center, radius = exact(weight), exact(h.center[0]), exact(h.radius[0])
        loops, others = w.diagonal(), w - np.diag(w.diagonal())
        least, largest = exact(z.center[0]) - exact(z.radius[0]), exact(z.center[0]) + exact(z.radius[0])
        for _ in range(images):
            positive, negative = np.maximum(others, 0), np.minimum(others, 0)
            lower = np.maximum(center - radius + positive @ least + negative @ largest, 0) / (1 - loops)
            upper = np.maximum(center + radius + positive @ largest + negative @ least, 0) / (1 - loops)
            lower, upper = np.maximum(least, lower), np.minimum(largest, upper)
            is_box = lower <= upper
            least, largest = np.where(is_box, lower, least), np.where(is_box, upper, largest)
        c, r = exact(cut.center[0]), exact(cut.radius[0])
        assert (c - r <= least).all() and (largest <= c + r).all()


STEPS = torch.arange(11) % 5, torch.tensor([1] * 5 + [-1] * 5 + [0])  # units and signs; the last is of a row


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e6])
@pytest.mark.parametrize("seed", range(4))
def test_bounds_of_any_multipliers_are_below_the_exact_minimum_over_the_leaf(seed, size):
    rng, weight, u, b, center, radius = instance(seed)
    row = rng.normal(size=(1, 5))
    layer = EquilibriumBounds(read(weight, u, b, row, np.zeros(1), center, radius))
    leaf = replace(layer.first_leaf(), row=torch.tensor(row[0]))
    h = samples(rng, center, radius) @ u.T + b
    z, w = equilibria(weight, h), np.diag(weight)
    q = (z @ weight.T - w * z + h) / (1 - w)
    assert (q >= leaf.low.numpy() - 1e-11).all() and (q <= leaf.high.numpy() + 1e-11).all()
    multipliers = torch.tensor(rng.normal(size=(11, 5)) * size)
    step = TighteningStep.rounded(*STEPS, multipliers, torch.tensor([0.0] * 10 + [1.0]))
    bounds = layer.lower_bounds(leaf, step).numpy()
    assert (bounds[:5] <= q.min(0) + 1e-11).all() and (bounds[5:10] <= -q.max(0) + 1e-11).all()
    assert bounds[10] <= (z @ row[0]).min() + 1e-11


@pytest.mark.parametrize("seed", range(12))
def test_bounds_are_at_most_their_formula_in_exact_arithmetic(seed):
    rng, weight, u, b, center, radius = instance(seed)
    u = u * 10.0 ** rng.integers(-8, 9, size=u.shape)
    row = torch.tensor(rng.normal(size=5) * 10.0 ** rng.integers(-8, 9, size=5))
    inject = AffineMap(torch.tensor(u), torch.tensor(b), torch.tensor(np.abs(b) * 1e-9))
    proof, box = monotonicity(torch.tensor(weight)), Box(torch.tensor(center * 1e5), torch.tensor(radius))
    layer = EquilibriumBounds(EquilibriumNetwork(proof, box, inject, inject, first_box(proof, inject, box)))
    multipliers = torch.tensor(rng.normal(size=(11, 5)) * 10.0 ** rng.integers(-3, 4, size=(11, 1)))
    step = TighteningStep.rounded(*STEPS, multipliers, torch.tensor(rng.uniform(0, 2, size=11)))
    leaf = replace(layer.first_leaf(), row=row, offset=torch.tensor(rng.normal(), dtype=F))
    used = step.multipliers.double() * step.scales.double()[:, None] / layer.divisor
    for unit, sign, a, beta, lower in zip(*STEPS, used, step.betas, layer.lower_bounds(leaf, step), strict=True):
        e = sign * (torch.arange(5) == unit)
        expected = exact_bound(weight, layer.inject, layer.x, leaf.low, leaf.high, e, a, beta, row, leaf.offset)
        assert Fraction(float(lower)) <= expected
