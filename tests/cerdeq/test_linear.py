"""Linear bounds (crown-ibp, crown, alpha-crown) against exact optima, exact arithmetic, autograd and attacks."""

import copy
import itertools
import operator
from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from milp import Encoding, Graph, Node, reach
from oracles import DTYPES, Lambda, affine_extremes, assert_contains, dense_affine, fractions, points_of, random_box
from torch import nn

from cerdeq import Box, Equilibrium, LinfBall, bound, margin_spec
from cerdeq.bounds import (
    METHODS,
    Backward,
    Context,
    Interval,
    Operator,
    Pulled,
    UnsupportedOperator,
    affine,
    lower_bounds,
    methods,
    operators,
    register,
    trace,
)
from cerdeq.bounds.backward import linear_lower_bound
from cerdeq.bounds.forward import values_of
from cerdeq.bounds.linear import magnitude
from cerdeq.bounds.operators import TABLE
from cerdeq.bounds.relaxation import leaky_relu, lines
from cerdeq.bounds.tighten import tightened_values
from cerdeq.boxes import narrowed
from cerdeq.equilibrium import FixedPoint, adjoint, fold
from cerdeq.equilibrium.certificate import preactivation_box, verified_box

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")  # with even kernels

LINEAR = METHODS[1:]
LARGE = 2**30  # bytes


# ---------------------------------------------------------------------------------------------------------------------
# Small networks with every operator of the table


def relu(source, **options):
    return Node(nn.ReLU(**options), (source,), 0.0)


def leaky(source, slope, functional=False):
    apply = (lambda x: F.leaky_relu(x, slope)) if functional else nn.LeakyReLU(slope)
    return Node(apply, (source,), slope)


def pool(source, *args, **options):
    return Node(nn.MaxPool2d(*args, **options), (source,), "max")


def affine_node(apply, *sources):
    return Node(apply, sources)


def layers(*made, start=0):
    """A run of nodes, each of which reads the one before."""
    nodes = []
    for number, make in enumerate(made, start=start):
        nodes.append(make(number) if callable(make) and not isinstance(make, nn.Module) else affine_node(make, number))
    return nodes


def normed(layer):
    """A batch norm whose statistics and parameters are not the defaults."""
    with torch.no_grad():
        layer.running_mean.normal_()
        layer.running_var.uniform_(0.05, 3)
        if layer.affine:
            layer.weight.normal_()
            layer.bias.normal_()
    return layer


def after_conv(*options, shape=(2, 3, 3), outputs=3, **more):
    """Convolution, ReLU, flatten, linear."""

    def make():
        conv = nn.Conv2d(shape[0], outputs, *options, **more)
        features = conv(torch.zeros(1, *shape)).numel()
        return layers(conv, relu, nn.Flatten(), nn.Linear(features, 3))

    return make, shape


def with_tensors(function, **tensors):
    """A module from a function of x and of tensors, which become its parameters."""
    copied = {name: value.clone() for name, value in tensors.items()}
    return Lambda(lambda module, x: function(x, **{name: getattr(module, name) for name in tensors}), **copied)


def around(tested, shape=(4,), features=4, outputs=3, **tensors):
    """Linear (or pointwise convolution), ReLU, what is tested, ReLU, linear."""

    def make():
        first = nn.Linear(4, 4) if len(shape) == 1 else nn.Conv2d(shape[0], shape[0], 1)
        apply = with_tensors(tested, **tensors) if tensors else tested
        if isinstance(apply, nn.BatchNorm1d | nn.BatchNorm2d):
            normed(apply)
        return layers(first, relu, lambda n: affine_node(apply, n), relu, nn.Flatten(), nn.Linear(features, outputs))

    return make, shape


def leaky_layers(slope):
    return lambda: layers(
        nn.Linear(3, 4), lambda n: leaky(n, slope), nn.Linear(4, 3), lambda n: leaky(n, slope, True), nn.Linear(3, 2)
    ), (3,)  # fmt: skip


def shared():
    """One ReLU module at two places, one linear module at two, a value that is read three times."""
    act, layer = nn.ReLU(), nn.Linear(3, 3)
    return [
        affine_node(layer, 0),
        Node(act, (1,), 0.0),
        affine_node(layer, 2),
        Node(act, (3,), 0.0),
        affine_node(lambda a, b: a - b, 2, 4),
        affine_node(torch.add, 5, 2),
        relu(6),
        affine_node(nn.Linear(3, 2), 7),
    ]


def residual():
    return [
        affine_node(nn.Linear(3, 4), 0),
        relu(1),
        affine_node(nn.Linear(4, 4), 2),
        affine_node(operator.add, 3, 2),
        relu(4),
        affine_node(nn.Linear(4, 3), 5),
        affine_node(lambda a, b: torch.add(a, b, alpha=-0.7), 6, 0),
    ]


def dense():
    """Concatenations of all that came before."""
    return [
        affine_node(nn.Linear(2, 3), 0),
        relu(1),
        affine_node(lambda *v: torch.cat(v, 1), 0, 2),
        affine_node(nn.Linear(5, 2), 3),
        leaky(4, 0.1, functional=True),
        affine_node(lambda *v: torch.cat(v, dim=-1), 3, 5, 3),
        affine_node(nn.Linear(12, 3), 6),
        relu(7),
        affine_node(nn.Linear(3, 2), 8),
    ]


def dense_images():
    return [
        affine_node(nn.Conv2d(1, 2, 2, padding=1), 0),
        relu(1),
        affine_node(nn.Conv2d(1, 1, 2, padding=1), 0),
        affine_node(lambda *v: torch.cat(v, 1), 2, 3),
        pool(4, 2, stride=2),
        affine_node(lambda x: x.view(x.size(0), -1), 5),
        affine_node(nn.Linear(3, 2), 6),
    ]


def broadcast():
    """[B, 2, 1, 1] + [B, 2, 2, 2], both of them bounded."""
    return [
        affine_node(nn.AdaptiveAvgPool2d(1), 0),
        relu(1),
        relu(0),
        affine_node(lambda a, b: a + b, 2, 3),
        affine_node(lambda a, b: b - a, 2, 4),
        relu(5),
        affine_node(lambda a, b: a - 2 * b, 2, 6),
        affine_node(nn.Flatten(), 7),
        affine_node(nn.Linear(8, 2), 8),
    ]


def nothing_left():
    """x - x, 0 y, and a concatenation of a value with itself."""
    return [
        affine_node(nn.Linear(3, 3), 0),
        relu(1),
        affine_node(lambda x: x - x, 2),
        affine_node(lambda x: x * 0, 2),
        affine_node(lambda x, y, z: torch.cat([z, x, y, z], 1), 3, 4, 2),
        affine_node(lambda x: x + x, 5),
        relu(6),
        affine_node(nn.Linear(12, 2), 7),
    ]


def in_place():
    def augmented(x):
        x = x * 1.5
        x += 0.25
        x *= -2
        x -= 0.1
        x /= 3
        return x

    return layers(
        nn.Linear(3, 4), lambda n: relu(n, inplace=True), nn.Linear(4, 4), lambda n: affine_node(augmented, n),
        lambda n: Node(lambda x: F.relu(x, inplace=True), (n,), 0.0), nn.Linear(4, 2),
    )  # fmt: skip


