"""`verify` on random small networks of every kind: no verdict differs from integer programs', proofs are confirmed.

Each ball is at the edge of robustness: of radii a fifth apart it has the last robust one, or the one after it.
"""

import functools
import itertools
import operator
from collections.abc import Callable, Iterable

import numpy as np
import pytest
import torch
from equilibria import solutions
from milp import Encoding, Graph, Node
from monotone import equilibria, random_monotone
from oracles import points_of
from torch import Tensor, nn

from cerdeq import Box, verify
from cerdeq.equilibrium import Equilibrium, FixedPoint, PeacemanRachford
from harness.checker.bounds import boxes
from harness.checker.bounds.network import read_network
from harness.checker.proofs.example import prove_rows

CLASSES = 3
SPEC = torch.tensor([[1.0, -1.0, 0.0], [1.0, 0.0, -1.0]]).double()[None]
RATIO, SMALLEST, LARGEST = 1.2, 32, -8  # radii are RATIO ** -number
LEAST, SOLVER = 1e-4, 1e-5  # margins that are tested; how far a solver's may be off


def chain(*layers: nn.Module) -> Graph:
    """Return layers one after the other."""
    slopes = {nn.ReLU: 0.0, FixedPoint: "equilibrium"}
    return Graph([Node(layer, (number,), slopes.get(type(layer))) for number, layer in enumerate(layers)])


def fully_connected(depth: int, rng: np.random.Generator) -> tuple[Graph, tuple[int, ...]]:
    sizes = [int(rng.integers(2, 13)), *rng.integers(6, 13, depth).tolist()]
    layers = [(nn.Linear(*pair), nn.ReLU()) for pair in itertools.pairwise(sizes)]
    return chain(*sum(layers, ()), nn.Linear(sizes[-1], CLASSES)), (sizes[0],)


def convolutional(rng: np.random.Generator) -> tuple[Graph, tuple[int, ...]]:
    side, channels = int(rng.integers(3, 5)), int(rng.integers(1, 3))
    first, second = nn.Conv2d(1, channels, 3, padding=1), nn.Conv2d(channels, 2, 2, stride=int(rng.integers(1, 3)))
    features = second(first(torch.zeros(1, 1, side, side))).numel()
    layers = first, nn.ReLU(), second, nn.ReLU(), nn.Flatten(), nn.Linear(features, CLASSES)
    return chain(*layers), (1, side, side)


def residual(rng: np.random.Generator) -> tuple[Graph, tuple[int, ...]]:
    inputs, units = int(rng.integers(2, 11)), int(rng.integers(5, 9))
    nodes = [Node(nn.Linear(inputs, units), (0,))]
    for _ in range(2):
        start = len(nodes)
        nodes += [Node(nn.ReLU(), (start,), 0.0), Node(nn.Linear(units, units), (start + 1,))]
        nodes += [Node(operator.add, (start, start + 2))]
    nodes += [Node(nn.ReLU(), (len(nodes),), 0.0), Node(nn.Linear(units, CLASSES), (len(nodes) + 1,))]
    return Graph(nodes), (inputs,)


def parametrised(parametrisation: str, rng: np.random.Generator) -> tuple[Graph, tuple[int, ...]]:
    """Return a network with an equilibrium, dense or a convolution, whose rho(|W|) is near 1 or far from it."""
    margin, kernel = float(rng.uniform(0.05, 0.6)), int(rng.integers(2))
    if kernel:
        shape, channels, inject, features = (1, 3, 3), 2, nn.Conv2d(1, 2, 3, padding=1), 18
    else:
        inputs, channels = int(rng.integers(2, 11)), int(rng.integers(6, 13))
        shape, inject, features = (inputs,), nn.Linear(inputs, channels), channels
    block = Equilibrium(channels, inject, 3 if kernel else None, parametrisation, margin, gain=None).eval()
    weight = block.recurrence.weight.detach()
    return chain(inject, FixedPoint(weight), nn.Flatten(), nn.Linear(features, CLASSES)), shape


def monotone(rng: np.random.Generator) -> tuple[Graph, tuple[int, ...]]:
    """Return a network with a strongly monotone equilibrium, solved by splitting."""
    inputs, units = int(rng.integers(2, 7)), int(rng.integers(5, 9))
    weight = torch.from_numpy(random_monotone(rng, units))
    layers = nn.Linear(inputs, units), FixedPoint(weight, PeacemanRachford()), nn.Linear(units, CLASSES)
    return chain(*layers), (inputs,)


