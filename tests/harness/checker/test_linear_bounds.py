"""The checker's linear bounds: below exact rational minima by rounding at most, below every attack, like CROWN's."""

from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from oracles import exact as exact_numbers
from torch import nn

from cerdeq.equilibrium import FixedPoint
from harness.checker.bounds import linear
from harness.checker.bounds.boxes import Box, ball
from harness.checker.bounds.linear import lower_bounds
from harness.checker.bounds.network import ReluStep, read_network
from harness.checker.bounds.regions import interval_region, lengthened_regions, tight_region
from harness.checker.bounds.relu_lines import Leaves, lines
from harness.checker.bounds.windows import Windows, convolve
from harness.checker.proofs.example import LINEAR, prove


class Residual(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x) + x


class Concatenated(Residual):
    def forward(self, x):
        return torch.cat([self.inner(x), x], 1)


class Calls(nn.Module):
    """`function(x, c)`, in torch and in fractions."""

    def __init__(self, function, *shape, exact_function=None):
        super().__init__()
        self.function, self.exact_function = function, exact_function or function
        self.c = nn.Parameter(torch.randn(shape))

    def forward(self, x):
        return self.function(x, self.c)


def norm(dimensions):
    """Return batch norm of variances whose roots are rational, which exact arithmetic can follow."""
    layer = (nn.BatchNorm2d if dimensions == 2 else nn.BatchNorm1d)(2, eps=0.25).double()
    layer.running_mean = torch.randn(2).double() * 100
    layer.running_var = torch.tensor([0.75, 15.75]).double()
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias, std=1e-3)
    return layer


AFFINE = {  # what convolutions, poolings and constants round is counted: test_windows.py, test_rounding_terms.py
    "batch norm of sequences": lambda: [Calls(lambda x, c: x.reshape(-1, 2, 9), 1), norm(1), nn.Flatten()],
    "batch norm of as many sequences as steps": lambda: [
        nn.Flatten(), nn.Linear(18, 4), Calls(lambda x, c: x.reshape(-1, 2, 2), 1), norm(1), nn.Flatten()],
    "residual": lambda: [Residual(nn.Conv2d(2, 2, 3, padding=1)), nn.Flatten()],
    "concatenated": lambda: [Concatenated(nn.Conv2d(2, 1, 1)), nn.Flatten()],
    "difference": lambda: [Calls(lambda x, c: c - x, 2, 1, 1), nn.Flatten()],
    "matrix of the last dimension": lambda: [Calls(lambda x, c: x @ c, 3, 5), nn.Flatten()],
    "permuted": lambda: [
        Calls(lambda x, c: x.permute(0, 3, 1, 2), 1, exact_function=lambda x, c: x.transpose(0, 3, 1, 2)),
        nn.Conv2d(3, 2, 2), nn.Flatten()],
    "reshaped": lambda: [Calls(lambda x, c: x.reshape(-1, 3, 3, 2), 1), nn.Conv2d(3, 2, 2), nn.Flatten()],
    "padded": lambda: [
        Calls(lambda x, c: F.pad(x, (1, 0, 0, 2)), 1, exact_function=lambda x, c: np.pad(
            x, ((0, 0), (0, 0), (0, 2), (1, 0)), constant_values=Fraction(0))),
        nn.Conv2d(2, 2, 2), nn.Flatten()],
    "deep": lambda: [
        nn.Conv2d(2, 2, 3, padding=1), Residual(nn.Conv2d(2, 2, 1)), nn.AvgPool2d(3), norm(2), nn.Flatten()],
}  # fmt: skip