IMAGE, SMALL = (2, 3, 3), (2, 2, 2)
CONSTANT = torch.tensor([0.7, -1.3, 2.1, 0.0], dtype=torch.float64)
MATRIX = torch.linspace(-1, 1.5, 16, dtype=torch.float64).view(4, 4)
PLANES = torch.tensor([0.5, -2.0], dtype=torch.float64).view(2, 1, 1)
NETWORKS = {
    "deep": (
        lambda: layers(nn.Linear(2, 4), relu, nn.Linear(4, 4), relu, nn.Linear(4, 3), relu, nn.Linear(3, 2)),
        (2,),
    ),
    "affine": (lambda: layers(nn.Linear(3, 4), nn.Linear(4, 2, bias=False)), (3,)),
    "relu last": (lambda: layers(nn.Linear(3, 4), relu, nn.Linear(4, 3), relu), (3,)),
    "relu first": (lambda: layers(relu, nn.Linear(3, 3), relu, nn.Linear(3, 2)), (3,)),
    "convolution": after_conv(2),
    "convolution padded": after_conv(3, padding=1, outputs=2),
    "convolution stride": after_conv(2, stride=2, padding=1),
    "convolution with a rest": after_conv(2, stride=2, shape=(1, 5, 4)),
    "convolution uneven": after_conv((3, 2), stride=(1, 2), padding=(2, 1), outputs=2, shape=(1, 3, 4)),
    "convolution dilated": after_conv(2, dilation=2, padding=1),
    "convolution groups": after_conv(2, groups=2, outputs=4, bias=False),
    "convolution depthwise": after_conv(3, groups=2, outputs=2, padding=1),
    "convolution same": after_conv((2, 3), padding="same", outputs=2),
    "convolution same dilated": after_conv(2, padding="same", dilation=(1, 3), outputs=1, shape=(2, 2, 4)),
    "convolution valid": after_conv(2, padding="valid"),
    "linear function": around(lambda x, w, b: F.linear(x, w.abs() - 0.6, b), w=MATRIX, b=CONSTANT),
    "batch norm 1d": around(nn.BatchNorm1d(4)),
    "batch norm 2d": around(nn.BatchNorm2d(2), SMALL, 8),
    "leaky 0.1": leaky_layers(0.1),
    "leaky 1.5": leaky_layers(1.5),
    "leaky -0.5": leaky_layers(-0.5),
    "leaky -3": leaky_layers(-3),
    "leaky 1": leaky_layers(1),
    "average pool": around(nn.AvgPool2d(2, stride=1, padding=1), SMALL, 18, outputs=2),
    "average pool function": around(
        lambda x: F.avg_pool2d(x, 2, 2, ceil_mode=True, count_include_pad=False), IMAGE, 8, outputs=2
    ),
    "average pool divisor": around(nn.AvgPool2d(2, divisor_override=-3), IMAGE, 2),
    "adaptive average pool": around(nn.AdaptiveAvgPool2d((2, 1)), IMAGE, 4),
    "max pool": (lambda: layers(nn.Conv2d(1, 2, 1), lambda n: pool(n, 2), nn.Flatten(), nn.Linear(8, 2)), (1, 4, 4)),
    "max pool overlapping": (
        lambda: layers(nn.Conv2d(1, 2, 2), lambda n: pool(n, 2, stride=1), relu, nn.Flatten(), nn.Linear(2, 2)),
        (1, 3, 3),
    ),
    "max pool padded": (
        lambda: layers(nn.Conv2d(1, 1, 1), lambda n: pool(n, 3, stride=2, padding=1), nn.Flatten(), nn.Linear(4, 2)),
        (1, 3, 3),
    ),
    "max pool dilated": (lambda: layers(lambda n: pool(n, 2, stride=1, dilation=2), nn.Flatten()), (1, 3, 4)),
    "max pool ceil": (
        lambda: layers(lambda n: pool(n, 2, stride=2, padding=1, ceil_mode=True), nn.Flatten(), nn.Linear(4, 2)),
        (1, 3, 3),
    ),
    "max pool uneven": (
        lambda: layers(lambda n: Node(lambda x: F.max_pool2d(x, (1, 2), (2, 1)), (n,), "max"), nn.Flatten(),
                       nn.Linear(4, 3), relu, nn.Linear(3, 1)),
        (1, 3, 3),
    ),
    "max pools": (
        lambda: layers(lambda n: pool(n, 2, stride=1), nn.Conv2d(1, 1, 1), lambda n: pool(n, 2, stride=1), nn.Flatten(),
                       nn.Linear(1, 2)),
        (1, 3, 3),
    ),
    "reshape": around(lambda x: x.reshape(x.size(0), 4, 2).flatten(1, -1), SMALL, 8),
    "view": around(lambda x: x.view(x.shape[0], -1), SMALL, 8),
    "constants": around(lambda x, c: 1 - (2 - (c - x) * 3 / c.add(2.5)) + -x * c, c=CONSTANT),
    "constants on images": around(lambda x, c: torch.sub(c, c * x, alpha=0.3) / -0.5, SMALL, 8, c=PLANES),
    "negative": around(torch.neg),
    "dropout": around(nn.Dropout(0.9)),
    "dropout 2d": around(nn.Dropout2d(0.9), SMALL, 8),
    "identity": around(nn.Identity()),
    "constant in a concatenation": around(
        lambda x, c: torch.cat([x, c.expand(x.size(0), -1)], 1), features=8, c=CONSTANT
    ),
    "residual": (residual, (3,)),
    "dense": (dense, (2,)),
    "dense images": (dense_images, (1, 2, 2)),
    "shared": (shared, (3,)),
    "broadcast": (broadcast, SMALL),
    "nothing left": (nothing_left, (3,)),
    "in place": (in_place, (3,)),
}  # fmt: skip


def network(name, seed=0, dtype=torch.float64):
    torch.manual_seed(seed)
    make, shape = NETWORKS[name]
    graph = Graph(make()).to(dtype).eval()
    for module in graph.modules():
        if hasattr(module, "weight") and not isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(module.weight, 0, module.weight[0].numel() ** -0.5 * 1.5)
    return graph, shape


def specs(graph, box, rows=2):
    with torch.no_grad():
        outputs = graph(box.center.clone()).flatten(1).shape[1]
    return torch.randn(len(box.center), rows, outputs, dtype=box.center.dtype)


def optima(graph, box, spec, **options):
    """Exact minima and maxima [B, K] of spec . graph over the box, and the inputs where they lie."""
    found = []
    low, high = box.center - box.radius, box.center + box.radius
    for example in range(len(spec)):
        encoding = Encoding(graph, low[example], high[example], **options)
        found.append([[encoding.minimum(sign * row.numpy()) for row in spec[example]] for sign in (1, -1)])
    values = torch.tensor([[[value for value, _ in row] for row in signs] for signs in found], dtype=torch.float64)
    places = torch.tensor(np.array([[[x for _, x in row] for row in signs] for signs in found]))
    return values[:, 0], -values[:, 1], places.flatten(1, 2)


def evaluated(graph, spec, inputs, shape):
    """spec . graph at inputs [B, S, n]: [S, B, K]."""
    with torch.no_grad():
        return torch.stack(
            [torch.einsum("bkn,bn->bk", spec, graph(part.reshape(-1, *shape)).flatten(1)) for part in inputs.unbind(1)]
        )


