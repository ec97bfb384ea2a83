"""Provides equilibrium networks with exact optima by mixed-integer programming, and how far bounds are from these.

The networks: an affine layer, leaky ReLU, an affine injection, the equilibrium z = relu(W z + h), an affine output;
rho is that of the channel matrix of |W|. The optima are values of the network at the points of the program, its
equilibria solved by numpy: no sound bound can be beyond them.
"""

import itertools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import isqrt
from unittest.mock import patch

import numpy as np
import torch
from equilibria import random_weight, solutions
from milp import Encoding, Graph, Node
from torch import Tensor, nn

from cerdeq import Box, LinfBall, bound
from cerdeq.equilibrium import FixedPoint, adjoint_bound

KINDS = {"dense": None, "1 channel": 1, "2 channels": 2}
RHOS = (0.3, 0.6, 0.9, 0.97)
EPS = (0.02, 0.1, 0.3)


@dataclass(frozen=True)
class Problem:
    """A network, balls of all EPS about one image, and the exact minimum and maximum of its output over each, [E]."""

    network: Graph
    regions: Box
    minimum: Tensor
    maximum: Tensor


def problems(seeds: int, units: int, rhos: Iterable[float] = RHOS) -> list[Problem]:
    """The grid of networks with about so many units at the equilibrium."""
    grid = itertools.product(KINDS, ("signed", "non-negative"), rhos, range(seeds))
    return [solved(*labels, units) for labels in grid]


def solved(kind: str, w: str, rho: float, seed: int, units: int) -> Problem:
    """Return one problem; its minimum and maximum are values of the network."""
    torch.manual_seed(seed)
    graph, shape = _network(KINDS[kind], units, rho, w == "signed")
    x = torch.rand(1, *shape, dtype=torch.float64)
    balls = [LinfBall(x, eps) for eps in EPS]
    regions = Box(torch.cat([ball.center for ball in balls]), torch.cat([ball.radius for ball in balls]))
    encodings = [Encoding(graph, low, high) for low, high in zip(regions.lower, regions.upper, strict=True)]
    minimum, maximum = (
        _values(graph, shape, [encoding.minimum(np.array([sign])) for encoding in encodings], sign)
        for sign in (1.0, -1.0)
    )
    return Problem(graph, regions, minimum, maximum)


def gaps(problem: Problem, method: str) -> Tensor:
    """Return how far the bounds are from the exact minimum and maximum over each ball, [2, E]; below 0 if unsound."""
    lower, upper = (end.detach().squeeze(1) for end in bound(problem.network, problem.regions, method))
    return torch.stack([problem.minimum - lower, upper - problem.maximum])


@contextmanager
def adjoint_steps(count: int) -> Iterator[None]:
    """Stop the adjoint after exactly so many iterations."""
    with patch.multiple(adjoint_bound, _ADJOINT_LIMIT=count, _ADJOINT_TOLERANCE=0.0):
        yield


@torch.no_grad()
def evaluated(graph: Graph, x: Tensor) -> Tensor:
    """The network's values at x [n, ...], with equilibria solved to convergence by numpy."""
    values = [x]
    for node in graph.nodes:
        sources = [values[source] for source in node.sources]
        equilibrium = node.slope == "equilibrium"
        values.append(solutions(node.apply.weight, *sources) if equilibrium else node.apply(*sources))
    return values[-1]


def _network(channels: int | None, units: int, rho: float, signed: bool) -> tuple[Graph, tuple[int, ...]]:
    if channels is None:
        shape, first, inject = (4,), nn.Linear(4, 4), nn.Linear(4, units)
    else:
        side = max(2, isqrt(units // channels))
        shape, units = (1, side, side), channels * side * side
        first, inject = nn.Conv2d(1, 1, 3, padding=1), nn.Conv2d(1, channels, 3, padding=1)
    weight = random_weight(channels or units, channels and 3, rho, signed)
    made = [first, nn.LeakyReLU(0.1), inject, FixedPoint(weight), nn.Flatten(), nn.Linear(units, 1)]
    for layer in made:
        if isinstance(layer, nn.Linear | nn.Conv2d):
            nn.init.normal_(layer.weight, 0, 1.5 * layer.weight[0].numel() ** -0.5)
    slopes = {nn.LeakyReLU: 0.1, FixedPoint: "equilibrium"}
    return Graph([Node(layer, (i,), slopes.get(type(layer))) for i, layer in enumerate(made)]).double().eval(), shape


def _values(graph: Graph, shape: tuple[int, ...], optima: list[tuple[float, np.ndarray]], sign: int) -> Tensor:
    """Return the network's values [E] at the program's optima, which are close to the program's values."""
    claimed, points = zip(*optima, strict=True)
    values = evaluated(graph, torch.tensor(np.array(points)).view(-1, *shape)).squeeze(1)
    torch.testing.assert_close(values, sign * torch.tensor(claimed, dtype=torch.float64), rtol=1e-5, atol=1e-5)
    return values
