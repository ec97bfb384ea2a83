"""Provides equilibria that share no code with cerdeq: eigenvalues, solutions and interval equilibria by numpy.

Also W of several kinds (`random_weight`, `hard_matrices`), wrong boxes (`GARBAGE`) and small networks with equilibria.
"""

import copy

import numpy as np
import torch
from oracles import assert_contains, dense_operator
from torch import nn

from cerdeq import Box
from cerdeq.equilibrium import Equilibrium, fold

RHOS = [0.3, 0.9, 0.97]


def spectral_radius(matrix):
    return float(np.abs(np.linalg.eigvals(np.asarray(matrix, dtype=np.float64))).max())


def channels(weight):
    """Return the channel matrix of |W|."""
    weight = np.abs(weight.detach().double().numpy())
    return weight if weight.ndim == 2 else weight.sum((2, 3))


def random_weight(size, kernel=None, rho=0.9, signed=True):
    """Return W in float64 whose channel matrix of |W| has the spectral radius rho."""
    shape = (size, size) if kernel is None else (size, size, kernel, kernel)
    weight = torch.randn(shape, dtype=torch.float64)
    weight = weight if signed else weight.abs()
    return weight * (rho / spectral_radius(channels(weight)))


def equilibrium_of(matrix, h):
    """Return z = relu(W z + h) for the rows of h [n, N], solved to convergence."""
    h = np.asarray(h)
    z = np.maximum(h, 0)
    for _ in range(20000):
        following = np.maximum(z @ matrix.T + h, 0)
        if np.abs(following - z).max() <= 4e-15 * (1 + np.abs(following).max()):
            return following
        z = following
    raise AssertionError("the oracle did not converge")


def solutions(weight, h):
    """Return the equilibria of h [B, ...]; the weight is a matrix or a convolution."""
    matrix = dense_operator(weight.detach(), h.shape[1:])
    return torch.from_numpy(equilibrium_of(matrix, h.flatten(1).numpy())).view_as(h)