def exact(layer, x):
    """Return the value of a layer at fractions x [B, ...]."""
    match layer:
        case nn.Sequential():
            for part in layer:
                x = exact(part, x)
            return x
        case nn.Linear():
            return x @ exact_numbers(layer.weight).T + exact_numbers(layer.bias)
        case nn.Conv2d():
            bias = 0 if layer.bias is None else exact_numbers(layer.bias)[:, None, None]
            windows = Windows(layer.stride, tuple((size, size) for size in layer.padding), layer.dilation, layer.groups)
            return convolve(exact_numbers(layer.weight), x, windows) + bias
        case nn.BatchNorm1d() | nn.BatchNorm2d():
            mean, root, weight, bias = (
                exact_numbers(t).reshape(-1, *[1] * (x.ndim - 2))
                for t in (layer.running_mean, (layer.running_var + layer.eps).sqrt(), layer.weight, layer.bias)
            )
            return (x - mean) / root * weight + bias
        case nn.AvgPool2d():
            size = layer.kernel_size
            rows, columns = (side // size for side in x.shape[2:])
            cut = x[:, :, : rows * size, : columns * size]
            return cut.reshape(*x.shape[:2], rows, size, columns, size).sum((3, 5)) / Fraction(size**2)
        case Concatenated():
            return np.concatenate([exact(layer.inner, x), x], 1)
        case Residual():
            return exact(layer.inner, x) + x
        case Calls():
            return layer.exact_function(x, exact_numbers(layer.c))
        case nn.Flatten():
            return x.reshape(len(x), -1)
    raise AssertionError(f"{layer} has no exact rule")


def with_classifier(parts, shape):
    body = nn.Sequential(*parts).double().eval().requires_grad_(False)
    features = body(torch.zeros(1, *shape, dtype=torch.float64)).shape[1]
    classifier = nn.Linear(features, 3).double().requires_grad_(False)
    return nn.Sequential(*body, classifier).eval()


def exact_box(center, radius):
    return Box(center.astype(np.float64), np.full(center.shape, radius))


@pytest.mark.parametrize(("name", "size"), [(name, 1.0 if n % 2 else 1e6) for n, name in enumerate(AFFINE)])
def test_affine_networks_are_bounded_by_their_exact_minima_less_rounding(name, size):
    """Where the bound is the minimum itself, rounding that is not counted shows in every second row."""
    model = with_classifier(AFFINE[name](), (2, 3, 3))
    x = torch.rand(1, 2, 3, 3).double()
    network, box = read_network(model), exact_box(size * x.numpy(), 0.25)
    spec = np.random.default_rng(0).normal(size=(12, 3))
    lowers = lower_bounds(network, interval_region(network, box), {len(network.steps): spec}, {})
    slopes = torch.autograd.functional.jacobian(lambda v: model(v)[0], x)[:, 0].flatten(1).numpy()
    for row, lower in zip(spec, lowers, strict=True):
        corner = np.where(row @ slopes > 0, -1, 1).reshape(box.center.shape)
        point = exact_numbers(box.center) + Fraction(0.25) * exact_numbers(corner)
        minimum = (exact_numbers(row) * exact(model, point)[0]).sum()
        assert Fraction(float(lower)) <= minimum <= Fraction(float(lower)) + Fraction(1, 10**9) * (1 + int(size) * 1000)


@pytest.mark.parametrize("name", AFFINE)
def test_rounding_is_counted_where_everything_cancels(name):
    """Functionals of two large pixels that are 0 but for their own rounding: what is computed is noise."""
    body = nn.Sequential(*AFFINE[name]()).double().eval().requires_grad_(False)
    random = np.random.default_rng(0)
    pixels = np.zeros(18)
    pixels[[7, 10]] = 1e6 * random.uniform(0.5, 1, 2)
    x = torch.from_numpy(pixels.reshape(1, 2, 3, 3))
    network = read_network(nn.Sequential(*body, nn.Linear(body(x).shape[1], 3).double()).eval())
    slopes = torch.autograd.functional.jacobian(lambda v: body(v)[0], x)[:, 0].flatten(1).numpy()
    basis, _ = np.linalg.qr(slopes[:, [7, 10]])
    rows = random.normal(size=(30, len(slopes)))
    rows -= rows @ basis @ basis.T
    box = Box(x.numpy(), np.zeros(x.shape))
    lowers = lower_bounds(network, interval_region(network, box), {len(network.steps) - 1: rows}, {})
    values = exact_numbers(rows) @ exact(body, exact_numbers(x))[0]
    for lower, value in zip(lowers, values, strict=True):
        assert Fraction(float(lower)) <= value <= Fraction(float(lower)) + Fraction(1, 10**4)


def test_equilibria_that_are_affine_are_bounded_by_their_exact_minima_less_rounding(monkeypatch):
    """W and h above 0; the multiplier as near as float64 comes."""
    monkeypatch.setattr(linear, "_TOLERANCE", 0.0)
    weight = torch.tensor([[0.1, 0.3, 0.2], [0.4, 0.1, 0.3], [0.3, 0.2, 0.1]]).double()
    inject, classifier = nn.Linear(4, 3).double(), nn.Linear(3, 2).double()
    with torch.no_grad():
        inject.weight.abs_()
        inject.bias.abs_()
    network = read_network(nn.Sequential(nn.Flatten(), inject, FixedPoint(weight), classifier).eval())
    box = exact_box(np.full((1, 1, 2, 2), 0.5), 0.25)
    spec = np.random.default_rng(0).normal(size=(20, 2))
    lowers = lower_bounds(network, interval_region(network, box), {4: spec}, {})
    system = exact_numbers(np.eye(3)) - exact_numbers(weight)
    rows = exact_numbers(spec) @ exact_numbers(classifier.weight) @ invert(system)
    matrix, offset = rows @ exact_numbers(inject.weight), rows @ exact_numbers(inject.bias)
    offset = offset + exact_numbers(spec) @ exact_numbers(classifier.bias)
    minima = matrix.sum(1) * Fraction(1, 2) - abs(matrix).sum(1) * Fraction(1, 4) + offset
    for lower, value in zip(lowers, minima, strict=True):
        assert Fraction(float(lower)) <= value <= Fraction(float(lower)) + Fraction(1, 10**10)


def test_rounding_in_w_is_counted_where_its_columns_cancel(monkeypatch):
    """z3 and z4 are small differences of large multiples of z1 and z2, and the functional cancels these again."""
    monkeypatch.setattr(linear, "_TOLERANCE", 0.0)
    random, weight = np.random.default_rng(0), np.eye(4) / 1024
    weight[2, :2], scale = (1e4 * random.uniform(1, 2), -1e4 * random.uniform(1, 2)), random.uniform(1, 2)
    weight[3, :2] = scale * weight[2, :2]
    model = nn.Sequential(nn.Flatten(), FixedPoint(torch.from_numpy(weight)), nn.Linear(4, 2).double())
    network = read_network(model.eval())
    images = np.array([0.5, -0.5 * weight[2, 0] / weight[2, 1], 0.5, 0.5]).reshape(1, 1, 1, 4)
    last = random.normal(size=(60, 1))
    rows = np.concatenate([np.zeros((60, 2)), last, -last / scale], 1)
    lowers = lower_bounds(network, interval_region(network, exact_box(images, 0.0)), {2: rows}, {})
    z = invert(exact_numbers(np.eye(4)) - exact_numbers(weight)) @ exact_numbers(images.ravel())
    for lower, value in zip(lowers, exact_numbers(rows) @ z, strict=True):
        assert Fraction(float(lower)) <= value <= Fraction(float(lower)) + Fraction(1, 10**8)


def invert(matrix):
    """Invert a matrix of fractions by elimination without pivoting."""
    size = len(matrix)
    rows = np.concatenate([matrix, exact_numbers(np.eye(size))], 1)
    for i in range(size):
        rows[i] = rows[i] / rows[i, i]
        for j in range(size):
            if j != i:
                rows[j] = rows[j] - rows[j, i] * rows[i]
    return rows[:, size:]


ENDS = st.floats(1e-12, 1e12) | st.sampled_from([1e-300, 1e-9, 1.0, 1e300])


@given(ENDS, ENDS, st.floats(-1, 2) | st.just(np.nan), st.sampled_from([-1, 0, 1]))
def test_lines_hold_relu_between_them_exactly(below, above, slope, sign):
    """Up to the outward ends themselves; of a split neuron on its side."""
    box = Box(np.array([[above / 2 - below / 2]]), np.array([[above / 2 + below / 2]]))
    one = np.ones((1, 1))
    around = lines(box, Leaves(slope * one, sign * one, one, one))
    free, chord, offset = (Fraction(float(part.item())) for part in (around.free, around.chord, around.offset))
    for p in (Fraction(float(box.lower.item())), Fraction(0), Fraction(float(box.upper.item()))):
        if sign * p >= 0:
            assert free * p <= max(p, 0) <= chord * p + offset


@pytest.mark.parametrize(("center", "slope"), [(2.0, 1.0), (-2.0, 0.0)])
def test_lines_are_relu_itself_where_it_does_not_cross(center, slope):
    around = lines(Box(np.array([[center]]), np.ones((1, 1))), None)
    assert (around.free, around.chord, around.offset) == (slope, slope, 0)


@pytest.mark.parametrize(("kernel", "rho"), [(None, 0.9), (3, 0.3), (3, 0.97)])
def test_regions_and_bounds_hold_equilibria(kernel, rho):
    """Solved to convergence at points of the ball; the tightened ones are of use."""
    weight = torch.randn(4, 4, *([kernel] * 2 if kernel else [])).double()
    weight *= rho / torch.linalg.eigvals(weight.abs().reshape(4, 4, -1).sum(2)).abs().max()
    stem = [nn.Flatten(), nn.Linear(16, 6), nn.ReLU(), nn.Linear(6, 4)]
    stem = stem if kernel is None else [nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 4, 1)]
    model = with_classifier([*stem, FixedPoint(weight), nn.Flatten()], (1, 4, 4))
    network, images = read_network(model), ball(np.full((1, 1, 4, 4), 128.0), 0.3)
    number = next(
        n
        for n, s in enumerate(network.steps, 1)
        if isinstance(s.operation, ReluStep) and s.operation.weight is not None
    )
    x = torch.from_numpy(images.center + images.radius * np.sign(np.random.default_rng(0).normal(size=(60, 1, 4, 4))))
    layer = model[number - 1]
    h = model[: number - 1](x)
    z = layer.solve(h).value
    p = (z @ weight.T if kernel is None else torch.conv2d(z, weight, padding=1)) + h
    spec = np.array([[1.0, -1, 0], [-1, 0, 1], [0, 1, -1]])
    outputs = model[number:](z).numpy() @ spec.T
    bounds = []
    for region in (interval_region(network, images), tight_region(network, images)):
        for box, points in ((region.values[number], z), (region.preactivations[number], p)):
            assert (box.lower <= points.numpy() + 1e-9).all() and (points.numpy() <= box.upper + 1e-9).all()
        bounds.append(lower_bounds(network, region, {len(network.steps): spec}, {}))
        assert np.isfinite(bounds[-1]).all() and (bounds[-1] <= outputs.min(0) + 1e-9).all()
    assert (bounds[1] >= bounds[0] - 1e-6).all()
    loose, tight = (region(network, images).values[number].radius.sum() for region in (interval_region, tight_region))
    assert tight < 0.99 * loose


