"""Exact minima of small sequential networks, pattern of ReLUs by pattern, and certificates made of all patterns.

Where all signs of pre-activations are fixed, a network is affine. Its minimum over the inputs with these signs is a
linear program, whose dual gives the multiplier of each sign. scipy solves it, without the checker's code.
"""

import itertools

import numpy as np
import torch
from scipy.optimize import linprog
from torch import nn

from cerdeq.equilibrium import FixedPoint

EMPTY = 10.0  # how far above 0 the bound of an empty leaf lies


def dense(layer, shape):
    """Return an affine layer as matrix and offset, from inputs of that shape, and its output's shape."""
    units = torch.eye(int(np.prod(shape)), dtype=torch.float64).reshape(-1, *shape)
    with torch.no_grad():
        zero = layer(torch.zeros(1, *shape, dtype=torch.float64))
        columns = layer(units) - zero
    return columns.flatten(1).T.numpy(), zero.flatten().numpy(), tuple(zero.shape[1:])


def recurrent_matrix(weight, shape):
    if weight.dim() == 2:
        return weight.detach().numpy()
    conv = nn.Conv2d(*weight.shape[:2], weight.shape[-1], padding=weight.shape[-1] // 2, bias=False).double()
    conv.weight = nn.Parameter(weight.detach())
    return dense(conv, shape)[0]


def affine_parts(model, shape):
    """Return name, matrix, offset and W or 0 of each activation with the affine layers before it; the last layers."""
    parts, matrix, offset = [], np.eye(int(np.prod(shape))), np.zeros(int(np.prod(shape)))
    for name, layer in model.named_children():
        if isinstance(layer, nn.ReLU | FixedPoint):
            size = len(matrix)
            weight = np.zeros((size, size)) if isinstance(layer, nn.ReLU) else recurrent_matrix(layer.weight, shape)
            parts.append((name, matrix, offset, weight))
            matrix, offset = np.eye(size), np.zeros(size)
        else:
            m, b, shape = dense(layer, shape)
            matrix, offset = m @ matrix, m @ offset + b
    return parts, matrix, offset


def neurons(model, shape):
    """Return the number of neurons of each activation, by name."""
    return {name: len(matrix) for name, matrix, _, _ in affine_parts(model, shape)[0]}


def at_pattern(model, shape, signs):
    """Return pre-activations and output as affine functions of the input, where signs (by name) are fixed."""
    parts, last, b = affine_parts(model, shape)
    matrix, offset, before = np.eye(int(np.prod(shape))), np.zeros(int(np.prod(shape))), {}
    for name, m, o, weight in parts:
        on = (signs[name] > 0).astype(float)
        solved = np.linalg.inv(np.eye(len(m)) - weight * on)
        before[name] = solved @ m @ matrix, solved @ (m @ offset + o)
        matrix, offset = on[:, None] * before[name][0], on * before[name][1]
    return before, (last @ matrix, last @ offset + b)


def at_point(model, x):
    """Return pre-activations, by name, and the output at x [1, ...]; equilibria by 2,000 iterations."""
    parts, last, b = affine_parts(model, x.shape[1:])
    value, before = x.ravel(), {}
    for name, m, o, weight in parts:
        z = h = m @ value + o
        for _ in range(2000):
            z = np.maximum(weight @ z + h, 0)
        before[name], value = weight @ z + h, z
    return before, last @ value + b


def patterns(model, shape):
    """Yield every pattern of signs, by name."""
    sizes = neurons(model, shape)
    ends = np.cumsum([0, *sizes.values()])
    for signs in itertools.product([1, -1], repeat=ends[-1]):
        yield {name: np.array(signs[ends[i] : ends[i + 1]]) for i, name in enumerate(sizes)}


def minimum_at_pattern(model, box, spec, signs):
    """Return the minimum of spec . output where the signs are these, infinity if nowhere, and their multipliers."""
    before, (matrix, offset) = at_pattern(model, box.center.shape[1:], signs)
    low, high = box.lower[0].ravel(), box.upper[0].ravel()
    rows = np.concatenate([-signs[name][:, None] * m for name, (m, _) in before.items()])
    ends = np.concatenate([signs[name] * o for name, (_, o) in before.items()])
    result = linprog(spec @ matrix, A_ub=rows, b_ub=ends, bounds=np.stack([low, high], 1))
    value, multipliers = result.fun, np.zeros(len(rows))
    if result.status == 2:  # nowhere: scale the proof of it
        wide = np.concatenate([rows, -np.ones((len(rows), 1))], 1)
        bounds = [*zip(low, high, strict=True), (0, None)]
        result = linprog(np.eye(len(low) + 1)[-1], A_ub=wide, b_ub=ends, bounds=bounds)
        value, scale = np.inf, EMPTY / result.fun
        multipliers = -result.ineqlin.marginals * scale
    else:
        assert result.status == 0, result.message
        value, multipliers = result.fun + spec @ offset, -result.ineqlin.marginals
    splits = np.cumsum([len(m) for m, _ in before.values()])[:-1]
    return value, dict(zip(before, np.split(multipliers.clip(min=0), splits), strict=True))


def full_certificate(model, box, specs):
    """Return a certificate's tensors whose leaves are all patterns, for each row of the margins in specs."""
    leaves = [
        (row, signs, minimum_at_pattern(model, box, spec, signs)[1])
        for row, spec in specs.items()
        for signs in patterns(model, box.center.shape[1:])
    ]
    tensors = {"row": np.array([row for row, _, _ in leaves], dtype=np.int16)}
    for name, size in neurons(model, box.center.shape[1:]).items():
        signs = np.array([signs[name] for _, signs, _ in leaves], dtype=np.int8)
        tensors |= {
            f"{name}/neurons": np.arange(size, dtype=np.int32),
            f"{name}/slopes": np.full(signs.shape, 77, dtype=np.uint8),
            f"{name}/signs": signs,
            f"{name}/multipliers": np.array([m[name] for _, _, m in leaves], dtype=np.float32),
        }
    return tensors
