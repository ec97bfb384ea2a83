"""Convolutions and poolings of any geometry, against exact rational arithmetic on the matrix that torch computes."""

from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from oracles import exact
from test_rounding_terms import assert_below, holds, pulled_through
from torch import nn

from harness.checker.bounds.boxes import Box
from harness.checker.bounds.operators import VALUE, operation_of, operation_of_module
from harness.checker.bounds.windows import Windows, convolve, convolve_back

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")  # with even kernels
SIZES = st.integers(1, 3)
seeds = st.integers(0, 2**16)


def each(elements, count):
    return st.one_of(elements, st.tuples(*[elements] * count))


@st.composite
def convolutions(draw):
    """Return a convolution of sequences or images, and the shape of its input."""
    count, groups = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    make = {1: nn.Conv1d, 2: nn.Conv2d}[count]
    padding = draw(st.one_of(st.sampled_from(["same", "valid"]), each(st.integers(0, 2), count)))
    stride = 1 if padding == "same" else draw(each(SIZES, count))
    channels = groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 2))
    torch.manual_seed(draw(seeds))
    layer = make(
        *channels, draw(each(SIZES, count)), stride, padding, draw(each(SIZES, count)), groups, draw(st.booleans())
    )
    return layer, (channels[0], *(draw(st.integers(1, 5)) for _ in range(count)))