# ---------------------------------------------------------------------------------------------------------------------
# Exact optima


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 6))])
@pytest.mark.parametrize("name", NETWORKS)
def test_bounds_enclose_the_exact_optima(name, seed):
    graph, shape = network(name, seed)
    box = random_box(1, *shape)
    spec = specs(graph, box)
    least, most, places = optima(graph, box, spec)
    values = evaluated(graph, spec, places, shape)
    # The oracle itself: the optimum is a value of the network.
    torch.testing.assert_close(values.amin(0), least, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(values.amax(0), most, rtol=1e-5, atol=1e-5)
    tolerance = 1e-6 * (1 + torch.maximum(least.abs(), most.abs()))
    for method in METHODS:
        lower, upper = bound(graph, box, method, spec)
        assert (lower <= least + tolerance).all() and (most - tolerance <= upper).all(), method
        assert_contains(lower, upper, values)


@pytest.mark.parametrize("name", NETWORKS)
def test_bounds_without_spec_are_those_of_the_outputs(name):
    graph, shape = network(name)
    box = random_box(3, *shape)
    with torch.no_grad():
        values = torch.stack([graph(x) for x in points_of(box, 40)])
    outputs = values[0].flatten(1).shape[1]
    identity = torch.eye(outputs, dtype=torch.float64).expand(3, outputs, outputs)
    lower, upper = bound(graph, box, "crown")
    assert lower.shape == upper.shape == values.shape[1:]
    assert_contains(lower, upper, values)
    below, above = bound(graph, box, "crown", identity)
    torch.testing.assert_close(lower.flatten(1), below, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(upper.flatten(1), above, rtol=1e-9, atol=1e-9)


def test_affine_networks_have_exact_bounds():
    graph, _ = network("affine")
    box, spec = random_box(3, 3), torch.randn(3, 2, 2, dtype=torch.float64)
    matrix, offset = dense_affine(graph, (3,))
    ends = [affine_extremes(row @ matrix, row @ offset, box) for row in spec]
    for method in LINEAR:
        lower, upper = bound(graph, box, method, spec)
        for example, (least, most) in enumerate(ends):
            torch.testing.assert_close(lower[example], least[example], rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(upper[example], most[example], rtol=1e-12, atol=1e-12)


def test_every_operator_is_in_a_network():
    programs = [trace(network(name)[0], linear=True) for name in NETWORKS]
    found = {step.record.name for program in programs for step in program.steps if step.record}
    assert found >= {record.name for record in TABLE}


@pytest.mark.parametrize("seed", range(4))
def test_equilibrium_bounds_enclose_the_exact_optima(seed):
    torch.manual_seed(seed)
    layer = contractive(5, rate=0.3 + 0.2 * seed)
    graph = Graph([
        affine_node(nn.Linear(3, 5), 0),
        Node(layer, (1,), "equilibrium"),
        affine_node(nn.Linear(5, 4), 2),
        relu(3),
        affine_node(nn.Linear(4, 2), 4),
    ]).double().eval()  # fmt: skip
    box = random_box(2, 3)
    spec = specs(graph, box)
    least, most, places = optima(graph, box, spec)
    values = evaluated(graph, spec, places, (3,))
    torch.testing.assert_close(values.amin(0), least, rtol=1e-5, atol=1e-5)
    tolerance = 1e-6 * (1 + torch.maximum(least.abs(), most.abs()))
    before = None
    for method in METHODS:
        lower, upper = bound(graph, box, method, spec)
        assert (lower <= least + tolerance).all() and (most - tolerance <= upper).all(), method
        assert before is None or ((before[0] <= lower).all() and (upper <= before[1]).all())
        before = lower, upper


def contractive(size, rate=0.7, kernel=None):
    """A FixedPoint whose |W| has the spectral radius `rate` (a bound of it for a convolution)."""
    weight = torch.randn(size, size, *(() if kernel is None else (kernel, kernel)), dtype=torch.float64)
    matrix = weight.abs() if kernel is None else weight.abs().flatten(2).sum(2)
    weight *= rate / torch.linalg.eigvals(matrix).abs().max()
    return FixedPoint(weight, 30, 30).eval()


# ---------------------------------------------------------------------------------------------------------------------
# The LP relaxation over the same boxes


PLAIN = [  # one step a node
    "deep", "relu last", "residual", "dense", "shared", "leaky 0.1", "leaky 1.5", "leaky -0.5", "convolution stride",
    "max pool overlapping", "max pools",
]  # fmt: skip


def boxes_of(values):
    return {
        number: [end.detach()[0].flatten().double().numpy() for end in (value.box.lower, value.box.upper)]
        for number, value in enumerate(values)
    }


@pytest.mark.parametrize("name", PLAIN)
def test_the_relaxation_as_a_linear_program_is_never_below_crown(name):
    """CROWN is a feasible point of its dual. The program has one step a node here, so that numbers agree."""
    graph, shape = network(name, seed=3)
    box = random_box(1, *shape)
    spec = specs(graph, box, rows=3)
    program, x = trace(graph, linear=True), Interval(box.center, box.radius)
    assert [step.sources for step in program.steps] == [node.sources for node in graph.nodes]
    with torch.no_grad():
        for method, values in [
            ("crown-ibp", values_of(program, x, Context(sound=True))),
            ("crown", tightened_values(program, x, LARGE)),
        ]:
            least, _, _ = optima(graph, box, spec, boxes=boxes_of(values))
            coefficients = spec.unflatten(2, values[program.output].center.shape[1:])
            found = linear_lower_bound(program, values, coefficients, program.output, Backward(sound=True))
            tolerance = 1e-7 * (1 + least.abs())
            assert (found <= least + tolerance).all(), method
            assert (lower_bounds(program, x, spec, method) <= least + tolerance).all(), method
        assert (lower_bounds(program, x, spec, "alpha-crown") <= least + tolerance).all()


def test_optimised_slopes_close_most_of_the_gap_to_the_linear_program():
    gaps = []
    for seed in range(6):
        graph, shape = network("deep", seed)
        box = random_box(1, *shape)
        spec = specs(graph, box, rows=3)
        program, x = trace(graph, linear=True), Interval(box.center, box.radius)
        with torch.no_grad():
            best, _, _ = optima(graph, box, spec, boxes=boxes_of(tightened_values(program, x, LARGE)))
        crown, alpha = (lower_bounds(program, x, spec, method) for method in ("crown", "alpha-crown"))
        gaps.append(torch.stack([best - crown, best - alpha]).sum((1, 2)))
    crown, alpha = torch.stack(gaps).sum(0)
    assert crown > 0.1 and alpha < 0.3 * crown, (crown, alpha)


# ---------------------------------------------------------------------------------------------------------------------
# Order


@pytest.mark.parametrize("name", NETWORKS)
def test_each_method_is_never_looser_than_those_before(name):
    """Without tolerance; every other network in float32 and without a spec."""
    dtype = DTYPES[list(NETWORKS).index(name) % 2]
    graph, shape = network(name, seed=7, dtype=dtype)
    box = random_box(2, *shape, scale=0.7, dtype=dtype)
    spec = None if dtype == torch.float32 else specs(graph, box, rows=3)
    ends = [bound(graph, box, method, spec) for method in METHODS]
    for (lower, upper), (lower_after, upper_after) in itertools.pairwise(ends):
        assert (lower <= lower_after).all() and (upper_after <= upper).all()


def test_each_method_is_strictly_tighter_somewhere():
    gains = torch.zeros(3)
    for seed in range(8):
        graph, shape = network("deep", seed)
        box = random_box(4, *shape)
        widths = torch.stack([(upper - lower).sum() for lower, upper in (bound(graph, box, m) for m in METHODS)])
        gains += (widths[1:] < widths[:-1] * 0.99).float()
    assert (gains >= 3).all(), gains


def test_a_target_stops_the_search_but_not_the_proof():
    graph, shape = network("deep", 1)
    box = random_box(6, *shape)
    spec = specs(graph, box, rows=3)
    program, x = trace(graph, linear=True), Interval(box.center, box.radius)
    by_ibp_boxes, crown = (lower_bounds(program, x, spec, method) for method in ("crown-ibp", "crown"))
    full = lower_bounds(program, x, spec, "alpha-crown")
    least, _, _ = optima(graph, box, spec)
    for target in (-1e9, full.median().item(), 1e9):
        some = lower_bounds(program, x, spec, "alpha-crown", target)
        assert (by_ibp_boxes <= some).all() and (some <= least + 1e-6).all()
        proved = (some > target).all(1)
        assert (crown[~proved] <= some[~proved]).all()
        assert (proved >= (full > target).all(1)).all()
    torch.testing.assert_close(some, full)
    torch.testing.assert_close(lower_bounds(program, x, spec, "alpha-crown", -1e9), by_ibp_boxes, rtol=0, atol=0)


# ---------------------------------------------------------------------------------------------------------------------
# Random architectures against attacks


class Builder:
    """Grows a random graph. values: (number, shape) of each value so far."""

    def __init__(self, random, shape):
        self.random, self.nodes, self.values = random, [], [(0, shape)]

    def add(self, apply, *sources, slope=None):
        self.nodes.append(Node(apply, sources, slope))
        inputs = [torch.zeros(1, *self.values[source][1]) for source in sources]
        with torch.no_grad():
            apply = apply.eval() if isinstance(apply, nn.Module) else apply
            self.values.append((len(self.nodes), tuple(apply(*inputs).shape[1:])))

    def grow(self):
        random = self.random
        last, shape = self.values[-1]
        like = [number for number, other in self.values if other == shape]
        joined = [n for n, other in self.values if len(other) == len(shape) and other[1:] == shape[1:]]
        factor = random.choice([-1.5, 0.0, 0.3])
        slope = random.choice([0.0, 0.0, 0.1, 1.5, -0.5])
        choices = [
            lambda: self.add(nn.LeakyReLU(slope), last, slope=slope),
            lambda: self.add(nn.ReLU(), last, slope=0.0),
            lambda: self.add(operator.add, last, random.choice(like)),
            lambda: self.add(operator.sub, random.choice(like), last),
            lambda: self.add(lambda x: factor - x * factor / 2, last),
            lambda: self.add(lambda *v: torch.cat(v, 1), last, random.choice(joined)),
        ]
        if len(shape) == 1:
            choices += [lambda: self.add(nn.Linear(shape[0], random.randint(1, 4)), last)] * 3
            choices += [lambda: self.add(normed(nn.BatchNorm1d(shape[0])), last)]
        else:
            choices += [self.conv] * 3 + [lambda: self.add(normed(nn.BatchNorm2d(shape[0])), last)]
            if min(shape[1:]) > 1:
                choices += [
                    lambda: self.add(nn.MaxPool2d(2, random.randint(1, 2), random.randint(0, 1)), last, slope="max"),
                    lambda: self.add(nn.AvgPool2d(2, random.randint(1, 2), random.randint(0, 1)), last),
                    lambda: self.add(nn.Flatten(), last),
                ]
        random.choice(choices)()

    def conv(self):
        random = self.random
        last, (channels, height, width) = self.values[-1]
        groups = channels if random.random() < 0.3 else 1
        padding = random.randint(0, 1)
        kernel = random.randint(1, min(2, height + 2 * padding, width + 2 * padding))
        dilation = 2 if padding == 1 and kernel == 2 and min(height, width) > 1 else 1
        layer = nn.Conv2d(
            channels, groups * random.randint(1, 2), kernel, random.randint(1, 2), padding, dilation, groups
        )
        self.add(layer, last)

    def graph(self):
        last, shape = self.values[-1]
        if len(shape) > 1:
            self.add(nn.Flatten(), last)
        self.add(nn.Linear(self.values[-1][1][0], 2), len(self.nodes))
        return Graph(self.nodes).eval()


@st.composite
def cases(draw):
    """A network, its input's shape, a box and a spec."""
    random = draw(st.randoms(use_true_random=False))
    torch.manual_seed(draw(st.integers(0, 2**20)))
    shape = draw(st.sampled_from([(3,), (1, 3, 3), (2, 2, 3)]))
    builder = Builder(random, shape)
    for _ in range(draw(st.integers(0, 7))):
        builder.grow()
    graph = builder.graph()
    scale = 10.0 ** draw(st.integers(-3, 3))
    with torch.no_grad():
        for parameter in graph.parameters():
            parameter.mul_(scale if draw(st.booleans()) else 1.0)
    dtype = draw(st.sampled_from(DTYPES))
    eps = draw(st.sampled_from([0.0, 1e-6, 0.01, 0.3, 3.0]))
    size = 10.0 ** draw(st.integers(-3, 3))
    center = size * torch.randn(2, *shape, dtype=dtype)
    return graph.to(dtype), shape, Box(center, torch.full_like(center, size * eps))


@settings(max_examples=80, deadline=None, derandomize=True, database=None)
@given(cases())
def test_no_attack_beats_a_bound(case):
    graph, shape, box = case
    spec = torch.cat([torch.eye(2), torch.tensor([[1.0, -1.0], [0.0, 0.0]])]).to(box.center).expand(2, 4, 2)
    ends = [bound(graph, box, method, spec) for method in METHODS]
    wide = copy.deepcopy(graph).double()
    exact = Box(box.center.double(), box.radius.double())
    points = torch.cat([points_of(exact, 24), attacked(wide, spec.double(), exact)])
    values = evaluated(wide, spec.double(), points.transpose(0, 1), shape)
    size = 2 * reach(wide, exact).max(1).values
    for (lower, upper), method in zip(ends, METHODS, strict=True):
        assert not (lower.double() - 1e-13 * size[:, None] > values).any(), method
        assert not (upper.double() + 1e-13 * size[:, None] < values).any(), method
        assert lower.isfinite().all() and upper.isfinite().all()
        if not box.radius.any():
            rounding = 1e4 * torch.finfo(lower.dtype).eps * size[:, None]
            assert (upper.double() - lower.double() <= rounding + 1e-30).all(), method


def attacked(graph, spec, box, steps=4):
    """Ends of a few signed gradient steps, towards the minimum and the maximum of each row: [2 K, B, ...]."""
    found = []
    for row, sign in itertools.product(range(spec.shape[1]), (1, -1)):
        x = box.center.clone()
        for step in range(steps):
            x.requires_grad_()
            loss = torch.einsum("bn,bn->", spec[:, row], graph(x * 1.0))
            (gradient,) = torch.autograd.grad(loss, x)
            x = x.detach() - sign * box.radius * gradient.sign() / (1 if step == 0 else step)
            x = torch.minimum(torch.maximum(x, box.center - box.radius), box.center + box.radius)
        found.append(x)
    return torch.stack(found)


@pytest.mark.parametrize("name", NETWORKS)
def test_bounds_of_points_are_the_forward_pass_and_its_rounding(name):
    """Judged by float64: with a radius of 0 a rounding error of float32 that is not counted shows."""
    for dtype, method in zip(DTYPES, ("alpha-crown", "crown"), strict=True):
        graph, shape = network(name, seed=5, dtype=dtype)
        x = torch.randn(8, *shape, dtype=dtype)
        lower, upper = bound(graph, Box(x, torch.zeros_like(x)), method)
        wide = copy.deepcopy(graph).double()
        with torch.no_grad():
            value = wide(x.double())
        size = reach(wide, Box(x.double(), torch.zeros_like(x).double())).view_as(value)
        assert ((lower - 1e-13 * size <= value) & (value <= upper + 1e-13 * size)).all()
        assert (upper - lower <= 4000 * torch.finfo(dtype).eps * (size + 1)).all()


# ---------------------------------------------------------------------------------------------------------------------
# Rounding


def exact_value(model, x):
    """A chain of linear layers and (leaky) ReLUs at a point of Fractions, exactly."""
    for layer in model:
        if isinstance(layer, nn.Linear):
            offset = [Fraction(0)] * layer.out_features if layer.bias is None else fractions(layer.bias)
            rows = fractions(layer.weight)
            x = [sum((w * v for w, v in zip(row, x, strict=True)), b) for row, b in zip(rows, offset, strict=True)]
        else:
            slope = Fraction(getattr(layer, "negative_slope", 0.0))
            x = [v if v >= 0 else slope * v for v in x]
    return x


def exact_points(box, inside=3):
    """All corners of a box [1, n], and some points inside, exactly."""
    center, radius = fractions(box.center[0]), fractions(box.radius[0])
    signs = list(itertools.product((-1, 1), repeat=len(center)))
    signs += [[Fraction(v) for v in row] for row in (2 * torch.rand(inside, len(center)) - 1).tolist()]
    return [[c + s * r for c, s, r in zip(center, row, radius, strict=True)] for row in signs]


def assert_exactly_inside(model, box, method, spec=None, finite=True):
    lower, upper = bound(model, box, method, spec)
    if finite:
        assert lower.isfinite().all() and upper.isfinite().all()
    for point in exact_points(box):
        values = exact_value(model, point)
        if spec is not None:
            values = [sum(s * v for s, v in zip(row, values, strict=True)) for row in fractions(spec[0])]
        for low, value, high in zip(lower[0].tolist(), values, upper[0].tolist(), strict=True):
            assert low != float("inf") and high != -float("inf")
            assert not (np.isfinite(low) and Fraction(low) > value), float(Fraction(low) - value)
            assert not (np.isfinite(high) and Fraction(high) < value), float(value - Fraction(high))


@pytest.mark.parametrize("method", LINEAR)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", range(6))
def test_bounds_contain_the_exact_values_of_small_networks(seed, dtype, method):
    torch.manual_seed(seed)
    act = nn.ReLU() if seed % 2 else nn.LeakyReLU([0.1, 1.7, -0.3][seed // 2])
    model = nn.Sequential(nn.Linear(3, 5), act, nn.Linear(5, 4), act, nn.Linear(4, 2)).to(dtype).eval()
    box = random_box(1, 3, scale=10.0 ** -(2 * seed), dtype=dtype)
    assert_exactly_inside(model, box, method)
    assert_exactly_inside(model, box, method, torch.randn(1, 3, 2, dtype=torch.float64))


@pytest.mark.parametrize("method", LINEAR)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", range(4))
def test_bounds_contain_the_exact_value_where_all_cancels(seed, dtype, method):
    """Pairs of weights that differ in the last digit: all that is left is rounding."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(2, 10), nn.ReLU(), nn.Linear(10, 6), nn.LeakyReLU(0.3), nn.Linear(6, 2))
    model = model.to(dtype).eval()
    with torch.no_grad():
        for layer in model[::2]:
            half = layer.in_features // 2
            layer.weight[:, half : 2 * half] = -layer.weight[:, :half] * (1 + torch.finfo(dtype).eps)
            layer.bias.mul_(1e-6)
        model[0].weight[5:] = model[0].weight[:5]
        model[0].bias[5:] = model[0].bias[:5]
        model[2].weight[3:] = model[2].weight[:3]
        model[2].bias[3:] = model[2].bias[:3]
    point = torch.rand(1, 1, dtype=dtype).expand(1, 2)
    for radius in (0.0, 1e-9, 1e-3, 1.0):
        assert_exactly_inside(model, Box(point, torch.full_like(point, radius)), method)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", range(3))
def test_affine_networks_contain_their_exact_optimum_and_little_more(seed, dtype):
    """Linear layers over a convolution: the optimum is rational, and linear bounds have nothing to relax."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(1, 2, 2), nn.Flatten(), nn.Linear(8, 6), nn.Linear(6, 5), nn.Linear(5, 2))
    model = model.to(dtype).eval()
    with torch.no_grad():
        model[3].weight[:, 3:] = -model[3].weight[:, :3]
        model[2].weight[3:] = model[2].weight[:3]
    box = random_box(1, 1, 3, 3, dtype=dtype)
    matrix, _ = dense_affine(lambda x: F.conv2d(x, model[0].weight), (1, 3, 3), dtype)
    merged, offset = fractions(matrix), [b for b in fractions(model[0].bias) for _ in range(4)]
    for layer in model[2:]:
        rows = fractions(layer.weight)
        offset = [
            sum((w * o for w, o in zip(row, offset, strict=True)), b)
            for row, b in zip(rows, fractions(layer.bias), strict=True)
        ]
        merged = [[sum(w * m[i] for w, m in zip(row, merged, strict=True)) for i in range(9)] for row in rows]
    center, radius = fractions(box.center[0].flatten()), fractions(box.radius[0].flatten())
    ends = []
    for row, b in zip(merged, offset, strict=True):
        middle = sum((w * c for w, c in zip(row, center, strict=True)), b)
        spread = sum(abs(w) * r for w, r in zip(row, radius, strict=True))
        ends.append((middle - spread, middle + spread))
    for method in LINEAR:
        lower, upper = bound(model, box, method)
        for (least, most), low, high in zip(ends, lower[0].tolist(), upper[0].tolist(), strict=True):
            room = Fraction(2000 * torch.finfo(dtype).eps)
            assert least - room <= Fraction(low) <= least and most <= Fraction(high) <= most + room


@pytest.mark.parametrize("method", LINEAR)
@pytest.mark.parametrize(
    "scales", [(1e-20, 1e20), (1e20, 1e-20), (1e-20, 1, 1e20), (1e10, 1e-20, 1e10), (1e-15, 1e-15), (1e15, 1e15)]
)
def test_weights_of_extreme_scales_contain_the_exact_values(scales, method):
    torch.manual_seed(1)
    model = nn.Sequential(*[part for _ in scales for part in (nn.Linear(3, 3), nn.ReLU())][:-1]).eval()
    with torch.no_grad():
        for layer, scale in zip(model[::2], scales, strict=True):
            layer.weight.mul_(scale)
            layer.bias.mul_(scale)
    for size in (1e-3, 1.0, 1e3):
        assert_exactly_inside(model, random_box(1, 3, scale=size, dtype=torch.float32), method)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scales", [(1e-20, 1e-25), (1e-30, 1e-30, 1e30), (1e30, 1e30), (1e30, 1e30, 1e-30)])
def test_underflow_and_overflow_are_never_a_wrong_bound(scales, method):
    torch.manual_seed(2)
    model = nn.Sequential(*[part for _ in scales for part in (nn.Linear(2, 2), nn.ReLU())][:-1]).eval()
    with torch.no_grad():
        for layer, scale in zip(model[::2], scales, strict=True):
            layer.weight.abs_().mul_(scale)
            layer.bias.zero_()
    for size in (1e-20, 1.0, 1e20):
        box = Box(torch.full((1, 2), size), torch.full((1, 2), size / 2))
        assert_exactly_inside(model, box, method, finite=False)


# ---------------------------------------------------------------------------------------------------------------------
# The lines around a leaky ReLU, in exact arithmetic


SLOPES = [0.0, 0.1, 1.0, 1.7, -0.3, -2.0, 1e-3]


def wild_box(count, dtype):
    """Centres and radii of scales 1e-30 to 1e30, most of the boxes about 0."""
    exponents = 60 * torch.rand(count, 1, dtype=torch.float64) - 30
    center = torch.randn(count, 1, dtype=torch.float64) * 10**exponents
    ratio = 10 ** (
        torch.randn(count, 1, dtype=torch.float64) * torch.tensor([0.1, 1.0, 5.0]).repeat(count)[:count, None]
    )
    radius = (center.abs() * ratio).clamp(max=1e36)
    radius[::7] = 0
    return Box(center.to(dtype), radius.to(dtype))


def leaky_of(p, slope):
    return p if p >= 0 else Fraction(slope) * p


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("slope", SLOPES)
def test_lines_enclose_the_activation_exactly(slope, dtype):
    """The offset makes up for the rounded slope of the chord; the free line is off by the rounding of its slope."""
    box = wild_box(150, dtype)
    share = torch.rand(150, 2, 1, dtype=dtype)
    share[::5], share[1::5] = 0, 1
    around = lines(Backward(sound=True, step="here", slopes={"here": share}), box, slope)
    eps = Fraction(2 * torch.finfo(dtype).eps)
    assert around.convex == (slope <= 1)
    for n in range(150):
        c, r = Fraction(box.center[n].item()), Fraction(box.radius[n].item())
        chord, offset = (Fraction(part[n].item()) for part in (around.slope, around.offset))
        for p in [c - r, c + r] + [Fraction(0)] * (c - r < 0 < c + r):
            room = 0 if c - r < 0 < c + r else eps * abs(p) * max(1, abs(Fraction(slope)))
            value = leaky_of(p, slope)
            gap = chord * p + offset - value
            assert (gap if around.convex else -gap) >= -room, (c, r, p, float(gap))
            for row in range(2):
                gap = value - Fraction(around.free[n, row].item()) * p
                room = eps * abs(p) * max(1, abs(Fraction(slope)))
                assert (gap if around.convex else -gap) >= -room, (c, r, p, float(gap))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("slope", SLOPES)
def test_the_leaky_relu_rule_is_sound_in_exact_arithmetic(slope, dtype):
    box = wild_box(100, dtype)
    coefficients = torch.cat([torch.rand(100, 1, 1), -torch.rand(100, 1, 1)], dim=1).to(dtype) * 3
    for shares in ({}, {"here": torch.rand(100, 2, 1, dtype=dtype)}):
        ctx = Backward(sound=True, step="here", slopes=shares)
        result = leaky_relu(ctx, coefficients, Interval(box.center, box.radius), slope)
        assert result.constant.isfinite().all()
        for n, k in itertools.product(range(100), range(2)):
            c, r = Fraction(box.center[n].item()), Fraction(box.radius[n].item())
            a, pulled = Fraction(coefficients[n, k].item()), Fraction(result.coefficients[0][n, k].item())
            constant = Fraction(result.constant[n, k].item())
            for p in [c - r, c + r] + [Fraction(0)] * (c - r < 0 < c + r):
                assert pulled * p + constant <= a * leaky_of(p, slope), (n, k, float(p))


# ---------------------------------------------------------------------------------------------------------------------
# Not a number, infinity, overflow


def deep(dtype=torch.float64):
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).to(dtype).eval()


def with_pool(dtype=torch.float64):
    parts = [nn.Conv2d(1, 2, 2, padding=1), nn.LeakyReLU(0.2), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 2)]
    return nn.Sequential(*parts).to(dtype).eval()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("layer", [0, 2, 4])
def test_bad_weights_give_no_finite_bound_of_what_depends_on_them(layer, bad, method, dtype):
    model = deep(dtype)
    with torch.no_grad():
        model[layer].weight.fill_(0.5)
        model[layer].weight[0, 0] = bad
        for later in (2, 4):
            if later > layer:
                model[later].weight.copy_(torch.rand_like(model[later].weight) + 0.1)
    box = Box(torch.rand(2, 3, dtype=dtype) + 1, torch.full((2, 3), 0.1, dtype=dtype))
    lower, upper = bound(model, box, method)
    with torch.no_grad():
        values = torch.stack([model(x) for x in points_of(box, 20)])
    undefined = values.isnan().any(0)
    assert not (lower.isfinite() & (undefined | (values == -torch.inf).any(0))).any()
    assert not (upper.isfinite() & (undefined | (values == torch.inf).any(0))).any()
    assert not (lower == torch.inf).logical_and(values.isfinite().any(0)).any()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("make", [deep, with_pool])
@pytest.mark.parametrize("part", ["center", "radius"])
@pytest.mark.parametrize("bad", [float("inf"), float("nan"), 1e308])
def test_a_bad_example_leaves_its_neighbours_alone(bad, part, make, method):
    if part == "radius" and bad != bad:
        pytest.skip("refused")
    torch.manual_seed(4)
    model = make()
    shape = (3,) if make is deep else (1, 3, 3)
    box = random_box(3, *shape)
    alone = bound(model, Box(box.center[::2], box.radius[::2]), method)
    getattr(box, part)[1].flatten()[0] = bad
    lower, upper = bound(model, box, method)
    torch.testing.assert_close((lower[::2], upper[::2]), alone, rtol=1e-12, atol=1e-12)
    assert not lower[1].isfinite().any() or bad == 1e308
    with torch.no_grad():
        values = torch.stack([model(x) for x in points_of(box, 20)])[:, 1]
    assert not (lower[1] > values + 1e-6 * values.abs()).any() and not (upper[1] < values - 1e-6 * values.abs()).any()


@pytest.mark.parametrize("method", METHODS)
def test_infinite_radii_give_no_bound_but_the_true_one(method):
    """relu(x) is at least 0 and at most nothing."""
    box = Box(torch.zeros(1, 2, dtype=torch.float64), torch.full((1, 2), torch.inf, dtype=torch.float64))
    lower, upper = bound(nn.Sequential(nn.ReLU()).eval(), box, method)
    assert not (lower > 0).any() and not upper.isfinite().any()


@pytest.mark.parametrize("method", METHODS)
def test_a_bound_too_large_for_its_precision_is_none(method):
    """The sum is 6e38, more than float32 holds: nothing above 6e38 may be claimed to be a lower bound."""
    model = nn.Sequential(nn.ReLU()).eval()
    box = Box(torch.full((1, 2), 3e38), torch.zeros(1, 2))
    x, spec = Interval(box.center, box.radius), torch.ones(1, 1, 2)
    assert not lower_bounds(trace(model, linear=True), x, spec, method).item() > 6e38
    assert not bound(model, box, method, spec)[0].item() > 6e38
    assert not bound(model, box, method, -spec)[1].item() < -6e38


# ---------------------------------------------------------------------------------------------------------------------
# Memory and batches


@pytest.mark.parametrize("name", ["dense images", "residual", "constant in a concatenation"])
@pytest.mark.parametrize("method", METHODS[2:])
@pytest.mark.parametrize("memory", [1, 5_000])
def test_chunks_change_nothing(memory, method, name):
    graph, shape = network(name, seed=2)
    box = random_box(3, *shape)
    spec = specs(graph, box)
    program, x = trace(graph, linear=True), Interval(box.center, box.radius)
    whole = lower_bounds(program, x, spec, method, memory=LARGE)
    torch.testing.assert_close(lower_bounds(program, x, spec, method, memory=memory), whole, rtol=1e-9, atol=1e-9)
    if method == "alpha-crown":
        target = whole.median().item()
        some = lower_bounds(program, x, spec, method, target, LARGE)
        torch.testing.assert_close(lower_bounds(program, x, spec, method, target, memory), some, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("method", LINEAR)
@pytest.mark.parametrize(
    "name", ["convolution stride", "linear function", "max pools", "dense", "shared", "broadcast", "constants"]
)
def test_a_batch_is_its_examples(name, method):
    graph, shape = network(name, seed=2)
    box = random_box(3, *shape)
    spec = specs(graph, box)
    together = bound(graph, box, method, spec)
    for example in range(3):
        one = slice(example, example + 1)
        alone = bound(graph, Box(box.center[one], box.radius[one]), method, spec[one])
        # The search may take another way after a tie that rounding broke.
        tolerance = 0.05 if method == "alpha-crown" else 1e-9
        torch.testing.assert_close(alone, tuple(end[one] for end in together), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("method", METHODS)
def test_no_examples_have_no_bounds(method):
    empty = torch.zeros(0, 3, dtype=torch.float64)
    lower, upper = bound(deep(), Box(empty, empty), method)
    assert lower.shape == upper.shape == (0, 2)


@pytest.mark.parametrize("method", METHODS)
def test_a_spec_without_rows_has_no_bounds(method):
    lower, upper = bound(deep(), random_box(2, 3), method, torch.zeros(2, 0, 2, dtype=torch.float64))
    assert lower.shape == upper.shape == (2, 0)


@pytest.mark.parametrize("method", METHODS)
def test_one_row_and_rows_of_zeros(method):
    model, box = deep(), random_box(2, 3)
    lower, upper = bound(model, box, method, torch.zeros(2, 1, 2, dtype=torch.float64))
    assert (lower <= 0).all() and (upper >= 0).all() and (upper - lower < 1e-200).all()


# ---------------------------------------------------------------------------------------------------------------------
# What is forgotten easily


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: x,
        lambda m, x: -x,
        lambda m, x: m.act(m.layer(x)) * 0 + x,
        lambda m, x: m.later(m.layer(x)),
        lambda m, x: torch.cat([x, x], 1),
        lambda m, x: F.max_pool2d(x.view(x.size(0), 1, 3, 1), (3, 1)).flatten(1),
    ],
    ids=["input", "negative", "relu times 0", "in the middle", "twice", "max pool alone"],
)
def test_networks_that_are_hardly_ones(forward, method):
    model = Lambda(forward)
    model.layer, model.act = nn.Linear(3, 3), nn.ReLU()

    def later(value):
        _unused = model.act(value) + 1
        return value

    model.later = later
    model, box = model.double().eval(), random_box(2, 3)
    lower, upper = bound(model, box, method)
    with torch.no_grad():
        values = torch.stack([model(x) for x in points_of(box, 64)])
    assert_contains(lower, upper, values)
    assert (lower > values.amin(0) - 3).all()


def test_bounds_do_not_change_the_input():
    graph, shape = network("in place")
    box = random_box(2, *shape)
    before = copy.deepcopy((box, graph.state_dict()))
    for method in METHODS:
        bound(graph, box, method)
    torch.testing.assert_close((box.center, box.radius), (before[0].center, before[0].radius), rtol=0, atol=0)
    for name, value in graph.state_dict().items():
        assert torch.equal(value, before[1][name])


def test_bounds_leave_no_gradients():
    graph, shape = network("residual")
    box = random_box(2, *shape)
    for method in LINEAR:
        lower, upper = bound(graph, box, method)
        assert not lower.requires_grad and not upper.requires_grad
    assert all(parameter.grad is None for parameter in graph.parameters())


def test_steps_have_names_of_their_own():
    """Slopes are kept by name. A ReLU that is called twice, and a ReLU within it whose place is spelled alike."""

    class Holder(nn.ReLU):
        pass

    model = Lambda(lambda module, x: F.relu(getattr(module.act, "2")(module.act(x) - 1)))
    model.act = Holder()
    model.act.add_module("2", nn.ReLU())
    twice = Lambda(lambda module, x: getattr(module.act, "2")(module.act(module.act(x) - 1)) + 1)
    twice.act = model.act
    for program in [trace(network(name)[0], linear=True) for name in ("shared", "dense")] + [
        trace(model),
        trace(twice),
    ]:
        names = [step.name for step in program.steps]
        assert len(set(names)) == len(names), names


@pytest.mark.parametrize("method", METHODS)
def test_inference_mode_changes_nothing(method):
    graph, shape = network("residual")
    box = random_box(2, *shape)
    expected = bound(graph, box, method)
    with torch.inference_mode():
        torch.testing.assert_close(bound(graph, box, method), expected, rtol=0, atol=0)


@pytest.mark.parametrize("method", METHODS)
def test_autocast_changes_nothing(method):
    graph, shape = network("convolution stride", dtype=torch.float32)
    box = random_box(2, *shape, dtype=torch.float32)
    expected = bound(graph, box, method)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(bound(graph, box, method), expected, rtol=0, atol=0)


@pytest.mark.parametrize("method", METHODS)
def test_strides_of_the_box_change_nothing(method):
    graph, shape = network("average pool")
    center, radius = torch.randn(2, *shape, dtype=torch.float64), torch.full((2, *shape), 0.1, dtype=torch.float64)
    expected = bound(graph, Box(center, radius), method)
    last = center.to(memory_format=torch.channels_last)
    everywhere = torch.tensor(0.1, dtype=torch.float64).expand(2, *shape)
    torch.testing.assert_close(bound(graph, Box(last, everywhere), method), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "act", [lambda y: F.leaky_relu(y, 0.1, True), lambda y: F.leaky_relu(y, inplace=True), nn.LeakyReLU(0.1, True)]
)
def test_a_value_that_a_leaky_relu_overwrote_is_not_read(act):
    model = Lambda(lambda module, x: module.apply_to(module.layer(x)))
    model.layer, model.act = nn.Linear(3, 3), act if isinstance(act, nn.Module) else None
    model.apply_to = lambda y: (model.act or act)(y) + y
    with pytest.raises(UnsupportedOperator, match="in place"):
        bound(model.double().eval(), random_box(2, 3), "crown")


MIXING = {
    "broadcast of the batch": lambda x: x.view(x.size(0), 1, 2) + x,
    "concatenated batches": lambda x: torch.cat([x, x + 1], 0),
    "relu of concatenated batches": lambda x: F.relu(torch.cat([x, -x], 0)),
    "batch into rows": lambda x: x.view(-1, 1),
    "flattened batch": lambda x: x.view(x.size(0), 2, 1).flatten(0, 1),
    "everything flattened": lambda x: F.relu(x.flatten()),
}


@pytest.mark.parametrize("examples", [1, 2, 3])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", MIXING)
def test_examples_that_are_mixed_are_refused_or_bounded_rightly(name, method, examples):
    model = Lambda(lambda module, x: MIXING[name](x)).double().eval()
    box = Box(
        10 * torch.arange(2.0 * examples, dtype=torch.float64).view(examples, 2), torch.ones(examples, 2).double()
    )
    try:
        lower, upper = bound(model, box, method)
    except (UnsupportedOperator, ValueError):
        return
    with torch.no_grad():
        values = torch.stack([model(x) for x in points_of(box, 20)])
    assert_contains(lower, upper, values)


@pytest.mark.parametrize("method", METHODS)
def test_a_window_of_padding_alone(method):
    """torch gives -inf there: every finite bound of it is wrong."""
    model = nn.Sequential(nn.MaxPool2d(2, stride=1, padding=1, dilation=5)).double().eval()
    lower, _ = bound(model, random_box(1, 1, 4, 4), method)
    assert not lower.isfinite().any()


@pytest.mark.parametrize("method", METHODS)
def test_outputs_of_one_number_an_example(method):
    """[B], as after .flatten(0) of a last layer with one output."""
    model = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1), nn.Flatten(0)).double().eval()
    box = random_box(4, 3)
    try:
        lower, upper = bound(model, box, method)
    except (UnsupportedOperator, ValueError):
        return
    with torch.no_grad():
        assert_contains(lower, upper, torch.stack([model(x) for x in points_of(box, 20)]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", METHODS)
def test_a_spec_of_any_type(method, dtype):
    model, box = deep(dtype), random_box(3, 3, dtype=dtype)
    labels = torch.tensor([0, 1, 0])
    whole = margin_spec(labels, 2)
    found = [bound(model, box, method, whole.to(kind)) for kind in (torch.float32, torch.float64, torch.int64)]
    assert all(end.dtype == dtype for ends in found for end in ends)
    for ends in found[1:]:
        torch.testing.assert_close(ends, found[0], rtol=0, atol=0)


# ---------------------------------------------------------------------------------------------------------------------
# Rules against autograd


SINGLE = {
    "conv2d": (nn.Conv2d(2, 4, 2, stride=2, padding=1, groups=2), (2, 4, 3)),
    "conv2d dilated": (nn.Conv2d(2, 3, (2, 3), dilation=(2, 1), padding=(0, 2)), (2, 4, 3)),
    "conv2d with a rest": (nn.Conv2d(1, 2, 2, stride=3), (1, 7, 6)),
    "conv2d same": (nn.Conv2d(1, 2, (2, 4), padding="same", dilation=(3, 1)), (1, 5, 6)),
    "linear": (nn.Linear(4, 3), (4,)),
    "linear last dimension": (nn.Linear(3, 2), (2, 4, 3)),
    "batch_norm 1d": (normed(nn.BatchNorm1d(4)), (4,)),
    "batch_norm of sequences": (normed(nn.BatchNorm1d(4)), (4, 3)),
    "batch_norm 2d": (normed(nn.BatchNorm2d(2, affine=False)), (2, 3, 3)),
    "add": (lambda x: torch.add(x, x, alpha=-0.3), (4,)),
    "add constant": (lambda x: torch.add(CONSTANT, x, alpha=0.3), (4,)),
    "add number": (lambda x: 3 + x, (4,)),
    "subtract": (lambda x: torch.sub(x, x, alpha=3), (4,)),
    "subtract constant": (lambda x: torch.sub(CONSTANT, x, alpha=3), (4,)),
    "multiply": (lambda x: CONSTANT * x, (4,)),
    "multiply wider": (lambda x: CONSTANT * x, (3, 1)),
    "divide": (lambda x: x / (CONSTANT + 3), (2, 4)),
    "negative": (lambda x: -x, (2, 4)),
    "avg_pool2d": (nn.AvgPool2d(3, 2, padding=1, ceil_mode=True, count_include_pad=False), (2, 4, 5)),
    "avg_pool2d divisor": (lambda x: F.avg_pool2d(x, (2, 1), divisor_override=-3), (2, 4, 5)),
    "adaptive_avg_pool2d": (nn.AdaptiveAvgPool2d((3, None)), (2, 4, 5)),
    "concatenate": (
        with_tensors(lambda x, c: torch.cat([x, c.expand(x.size(0), 2, -1), x], 1), c=CONSTANT),
        (2, 4),
    ),
    "flatten": (nn.Flatten(1, 2), (2, 3, 2)),
    "reshape": (lambda x: x.reshape(x.size(0), 3, -1), (2, 3, 2)),
    "identity": (nn.Identity(), (4,)),
    "dropout": (nn.Dropout(), (4,)),
}


@pytest.mark.parametrize("sound", [False, True])
@pytest.mark.parametrize("name", SINGLE)
def test_pulled_coefficients_are_those_of_autograd(name, sound):
    apply, shape = SINGLE[name]
    model = Graph([Node(apply, (0,))]).double().eval()
    x = torch.randn(2, *shape, dtype=torch.float64, requires_grad=True)
    program = trace(model, linear=True)
    with torch.no_grad():
        values = values_of(program, Interval(x.detach(), torch.rand_like(x)), Context(sound=True))
    step = program.steps[program.output - 1]
    output = model(x)
    coefficients = torch.randn(2, 3, *output.shape[1:], dtype=torch.float64)
    arguments, options = step.call(values)
    with torch.no_grad():
        pulled = step.record.backward(Backward(sound=sound), coefficients, *arguments, **options)
        offset = (coefficients * model(torch.zeros_like(x)).unsqueeze(1)).flatten(2).sum(2)
    assert set(step.sources) == {0}
    found = sum(pulled.coefficients)
    for row in range(3):
        (expected,) = torch.autograd.grad((coefficients[:, row] * output).sum(), x, retain_graph=True)
        torch.testing.assert_close(found[:, row], expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(pulled.constant, offset, rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("name", SINGLE)
def test_each_backward_rule_counts_its_own_rounding(name, scale):
    """In float32, judged by float64 where the difference between the coefficients and the true ones hurts most."""
    apply, shape = SINGLE[name]
    wide, model = (
        Graph([Node(copy.deepcopy(apply), (0,))]).to(dtype).eval() for dtype in (torch.float64, torch.float32)
    )
    wide.load_state_dict(model.state_dict())
    box = random_box(6, *shape, scale=scale, dtype=torch.float32)
    program = trace(model, linear=True)
    with torch.no_grad():
        values = values_of(program, Interval(box.center, box.radius), Context(sound=True))
        step = program.steps[program.output - 1]
        coefficients = torch.randn(6, 4, *values[program.output].center.shape[1:])
        arguments, options = step.call(values)
        pulled = step.record.backward(Backward(sound=True), coefficients, *arguments, **options)
        found = sum(part.double() for part in pulled.coefficients)
        matrix, _ = dense_affine(wide, shape)
        exact = (coefficients.double().flatten(2) @ matrix).view_as(found)
        corner = box.center.double().unsqueeze(1) + box.radius.double().unsqueeze(1) * (found - exact).sign()
        for row in range(4):
            left = (coefficients[:, row].double() * wide(corner[:, row])).flatten(1).sum(1)
            right = (found[:, row] * corner[:, row]).flatten(1).sum(1) + pulled.constant[:, row]
            assert (right <= left + 1e-14 * left.abs()).all()


def test_max_pooling_counts_its_own_rounding():
    """Of a point every window is decided, and nine coefficients are added up in float32."""
    graph = Graph([pool(0, 3, stride=1)]).eval()
    x = torch.randn(20, 2, 6, 6)
    program, zero = trace(graph, linear=True), torch.zeros_like(x)
    values = values_of(program, Interval(x, zero), Context(sound=True))
    coefficients = torch.randn(20, 30, 2, 4, 4)
    arguments, options = program.steps[0].call(values)
    pulled = program.steps[0].record.backward(Backward(sound=True), coefficients, *arguments, **options)
    left = torch.einsum("bkchw,bchw->bk", coefficients.double(), graph(x.double()))
    right = torch.einsum("bkchw,bchw->bk", pulled.coefficients[0].double(), x.double()) + pulled.constant
    assert (right <= left + 1e-13).all() and (left - right < 1e-2).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_tightened_boxes_and_larger_bounds_are_rounded_outwards(dtype):
    x, ends = wild_box(300, dtype), torch.randn(300, 2, 1, dtype=dtype).sort(1).values
    low, high = (x.center + x.radius * end for end in ends.unbind(1))
    new = narrowed(Box(x.center, x.radius), low, high)
    for c, r, old_c, old_r, lo, hi in zip(
        *(fractions(part.flatten()) for part in (new.center, new.radius, x.center, x.radius, low, high)), strict=True
    ):
        assert (c - r <= max(lo, old_c - old_r) and min(hi, old_c + old_r) <= c + r) or lo > hi
    found = torch.randn(300, dtype=torch.float64) * 10 ** torch.linspace(-44, 36, 300, dtype=torch.float64)
    larger = methods._larger(torch.full((300,), -torch.inf, dtype=dtype), found)
    assert all(a <= b for a, b in zip(fractions(larger), fractions(found), strict=True))


def test_autograd_has_judged_every_affine_operator():
    nonlinear = {record.name for record in TABLE if record.unsettled is not None}
    assert {name.split(" ")[0] for name in SINGLE} == {record.name for record in TABLE} - nonlinear


# ---------------------------------------------------------------------------------------------------------------------
# Operators without a rule, and from outside


class Signed(nn.Module):
    def forward(self, x):
        y = F.relu(x)
        return torch.sign(y)  # no rule of its own


def sign_rule(ctx, x):
    return Interval(torch.zeros_like(x.center), torch.ones_like(x.radius))


@pytest.mark.parametrize("method", LINEAR)
def test_an_operator_with_interval_bounds_alone_is_refused_before_anything_is_computed(method, own_operators):
    ran = []

    def rule(ctx, x):
        ran.append(x)
        return sign_rule(ctx, x)

    register(Operator("sign", rule, (torch.sign,)))
    register(
        Operator("relu", lambda ctx, x, inplace=False: ran.append(x), (F.relu,), backward=operators.TABLE[3].backward)
    )
    with pytest.raises(UnsupportedOperator) as error:
        bound(Signed().eval(), random_box(2, 3), method)
    message = str(error.value)
    assert not ran
    assert "'sign'" in message and "test_linear.py" in message and "no rule of its own" in message, message


def test_an_operator_with_interval_bounds_alone_has_them(own_operators):
    register(Operator("sign", sign_rule, (torch.sign,)))
    lower, upper = bound(Signed().eval(), random_box(2, 3), "ibp")
    assert (lower <= -1).all() and (upper >= 1).all()


def flipped(x, times=1.0):
    return x.flip(1).cumsum(1) * times


def flipped_rule(ctx, x, times=1.0):
    widened = flipped(x.center.abs() + x.radius, abs(times)) * 1e-12
    return Interval(flipped(x.center, times), flipped(x.radius, abs(times)) + widened)


class Flipped(nn.Module):
    def __init__(self, times):
        super().__init__()
        self.times = times

    def forward(self, x):
        return flipped(x, self.times)


@pytest.mark.parametrize("times", [1.0, -0.5])
def test_an_affine_operator_from_outside(times, own_operators):
    record = Operator(
        "flipped", flipped_rule, modules={Flipped: lambda m: {"times": m.times}}, backward=affine(flipped, flipped_rule)
    )
    register(record)
    torch.manual_seed(0)
    nodes = layers(nn.Linear(3, 4), relu, Flipped(times), nn.Linear(4, 4), relu, nn.Linear(4, 2))
    graph, box = Graph(nodes).double().eval(), random_box(2, 3)
    spec = specs(graph, box)
    least, most, _ = optima(graph, box, spec)
    ends = [bound(graph, box, method, spec) for method in METHODS]
    for lower, upper in ends:
        assert (lower <= least + 1e-6).all() and (most - 1e-6 <= upper).all()
    for (lower, upper), (lower_after, upper_after) in itertools.pairwise(ends):
        assert (lower <= lower_after).all() and (upper_after <= upper).all()
    assert (ends[1][0] > ends[0][0]).any()


def absolute_interval(ctx, x):
    low = torch.relu(torch.maximum(x.box.lower, -x.box.upper))
    high = torch.maximum(x.box.lower.abs(), x.box.upper.abs()) * (1 + 1e-12)
    return Interval((low + high) / 2, (high - low) / 2 + 1e-12 * high)


def absolute_backward(ctx, coefficients, x):
    """|p| >= p and -p; |p| <= the largest there is."""
    most = torch.maximum(x.box.lower.abs(), x.box.upper.abs()) * (1 + 1e-9)
    positive, negative = coefficients.clamp(min=0), coefficients.clamp(max=0)
    sign = torch.where(x.center >= 0, 1.0, -1.0).to(coefficients)
    constant = (negative * most.unsqueeze(1)).flatten(2).sum(2)
    return Pulled((positive * sign.unsqueeze(1),), constant - 1e-9 * (1 + constant.abs()))


def test_a_nonlinear_operator_from_outside(own_operators):
    backward, unsettled = absolute_backward, operators.crossing
    register(Operator("absolute", absolute_interval, (torch.abs, torch.Tensor.abs), {}, backward, unsettled))
    torch.manual_seed(0)
    nodes = layers(nn.Linear(3, 4), lambda n: Node(torch.abs, (n,), -1.0), nn.Linear(4, 3), relu, nn.Linear(3, 2))
    graph, box = Graph(nodes).double().eval(), random_box(3, 3)
    spec = specs(graph, box)
    least, most, _ = optima(graph, box, spec)
    for method in METHODS:
        lower, upper = bound(graph, box, method, spec)
        assert (lower <= least + 1e-6).all() and (most - 1e-6 <= upper).all()


# ---------------------------------------------------------------------------------------------------------------------
# The adjoint equilibrium


def equilibria(weight, h):
    """z = relu(W z + h) by Picard iteration to 1e-13, in float64."""
    pad = weight.shape[-1] // 2
    z = torch.zeros_like(h)
    for _ in range(3000):
        product = F.linear(z, weight) if weight.dim() == 2 else F.conv2d(z, weight, padding=pad)
        following = torch.relu(product + h)
        change = (following - z).abs().max()
        z = following
        if change <= 1e-13 * (1 + z.abs().max()):
            return z
    raise AssertionError("no equilibrium")


def equilibrium_model(kernel, rate, seed=0):
    torch.manual_seed(seed)
    layer = contractive(3, rate, kernel)
    if kernel is None:
        return nn.Sequential(nn.Linear(4, 3), layer, nn.Linear(3, 2)).double().eval(), (4,)
    inject = nn.Conv2d(1, 3, 2, padding=1, stride=2)
    return nn.Sequential(inject, layer, nn.ReLU(), nn.Flatten(), nn.Linear(12, 2)).double().eval(), (1, 3, 3)


@torch.no_grad()
def equilibrium_values(model, x):
    z = equilibria(model[1].weight, model[0](x))
    return model[2:](z)


@pytest.mark.parametrize("limit", [0, 1, 2, 4, 8, 32])
@pytest.mark.parametrize(("kernel", "rate"), [(None, 0.95), (3, 0.6)])
def test_any_number_of_adjoint_iterations_is_sound(kernel, rate, limit, monkeypatch):
    monkeypatch.setattr(adjoint, "_LIMIT", limit)
    monkeypatch.setattr(adjoint, "_TOLERANCE", 0.0)
    model, shape = equilibrium_model(kernel, rate)
    box = random_box(2, *shape, scale=0.5)
    values = torch.stack([equilibrium_values(model, x) for x in points_of(box, 40)])
    for method in LINEAR:
        assert_contains(*bound(model, box, method), values)


def test_more_adjoint_iterations_are_tighter(monkeypatch):
    model, shape = equilibrium_model(None, 0.8)
    box = random_box(4, *shape, scale=0.3)
    program, widths = trace(model, linear=True), []
    spec = torch.eye(2, dtype=torch.float64).expand(4, 2, 2)
    with torch.no_grad():
        values = values_of(program, Interval(box.center, box.radius), Context(sound=True))
        monkeypatch.setattr(adjoint, "_TOLERANCE", 0.0)
        for limit in (0, 2, 8, 100):
            monkeypatch.setattr(adjoint, "_LIMIT", limit)
            found = linear_lower_bound(program, values, spec, program.output, Backward(sound=True))
            widths.append(-found.sum().item())
    assert widths[0] > widths[1] > widths[2] >= widths[3] - 1e-9


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernel", [None, 3])
def test_any_multiplier_is_sound(kernel, dtype):
    torch.manual_seed(3)
    layer, shape = contractive(3, 0.8, kernel), (3,) if kernel is None else (3, 2, 2)
    weight = layer.weight.detach().to(dtype)
    h = random_box(2, *shape, dtype=dtype)
    proved = verified_box(weight, h)
    radius = (proved.radius * (1 + 1e-6) + 1e-6 * proved.center.abs()).to(dtype)
    z = Interval(proved.center.to(dtype), radius)
    wide = Box(h.center.double(), h.radius.double())
    points = points_of(wide, 30)
    solved = torch.stack([equilibria(weight.double(), point) for point in points])
    preactivation = preactivation_box(weight, h, z.box)
    coefficients = torch.randn(2, 4, *shape, dtype=dtype)
    for size in (0, 1e-3, 1.0, 1e3):
        ctx = Backward(sound=True, step="here", output=z, slopes={"here": torch.rand(2, 4, *shape, dtype=dtype)})
        multiplier = coefficients + size * torch.randn_like(coefficients)
        pulled = adjoint._bound(ctx, coefficients, multiplier, lines(ctx, preactivation), weight, z, preactivation)
        left = (coefficients.double() * solved.unsqueeze(2)).flatten(3).sum(3)
        right = (pulled.coefficients[0].double() * points.unsqueeze(2)).flatten(3).sum(3) + pulled.constant.double()
        assert right.isfinite().all()
        assert (right <= left + 1e-11 * (1 + size)).all()


@pytest.mark.parametrize("kept", [0.0, 0.5])
def test_what_the_multiplier_leaves_to_the_box_is_bounded_by_all_of_it(kept):
    """Where every unit is active and W >= 0 the equilibrium at the lower end of h is the exact minimum, and it is a
    corner of the box: the bound meets it, whatever share of the coefficients goes through the lines."""
    torch.manual_seed(4)
    weight = 0.2 * torch.rand(4, 4, dtype=torch.float64)
    h = Box(torch.full((1, 4), 2.0).double(), torch.rand(1, 4).double())
    proved = verified_box(weight, h)
    z, preactivation = Interval(proved.center, proved.radius), preactivation_box(weight, h, proved)
    coefficients = torch.rand(1, 3, 4, dtype=torch.float64)
    ctx = Backward(sound=True, step="here", output=z, slopes={})
    multiplier = kept * torch.linalg.solve(torch.eye(4).double() - weight.T, coefficients.mT).mT
    pulled = adjoint._bound(ctx, coefficients, multiplier, lines(ctx, preactivation), weight, z, preactivation)
    found = (pulled.coefficients[0] * h.center).sum(2) - (pulled.coefficients[0].abs() * h.radius).sum(2)
    exact = (coefficients * torch.linalg.solve(torch.eye(4).double() - weight, h.lower[0])).sum(2)
    torch.testing.assert_close(found + pulled.constant, exact, rtol=1e-6, atol=1e-6)
    assert (found + pulled.constant <= exact).all()


@pytest.mark.parametrize("kernel", [None, 3])
def test_the_adjoint_counts_its_own_rounding(kernel):
    """In float32 at a point, for the adjoint equilibrium itself: no other term is left."""
    torch.manual_seed(3)
    layer, shape = contractive(6, 0.9, kernel), (6,) if kernel is None else (6, 2, 2)
    weight, h = layer.weight.detach().float(), torch.randn(5, *shape)
    solved = equilibria(weight.double(), h.double())
    z = Interval(solved.float(), (solved.float() - solved).abs().float() * 1.001 + 1e-30)
    preactivation = preactivation_box(weight, Box(h, torch.zeros_like(h)), z.box)
    coefficients = torch.randn(5, 200, *shape)
    ctx = Backward(sound=True, step="here", output=z)
    around, multiplier = lines(ctx, preactivation), coefficients
    for _ in range(200):
        multiplier = coefficients + adjoint.transposed(weight, adjoint.through(ctx, around, multiplier)[0])
    pulled = adjoint._bound(ctx, coefficients, multiplier, around, weight, z, preactivation)
    left = (coefficients.double() * solved.unsqueeze(1)).flatten(2).sum(2)
    right = (pulled.coefficients[0].double() * h.double().unsqueeze(1)).flatten(2).sum(2) + pulled.constant
    assert (right <= left + 1e-13).all() and (left - right < 1).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernel", [None, 3])
def test_whole_equilibrium_networks_are_bounded_in_order(kernel, dtype):
    torch.manual_seed(5)
    inject = nn.Linear(4, 3) if kernel is None else nn.Conv2d(1, 3, 2, padding=1)
    layer = Equilibrium(3, inject, kernel)
    features = 3 if kernel is None else 27
    model = nn.Sequential(layer, nn.ReLU(), nn.Flatten(), nn.Linear(features, 3)).to(dtype).eval()
    fold(model)
    shape = (4,) if kernel is None else (1, 2, 2)
    box = LinfBall(torch.rand(3, *shape, dtype=dtype), 0.1)
    before, wide = None, copy.deepcopy(model).double()
    with torch.no_grad():
        h = [wide[0].inject(x.double()) for x in points_of(box, 30)]
        values = torch.stack([wide[1:](equilibria(wide[0].recurrence.weight, part)) for part in h])
    for method in METHODS:
        lower, upper = bound(model, box, method)
        assert_contains(lower.double(), upper.double(), values, 1e-11)
        assert before is None or ((before[0] <= lower).all() and (upper <= before[1]).all())
        before = lower, upper


@pytest.mark.parametrize("method", METHODS)
def test_an_equilibrium_among_other_branches_and_twice(method):
    """One FixedPoint at two places, its input read elsewhere too."""
    torch.manual_seed(8)
    model = Lambda(lambda m, x: m.last(torch.cat([m.point(m.point(m.first(x)) - m.first(x)), m.first(x), x], 1)))
    model.first, model.point, model.last = nn.Linear(3, 3), contractive(3, 0.6), nn.Linear(9, 2)
    model, box = model.double().eval(), random_box(2, 3)
    values = []
    with torch.no_grad():
        for x in points_of(box, 40):
            h, weight = model.first(x), model.point.weight
            z = equilibria(weight, equilibria(weight, h) - h)
            values.append(model.last(torch.cat([z, h, x], 1)))
    assert_contains(*bound(model, box, method), torch.stack(values))


@pytest.mark.parametrize("kernel", [None, 3])
def test_equilibria_of_points_are_bounded_up_to_rounding(kernel):
    for dtype, method in itertools.product(DTYPES, LINEAR):
        model, shape = equilibrium_model(kernel, 0.8)
        x = torch.randn(8, *shape, dtype=dtype)
        lower, upper = bound(model.to(dtype), Box(x, torch.zeros_like(x)), method)
        wide = copy.deepcopy(model).double()
        values = equilibrium_values(wide, x.double())
        assert (lower <= values + 1e-11).all() and (values <= upper + 1e-11).all()
        assert (upper - lower).max() <= (1e-2 if dtype == torch.float32 else 1e-9) * (1 + values.abs().max())


@pytest.mark.parametrize("method", LINEAR)
def test_a_bad_example_before_an_equilibrium_leaves_its_neighbours_alone(method):
    model, shape = equilibrium_model(None, 0.6)
    box = random_box(3, *shape)
    alone = bound(model, Box(box.center[::2], box.radius[::2]), method)
    for bad in (float("nan"), float("inf"), 1e300):
        center = box.center.clone()
        center[1, 0] = bad
        lower, upper = bound(model, Box(center, box.radius), method)
        torch.testing.assert_close((lower[::2], upper[::2]), alone, rtol=1e-3, atol=1e-3)
        assert not lower[1].isfinite().any() or bad == 1e300


@pytest.mark.parametrize("method", LINEAR)
def test_an_equilibrium_of_a_batch_is_that_of_its_examples(method):
    model, shape = equilibrium_model(None, 0.9)
    box = random_box(4, *shape)
    together = bound(model, box, method)
    for example in range(4):
        one = slice(example, example + 1)
        alone = bound(model, Box(box.center[one], box.radius[one]), method)
        torch.testing.assert_close(alone, tuple(end[one] for end in together), rtol=1e-9, atol=1e-9)


def test_a_box_of_an_equilibrium_that_is_not_proved_gives_no_bound():
    """A radius of infinity, which the forward pass gives where its check fails."""
    model, shape = equilibrium_model(None, 0.6)
    box = Box(torch.zeros(1, *shape, dtype=torch.float64), torch.full((1, *shape), 1e308, dtype=torch.float64))
    for method in METHODS:
        lower, upper = bound(model, box, method)
        assert not lower.isfinite().any() or (lower < -1e300).all()
        assert not upper.isfinite().any() or (upper > 1e300).all()


def test_magnitudes_reach_every_point_of_a_box():
    box = random_box(3, 4)
    assert (points_of(box, 50).abs() <= magnitude(Interval(box.center, box.radius)) * (1 + 1e-15)).all()


# ---------------------------------------------------------------------------------------------------------------------
# Memory


def test_a_gpu_that_runs_out_of_memory_is_asked_for_less(monkeypatch):
    """By halves of the examples and of the memory, down to one example; the bounds are the same."""
    model, box = deep(), random_box(5, 3)
    program, x = trace(model, linear=True), Interval(box.center, box.radius)
    spec = torch.eye(2, dtype=torch.float64).expand(5, -1, -1)
    expected = lower_bounds(program, x, spec, "crown")
    honest, asked = methods._lower_bounds, []

    def scarce(program, x, spec, method, target, memory):
        asked.append((len(x.center), memory))
        if len(x.center) > 1 or memory > 2**24:
            raise torch.OutOfMemoryError
        return honest(program, x, spec, method, target, memory)

    monkeypatch.setattr(methods, "_lower_bounds", scarce)
    torch.testing.assert_close(lower_bounds(program, x, spec, "crown", memory=2**27), expected)
    assert asked[0] == (5, 2**27) and asked.count((1, 2**24)) == 5


def test_memory_that_is_not_there_at_all_is_an_error(monkeypatch):
    def none(*arguments):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(methods, "_lower_bounds", none)
    with pytest.raises(torch.OutOfMemoryError):
        bound(deep(), random_box(2, 3), "crown")