def sampled_equilibria(weight, h: Box, count=60):
    """Return equilibria [count, B, ...] of points of the box h, most of them corners."""
    rng = np.random.default_rng(0)
    inside = rng.uniform(-1, 1, (count, *h.center.shape))
    inside[: 2 * count // 3] = np.sign(inside[: 2 * count // 3])
    inside[0], inside[1], inside[2] = 1, -1, 0
    points = torch.from_numpy(h.center.numpy() + inside * h.radius.numpy())
    return solutions(weight, points.flatten(0, 1)).view_as(points)


def random_h(shape, eps, shift=0.0):
    center = torch.randn(shape, dtype=torch.float64) + shift
    return Box(center, eps * torch.rand(shape, dtype=torch.float64))


def check_box(weight, h, box):
    assert box.radius.isfinite().all() and (box.radius >= 0).all()
    assert_contains(box.lower, box.upper, sampled_equilibria(weight, h))


def wide_interval_equilibrium(weight, h, steps=3000):
    """Return the ends of the interval equilibrium, dense, by numpy: the box that no interval proof can beat."""
    shape = h.center.shape[1:]
    matrix = dense_operator(weight, shape)
    positive, negative = np.maximum(matrix, 0), np.minimum(matrix, 0)
    low_h, high_h = h.lower.flatten(1).numpy(), h.upper.flatten(1).numpy()
    low, high = np.zeros_like(low_h), np.zeros_like(high_h)
    for _ in range(steps):
        low, high = (
            np.maximum(low @ positive.T + high @ negative.T + low_h, 0),
            np.maximum(high @ positive.T + low @ negative.T + high_h, 0),
        )
    return torch.from_numpy(low).view_as(h.center), torch.from_numpy(high).view_as(h.center)


def hard_matrices():
    eye = torch.eye(3)
    return {
        "zero": torch.zeros(3, 3),
        "one by one": torch.tensor([[-0.5]]),
        "diagonal": torch.diag(torch.tensor([0.9, -0.1, 0.5])),
        "permutation": 0.7 * eye[[1, 2, 0]],
        "nilpotent": torch.tensor([[0.0, 5.0, 7.0], [0.0, 0.0, 3.0], [0.0, 0.0, 0.0]]),
        "block": torch.block_diag(torch.full((2, 2), 0.45), torch.full((2, 2), 0.05)),
        "dead row": torch.tensor([[0.5, 0.4], [0.0, 0.0]]),
        "dead column": torch.tensor([[0.5, 0.0], [0.4, 0.0]]),
        "tiny": torch.full((2, 2), 1e-30),
        "subnormal": torch.full((2, 2), 1e-310, dtype=torch.float64),
        "periodic": torch.tensor([[0.0, 0.8], [0.2, 0.0]]),
        "periodic, large row": torch.tensor([[0.0, 2.0], [0.1, 0.0]]),
    }


def channel_matrix(weight):
    return torch.from_numpy(channels(weight))


def with_one(values, value):
    values = values.clone()
    values[0].view(-1)[1] = value
    return values


# From the right box to what a broken solver might return.
GARBAGE = {
    "zeros": lambda box: Box(0 * box.center, 0 * box.radius),
    "not a number": lambda box: Box(box.center * float("nan"), box.radius * float("nan")),
    "one not a number": lambda box: Box(with_one(box.center, float("nan")), box.radius),
    "negative radius": lambda box: Box(box.center, -box.radius - 1),
    "shrunk": lambda box: Box(box.center, box.radius * 0.5),
    "a point": lambda box: Box(box.center, 0 * box.radius),
    "shifted": lambda box: Box(box.center + 3, box.radius),
    "far away": lambda box: Box(box.center + 1e9, box.radius),
    "noise": lambda box: Box(torch.randn_like(box.center), torch.rand_like(box.radius)),
    "other example": lambda box: Box(box.center.flip(0), box.radius.flip(0)),
}


def small_network(kernel=3, rho=0.9, dtype=torch.float64, gain=None):
    """Return an equilibrium with the given rho(|W|) and a linear head, in evaluation mode, and the input's shape."""
    if kernel is None:
        inject, head, size = nn.Linear(3, 4), nn.Linear(4, 3), (3,)
    else:
        inject, head, size = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(4 * 9, 3), (1, 3, 3)
    block = Equilibrium(4, inject, kernel_size=kernel, margin=1 - rho, gain=gain, iterations=30, backward_iterations=30)
    model = nn.Sequential(block, nn.Flatten(), head).to(dtype)
    with torch.no_grad():
        block.recurrence.parametrizations.weight.original.mul_(100)
        for _ in range(40):
            block.recurrence.weight  # noqa: B018  reading it in training follows the Perron vectors
    return model.eval(), size


def folded_network(kernel, count, dtype=torch.float64, side=3):
    """Return `count` equilibria and a linear head, folded: the stored weights are the ones that act."""
    if kernel is None:
        injections, features = [nn.Linear(3, 4), nn.Linear(4, 4)], 4
    else:
        injections, features = [nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)], 4 * side**2
    blocks = [Equilibrium(4, inject, kernel, margin=0.2, gain=None) for inject in injections[:count]]
    for block in blocks:
        block.recurrence.parametrizations.weight.original.data.mul_(100)  # W at its bound
    model = nn.Sequential(*blocks, nn.Flatten(), nn.Linear(features, 3)).to(dtype).eval()
    fold(model)
    return model


@torch.no_grad()
def exact_outputs(model, x):
    """Return the outputs [S, B, N] for x [S, B, ...] in float64, equilibria solved by numpy."""
    value = x.double().flatten(0, 1)
    for layer in copy.deepcopy(model).double():
        equilibrium = isinstance(layer, Equilibrium)
        value = solutions(layer.recurrence.weight, layer.inject(value)) if equilibrium else layer(value)
    return value.unflatten(0, x.shape[:2])


def saved_tensors(function):
    """Return how many tensors autograd saves for the backward pass, and their number of elements."""
    sizes = []

    def pack(tensor):
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        function()
    return len(sizes), sum(sizes)