@st.composite
def average_poolings(draw):
    """Return an average pooling of sequences or images, and the shape of its input."""
    count = draw(st.integers(1, 2))
    shape = 2, *(draw(st.integers(1, 7)) for _ in range(count))
    if draw(st.booleans()):
        make = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d}[count]
        sizes = st.one_of(SIZES, st.tuples(st.none(), SIZES)) if count == 2 else SIZES
        return make(draw(sizes)), shape
    kernel = draw(each(SIZES, count))
    least = kernel if isinstance(kernel, int) else min(kernel)
    options = {"ceil_mode": draw(st.booleans()), "count_include_pad": draw(st.booleans())}
    if count == 2:
        options["divisor_override"] = draw(st.sampled_from([None, 3, -5]))
    make = {1: nn.AvgPool1d, 2: nn.AvgPool2d}[count]
    return make(
        kernel, draw(st.one_of(st.none(), each(SIZES, count))), draw(st.integers(0, least // 2)), **options
    ), shape


def matrix_of(layer, shape):
    """Return the exact matrix [N, M] and offset [N] of an affine layer; shares of a pooling are of whole numbers."""
    size, bias = int(np.prod(shape)), getattr(layer, "bias", None)
    layer.bias = None
    try:
        matrix = layer(torch.eye(size).double().reshape(size, *shape)).detach()
    except RuntimeError:  # a kernel that is larger than the padded image
        assume(False)
    assume(matrix[0].numel() > 0)
    layer.bias = bias
    numbers, offset = exact(matrix.flatten(1).T), layer(torch.zeros(1, *shape).double()).detach()
    if not hasattr(layer, "weight"):
        numbers = np.vectorize(lambda share: share and Fraction(1, round(1 / share)), otypes=[object])(numbers)
    return numbers, exact(offset.flatten())


def assert_sound(layer, shape, seed):
    """Check boxes, and functionals that are pulled back, at the corners where they are nearest to the exact ones."""
    layer, random = layer.double(), np.random.default_rng(seed)
    matrix, offset = matrix_of(layer, shape)
    operation = operation_of_module(layer)
    x = Box(
        random.normal(size=(1, *shape)), np.abs(random.normal(size=(1, *shape))) * random.integers(0, 2, (1, *shape))
    )
    center, radius = exact(x.center.ravel()), exact(x.radius.ravel())
    y = operation.box(x)
    assert y.center.shape[1:] == layer(torch.zeros(1, *shape).double()).shape[1:]
    middle, reach = matrix @ center + offset, np.abs(matrix) @ radius
    assert holds(y, middle - reach, middle + reach)
    assert (
        y.radius.ravel() <= reach.astype(float) + 1e-12 * (1 + np.abs(middle).astype(float) + reach.astype(float))
    ).all()
    a = random.normal(size=(2, *y.center.shape[1:]))
    pulled = pulled_through(operation, a, x)
    error = exact(pulled.coefficients[0].reshape(2, -1)) - exact(a.reshape(2, -1)) @ matrix
    for row in range(2):
        corner = center + radius * np.sign(error[row])
        assert_below(pulled, a, matrix @ corner + offset, corner)
        np.testing.assert_allclose(error[row].astype(float), 0, atol=1e-12)


@settings(max_examples=40)
@given(convolutions(), seeds)
def test_convolutions(layer_and_shape, seed):
    assert_sound(*layer_and_shape, seed)


@settings(max_examples=40)
@given(average_poolings(), seeds)
def test_average_poolings(layer_and_shape, seed):
    assert_sound(*layer_and_shape, seed)


@pytest.mark.parametrize("dims", [(2, 3), -1, [1], (1, 2)])
@pytest.mark.parametrize("keepdim", [False, True])
@pytest.mark.parametrize("function", [torch.mean, torch.sum])
def test_sums_and_means_over_dimensions(function, dims, keepdim):
    x, a = Box(np.random.default_rng(0).normal(size=(1, 3, 4, 5)), np.zeros((1, 3, 4, 5))), []
    operation, values = operation_of(function, (VALUE, dims, keepdim), {}), exact(x.center)
    axes = (dims,) if isinstance(dims, int) else tuple(dims)
    value = values.sum(axis=axes, keepdims=keepdim)
    if function is torch.mean:
        value = value / Fraction(int(np.prod([values.shape[axis] for axis in axes])))
    y = operation.box(x)
    assert y.center.shape == value.shape and holds(y, value, value)
    a = np.random.default_rng(1).normal(size=(20, *value.shape[1:]))
    assert_below(pulled_through(operation, a, x), a, value.ravel(), values.ravel())


@st.composite
def max_poolings(draw):
    count = draw(st.integers(1, 2))
    kernel = draw(each(st.integers(1, 3), count))
    least = kernel if isinstance(kernel, int) else min(kernel)
    make = {1: nn.MaxPool1d, 2: nn.MaxPool2d}[count]
    options = {"dilation": draw(SIZES), "ceil_mode": draw(st.booleans())}
    layer = make(kernel, draw(st.one_of(st.none(), SIZES)), draw(st.integers(0, least // 2)), **options)
    return layer, (2, *(draw(st.integers(1, 7)) for _ in range(count)))


@settings(max_examples=40)
@given(max_poolings(), seeds, st.sampled_from([0.0, 0.3, 3.0]))
def test_max_poolings(layer_and_shape, seed, width):
    """At corners, where all numbers are exact: halves and quarters."""
    (layer, shape), random = layer_and_shape, np.random.default_rng(seed)
    center, radius = (
        np.round(8 * random.normal(size=(1, *shape))) / 4,
        np.round(8 * width * random.random((1, *shape))) / 4,
    )
    corners = center + radius * random.integers(-1, 2, (30, *shape))
    try:
        values = layer(torch.from_numpy(corners)).numpy()
        ends = [layer(torch.from_numpy(center + sign * radius)).numpy() for sign in (-1, 1)]
    except RuntimeError:
        assume(False)
    assume(values[0].size > 0 and np.isfinite(values).all())
    operation, x = operation_of_module(layer), Box(center, radius)
    y = operation.box(x)
    assert holds(y, *map(exact, map(np.ravel, ends)))
    np.testing.assert_allclose([y.lower, y.upper], ends, atol=1e-12)
    a = random.normal(size=(3, *values.shape[1:]))
    pulled = pulled_through(operation, a, x)
    for corner, value in zip(corners, values, strict=True):
        assert_below(pulled, a, exact(value.ravel()), exact(corner.ravel()))


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("part", [(slice(1, 3), slice(2, 3)), (slice(0, 1), slice(-1, None)), (slice(0), slice(0))])
def test_the_transpose_of_a_convolution_takes_all_pixels_that_are_not_0(groups, part):
    """<A, W x> = <W^T A, x>, where A is 0 outside of a part, or everywhere."""
    random = np.random.default_rng(0)
    weight, x = random.normal(size=(4, 4 // groups, 3, 2)), random.normal(size=(1, 4, 9, 8))
    windows = Windows((2, 1), ((1, 2), (0, 1)), (1, 2), groups)
    result = convolve(weight, x, windows)
    a = np.zeros((5, *result.shape[1:]))
    a[(slice(None), slice(None), *part)] = random.normal(size=a[(slice(None), slice(None), *part)].shape)
    back = convolve_back(weight, a, x.shape[1:], windows)
    np.testing.assert_allclose((back * x).sum((1, 2, 3)), (a * result).sum((1, 2, 3)), atol=1e-12)
    padded = F.pad(torch.from_numpy(x), (0, 1, 1, 2))
    torch.testing.assert_close(
        torch.from_numpy(result), F.conv2d(padded, torch.from_numpy(weight), None, (2, 1), 0, (1, 2), groups)
    )