def test_what_is_not_finite_or_huge_is_not_bounded():
    network = read_network(with_classifier([nn.Flatten(), nn.Linear(4, 3)], (1, 2, 2)))
    for radius in (np.inf, np.nan, 1e101):
        box = Box(np.zeros((1, 1, 2, 2)), np.full((1, 1, 2, 2), radius))
        region = linear.Region([box, box, box], {})
        assert (lower_bounds(network, region, {3: np.eye(3)}, {}) == -np.inf).all()
    region = interval_region(network, Box(np.zeros((1, 1, 2, 2)), np.ones((1, 1, 2, 2))))
    for size in (1e101, np.inf, np.nan):
        assert (lower_bounds(network, region, {3: np.full((2, 3), size)}, {}) == -np.inf).all()


@pytest.mark.parametrize("end", [-1e-3, -1e-6, 1e-6, 1e-3])
@pytest.mark.parametrize("slope", [-1.0, 0.1])
def test_either_line_is_tried_where_the_ends_of_a_relu_are_nearly_as_far_from_0(end, slope):
    """relu(x) - x and relu(x) + x / 10 need different lower lines, and float32 may choose either over [-1, 1 + end]."""
    first, last = nn.Linear(2, 4).double(), nn.Linear(4, 2).double()
    with torch.no_grad():
        first.weight[:] = torch.tensor([[1, 0], [1, 0], [0, 1], [0, 1]])
        first.bias[:] = torch.tensor([0, 10, 10, 20])
        last.weight[:] = torch.tensor([[1, slope, 0.5, -0.5], [0, 0, 0, 0]])  # intervals lose the difference of halves
        last.bias[:] = torch.tensor([5.2 - 10 * slope, 0])
    box = Box(np.array([[end / 2, 0]]), np.array([[1 + end / 2, 1]]))
    assert prove(read_network(nn.Sequential(first, nn.ReLU(), last).eval()), box, 0).proved_by == LINEAR


def test_boxes_that_are_not_finite_are_not_lengthened():
    """Linear bounds have none over them; numpy would warn of infinity less infinity."""
    good, bad = Box(np.zeros((1, 2)), np.ones((1, 2))), Box(np.zeros((1, 2)), np.array([[1.0, np.inf]]))
    assert len(list(lengthened_regions(linear.Region([good, good], {1: good})))) == 4
    for region in (linear.Region([good, bad], {}), linear.Region([good, good], {1: bad})):
        assert not list(lengthened_regions(region))
