"""How far bounds of equilibrium networks are from the exact optima: `uv run python tests/cerdeq/gaps.py`, minutes.

The networks: an affine layer, leaky ReLU, an affine injection, the equilibrium z = relu(W z + h), an affine output;
rho is that of the channel matrix of |W|. The gap of a bound is its distance from the exact optimum; tables give the
mean gap of both ends over the mean exact range, maximum minus minimum, so 0 is exact. The optima are found by
mixed-integer programming, and are values of the network at the places found, its equilibria solved by numpy: no sound
bound can be beyond them, so the worst violation, how far one is, must not be above 0. Seconds are a network's, for both
ends at all eps together.
"""

import argparse
import itertools
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import isqrt
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch
from equilibria import random_weight, solutions
from milp import Encoding, Graph, Node
from torch import Tensor, nn

from cerdeq import Box, LinfBall, bound
from cerdeq.bounds import BOUNDS
from cerdeq.equilibrium import FixedPoint, adjoint

KINDS = {"dense": None, "1 channel": 1, "2 channels": 2}
RHOS = (0.3, 0.6, 0.9, 0.97)
EPS = (0.02, 0.1, 0.3)
STEPS = (0, 1, 2, 4, 8, 32)


@dataclass(frozen=True)
class Problem:
    """A network, balls of all EPS about one image, and the exact least and most of its one output over each, [E]."""

    kind: str
    w: str
    rho: float
    seed: int
    network: Graph
    regions: Box
    least: Tensor
    most: Tensor


def problems(seeds: int, units: int, rhos: Iterable[float] = RHOS) -> list[Problem]:
    """The grid of networks with about so many units at the equilibrium."""
    grid = itertools.product(KINDS, ("signed", "non-negative"), rhos, range(seeds))
    return [solved(*labels, units) for labels in grid]


def solved(kind: str, w: str, rho: float, seed: int, units: int) -> Problem:
    """One problem. Its least and most are values of the network."""
    torch.manual_seed(seed)
    graph, shape = _network(KINDS[kind], units, rho, w == "signed")
    x = torch.rand(1, *shape, dtype=torch.float64)
    balls = [LinfBall(x, eps) for eps in EPS]
    regions = Box(torch.cat([ball.center for ball in balls]), torch.cat([ball.radius for ball in balls]))
    encodings = [Encoding(graph, low, high) for low, high in zip(regions.lower, regions.upper, strict=True)]
    least, most = ([encoding.minimum(np.array([sign])) for encoding in encodings] for sign in (1.0, -1.0))
    ends = [_checked(graph, shape, optima, sign) for optima, sign in ((least, 1), (most, -1))]
    return Problem(kind, w, rho, seed, graph, regions, *ends)


def measured(problem: Problem, method: str) -> pd.DataFrame:
    """A row for each eps: the mean gap of one method's bounds, their worst violation, the exact range, the seconds."""
    start = time.perf_counter()
    lower, upper = (end.squeeze(1) for end in bound(problem.network, problem.regions, method))
    seconds = time.perf_counter() - start
    gaps = torch.stack([problem.least - lower, upper - problem.most]).detach()
    numbers = {"gap": gaps.mean(0), "violation": -gaps.amin(0), "range": problem.most - problem.least}
    labels = {"kind": problem.kind, "W": problem.w, "rho": problem.rho, "seed": problem.seed, "method": method}
    return pd.DataFrame({"eps": EPS, **numbers, **labels, "seconds": seconds})


@contextmanager
def adjoint_steps(count: int) -> Iterator[None]:
    """Proofs with exactly so many iterations of the adjoint."""
    with patch.multiple(adjoint, _LIMIT=count, _TOLERANCE=0.0):
        yield


def truncated(problem: Problem, count: int, method: str = "crown-ibp") -> pd.DataFrame:
    """The rows of `measured` with so many iterations of the adjoint."""
    with adjoint_steps(count):
        return measured(problem, method).assign(steps=count)


def relative_gaps(frame: pd.DataFrame, by: list[str]) -> pd.Series:
    """The mean gap over the mean exact range."""
    sums = frame.groupby(by, sort=False)[["gap", "range"]].sum()
    return sums["gap"] / sums["range"]


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
    made = [first, nn.LeakyReLU(0.1), inject, FixedPoint(weight, 1, 1), nn.Flatten(), nn.Linear(units, 1)]
    for layer in made:
        if isinstance(layer, nn.Linear | nn.Conv2d):
            nn.init.normal_(layer.weight, 0, 1.5 * layer.weight[0].numel() ** -0.5)
    slopes = {nn.LeakyReLU: 0.1, FixedPoint: "equilibrium"}
    return Graph([Node(layer, (i,), slopes.get(type(layer))) for i, layer in enumerate(made)]).double().eval(), shape


def _checked(graph: Graph, shape: tuple[int, ...], optima: list[tuple[float, np.ndarray]], sign: int) -> Tensor:
    """The network's values [E] where the program's optima lie, which are close to what the program says."""
    claimed, places = zip(*optima, strict=True)
    values = evaluated(graph, torch.tensor(np.array(places)).view(-1, *shape)).squeeze(1)
    torch.testing.assert_close(values, sign * torch.tensor(claimed, dtype=torch.float64), rtol=1e-5, atol=1e-5)
    return values


def _print(title: str, frame: pd.DataFrame, column: str, by: list[str]) -> None:
    rest = frame.groupby(column, sort=False).agg({"violation": "max", "seconds": "mean"})
    summary = pd.DataFrame(
        {"gap": relative_gaps(frame, [column]), "worst violation": rest.violation, "seconds": rest.seconds}
    )
    print(f"\nGap over the exact range, {title}")
    print(relative_gaps(frame, [*by, column]).unstack(column, sort=False).to_string(float_format="%.4f"))
    print(summary.to_string(float_format="%.4g"), flush=True)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="networks of each kind; default: 3")
    parser.add_argument("--units", type=int, default=10, help="about how many at the equilibrium; default: 10")
    parser.add_argument("--rhos", type=float, nargs="+", default=RHOS, help="default: %(default)s")
    parser.add_argument("--by", nargs="+", choices=["kind", "W", "rho", "eps"], default=["W", "rho", "eps"])
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    grid = problems(options.seeds, options.units, options.rhos)
    print(f"{len(grid)} networks, {options.seeds} of each kind, about {options.units} units")
    by_method = pd.concat(measured(problem, method) for method in BOUNDS for problem in grid)
    _print("by method", by_method, "method", options.by)
    by_steps = pd.concat(truncated(problem, count) for count in STEPS for problem in grid)
    _print("of crown-ibp, by the adjoint's iterations", by_steps, "steps", options.by)


if __name__ == "__main__":
    main()