KINDS: dict[str, Callable[[np.random.Generator], tuple[Graph, tuple[int, ...]]]] = {
    "one layer": lambda rng: fully_connected(1, rng),
    "two layers": lambda rng: fully_connected(2, rng),
    "three layers": lambda rng: fully_connected(3, rng),
    "convolutional": convolutional,
    "residual": residual,
    "perron": lambda rng: parametrised("perron", rng),
    "orthogonal": lambda rng: parametrised("orthogonal", rng),
    "monotone": monotone,
}


def random_network(number: int) -> tuple[Graph, Tensor, Tensor]:
    """Return a network, a point [1, ...], and margins of the class there, as a spec."""
    torch.manual_seed(number)
    graph, shape = list(KINDS.values())[number % len(KINDS)](np.random.default_rng(number))
    graph = graph.double().eval()
    for layer in graph.layers:
        if isinstance(layer, nn.Linear | nn.Conv2d):
            nn.init.normal_(layer.weight, 0, (2 / layer.weight[0].numel()) ** 0.5)
            nn.init.normal_(layer.bias, 0, 0.2)
    graph.requires_grad_(False)
    x = torch.rand(1, *shape, dtype=torch.float64)
    label = int(graph(x).argmax())
    return graph, x, SPEC.roll(label, dims=2)


@torch.no_grad()
def outputs(graph: Graph, x: Tensor) -> Tensor:
    """Return the outputs at points [n, ...], with equilibria solved by numpy."""
    values = [x]
    for node in graph.nodes:
        sources = [values[source] for source in node.sources]
        if isinstance(node.apply, FixedPoint) and node.apply.is_split:
            values.append(torch.from_numpy(equilibria(node.apply.weight.numpy(), sources[0].numpy())))
        elif node.slope == "equilibrium":
            values.append(solutions(node.apply.weight, *sources))
        else:
            values.append(node.apply(*sources))
    return values[-1]


def least_margin(graph: Graph, x: Tensor, spec: Tensor, radius: float) -> float:
    """Return the smallest margin over the ball, by integer programs."""
    encoding = Encoding(graph, x[0] - radius, x[0] + radius)
    return min(encoding.minimum(row)[0] for row in spec[0].numpy())


def ball_near_the_edge(graph: Graph, x: Tensor, spec: Tensor, is_robust: bool) -> tuple[Box, float]:
    """Return a ball that is robust or not, next to one that is the other, and its smallest margin."""

    @functools.cache
    def margin(number: int) -> float:
        return least_margin(graph, x, spec, RATIO**-number)

    def has_example(number: int) -> bool:
        """Return whether a point of the ball is adversarial. Random ones spare the integer programs of large balls."""
        points = points_of(Box(x, torch.full_like(x, RATIO**-number)), 100)[:, 0]
        return bool((outputs(graph, points) @ spec[0].T).min() < 0) or margin(number) < 0

    robust, other = SMALLEST, LARGEST  # numbers of radii
    while robust - other > 1:
        number = (robust + other) // 2
        robust, other = (robust, number) if has_example(number) else (number, other)
    number, step = (robust, 1) if is_robust else (other, -1)
    while abs(margin(number)) < LEAST:
        number += step
    return Box(x, torch.full_like(x, RATIO**-number)), margin(number)


def check(numbers: Iterable[int]) -> None:
    """Check that all of these networks are decided right, and that the checker confirms what is certified."""
    wrong = dict[int, object]()
    for number in numbers:
        graph, x, spec = random_network(number)
        region, margin = ball_near_the_edge(graph, x, spec, number // len(KINDS) % 2 == 0)
        result = verify(graph, region, spec, 60, certificates=True)
        (status,), lower = result.status, float(result.lower.min())
        if status != ("certified" if margin > 0 else "falsified") or lower > margin + SOLVER:
            wrong[number] = margin, result
        elif status == "certified":
            box = boxes.Box(region.center.numpy(), region.radius.numpy())
            tensors = {name: tensor.numpy() for name, tensor in result.certificates[0].items()}
            proof = prove_rows(read_network(graph), box, spec[0].numpy(), tensors or None)
            if not proof.proved_by:
                wrong[number] = proof
        else:
            point = result.counterexample
            inside = ((point >= region.lower) & (point <= region.upper)).all()
            if not (inside and (spec[0] @ outputs(graph, point)[0]).min() < 0):
                wrong[number] = point
    assert not wrong, wrong


def test_a_few_networks_of_each_kind_are_decided_right():
    """Those that take least. All but the last five are certified."""
    check((49, 51, 71, 84, 176, 258, 121, 125, 139, 174, 236))


@pytest.mark.slow
@pytest.mark.parametrize("part", range(20))
def test_a_thousand_networks_are_decided_right(part):
    check(range(50 * part, 50 * part + 50))
