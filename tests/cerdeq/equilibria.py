"""Equilibria that share no code with cerdeq: numpy eigenvalues, solutions to convergence, interval equilibria."""

import numpy as np
import torch
from oracles import assert_contains, dense_operator
from torch import nn

from cerdeq import Box
from cerdeq.equilibrium import Equilibrium

RHOS = [0.3, 0.9, 0.97]


def spectral_radius(matrix):
    return float(np.abs(np.linalg.eigvals(np.asarray(matrix, dtype=np.float64))).max())


def channels(weight):
    """Channel matrix of |W|, by numpy."""
    weight = np.abs(weight.detach().double().numpy())
    return weight if weight.ndim == 2 else weight.sum((2, 3))


def random_weight(size, kernel=None, rho=0.9, signed=True):
    """Float64 W whose channel matrix of |W| has spectral radius rho."""
    shape = (size, size) if kernel is None else (size, size, kernel, kernel)
    weight = torch.randn(shape, dtype=torch.float64)
    weight = weight if signed else weight.abs()
    return weight * (rho / spectral_radius(channels(weight)))


def equilibrium_of(matrix, h):
    """Solved to convergence for the rows of h [n, N], by numpy."""
    h = np.asarray(h)
    z = np.maximum(h, 0)
    for _ in range(20000):
        following = np.maximum(z @ matrix.T + h, 0)
        if np.abs(following - z).max() <= 1e-15 * (1 + np.abs(following).max()):
            return following
        z = following
    raise AssertionError("the oracle did not converge")


def sampled_equilibria(weight, h: Box, count=60):
    """Equilibria [count, B, ...] of points of the box h, most of them corners."""
    shape = h.center.shape[1:]
    rng = np.random.default_rng(0)
    inside = rng.uniform(-1, 1, (count, *h.center.shape))
    inside[: 2 * count // 3] = np.sign(inside[: 2 * count // 3])
    inside[0], inside[1], inside[2] = 1, -1, 0
    points = h.center.numpy() + inside * h.radius.numpy()
    solved = equilibrium_of(dense_operator(weight, shape), points.reshape(-1, int(np.prod(shape))))
    return torch.from_numpy(solved.reshape(points.shape))


def random_h(shape, eps, shift=0.0):
    center = torch.randn(shape, dtype=torch.float64) + shift
    return Box(center, eps * torch.rand(shape, dtype=torch.float64))


def check_box(weight, h, box):
    assert box.radius.isfinite().all() and (box.radius >= 0).all()
    assert_contains(box.lower, box.upper, sampled_equilibria(weight, h))


def wide_interval_equilibrium(weight, h, steps=3000):
    """The interval equilibrium on (lower, upper), dense, by numpy: the box that no interval proof can beat."""
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


def small_network(kernel=3, rho=0.9, dtype=torch.float64, gain=None):
    """Stem, equilibrium, head; rho(|W|) is what is asked."""
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


def saved_tensors(function):
    """How many tensors autograd keeps for the backward pass, and their elements."""
    sizes = []

    def pack(tensor):
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        function()
    return len(sizes), sum(sizes)
