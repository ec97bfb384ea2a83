"""Provides NETWORKS: small networks around every operator as graphs that the MILP oracle reads; their exact optima."""

import operator

import numpy as np
import torch
import torch.nn.functional as F
from equilibria import random_weight
from milp import Encoding, Graph, Node
from oracles import Lambda
from torch import nn

from cerdeq import Box
from cerdeq.bounds import BOUNDS
from cerdeq.equilibrium import FixedPoint

LINEAR = [name for name, record in BOUNDS.items() if record.linear]
SEARCHED = list(BOUNDS)[list(BOUNDS).index("alpha-crown") :]  # rounding may lead their ascent to another optimum
LARGE = 2**30  # bytes


def relu(source, **options):
    return Node(nn.ReLU(**options), (source,), 0.0)


def leaky(source, slope, functional=False):
    apply = (lambda x: F.leaky_relu(x, slope)) if functional else nn.LeakyReLU(slope)
    return Node(apply, (source,), slope)


def pool(source, *args, **options):
    return Node(nn.MaxPool2d(*args, **options), (source,), "max")


def affine_node(apply, *sources):
    return Node(apply, sources)


def layers(*makers, start=0):
    """Return a chain of nodes, each of which reads the one before."""
    nodes = []
    for number, make in enumerate(makers, start=start):
        nodes.append(make(number) if callable(make) and not isinstance(make, nn.Module) else affine_node(make, number))
    return nodes


def normed(layer):
    """Give a batch norm statistics and parameters that are not the defaults; return it."""
    with torch.no_grad():
        layer.running_mean.normal_()
        layer.running_var.uniform_(0.05, 3)
        if layer.affine:
            layer.weight.normal_()
            layer.bias.normal_()
    return layer


def after_conv(*options, shape=(2, 3, 3), outputs=3, **more):
    """Return (a function that makes a network of convolution, ReLU, flatten, linear; the input's shape)."""

    def make():
        conv = nn.Conv2d(shape[0], outputs, *options, **more)
        features = conv(torch.zeros(1, *shape)).numel()
        return layers(conv, relu, nn.Flatten(), nn.Linear(features, 3))

    return make, shape


def with_tensors(function, **tensors):
    """Return a module from a function of x and of tensors, which become its parameters."""
    copied = {name: value.clone() for name, value in tensors.items()}
    return Lambda(lambda module, x: function(x, **{name: getattr(module, name) for name in tensors}), **copied)


def around(tested, shape=(4,), features=4, outputs=3, **tensors):
    """Return (a function that makes a network of linear, ReLU, `tested`, ReLU, linear; the input's shape)."""

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
    "convolution padded": after_conv(3, padding=1, outputs=2),
    "convolution stride": after_conv(2, stride=2, padding=1),
    "convolution uneven": after_conv((3, 2), stride=(1, 2), padding=(2, 1), outputs=2, shape=(1, 3, 4)),
    "convolution dilated": after_conv(2, dilation=2, padding=1),
    "convolution groups": after_conv(2, groups=2, outputs=4, bias=False),
    "linear function": around(lambda x, w, b: F.linear(x, w.abs() - 0.6, b), w=MATRIX, b=CONSTANT),
    "batch norm 1d": around(nn.BatchNorm1d(4)),
    "batch norm 2d": around(nn.BatchNorm2d(2), SMALL, 8),
    "leaky 0.1": leaky_layers(0.1),
    "leaky 1.5": leaky_layers(1.5),
    "leaky -0.5": leaky_layers(-0.5),
    "absolute": (
        lambda: layers(nn.Linear(3, 4), lambda n: Node(torch.abs, (n,), -1.0), nn.Linear(4, 3),
                       lambda n: Node(torch.abs, (n,), -1.0), nn.Linear(3, 2)),
        (3,),
    ),
    "clamp": (
        lambda: layers(nn.Linear(3, 4), lambda n: Node(lambda x: x.clamp(-0.3, 0.8), (n,), (-0.3, 0.8)),
                       nn.Linear(4, 3), lambda n: Node(nn.Hardtanh(), (n,), (-1.0, 1.0)), nn.Linear(3, 3),
                       lambda n: Node(F.relu6, (n,), (0.0, 6.0)), nn.Linear(3, 2)),
        (3,),
    ),
    "average pool": around(nn.AvgPool2d(2, stride=1, padding=1), SMALL, 18, outputs=2),
    "transposed convolution": (
        lambda: layers(nn.ConvTranspose2d(1, 2, 2, stride=2), relu, nn.Conv2d(2, 1, 2), nn.Flatten(),
        nn.Linear(9, 2)), (1, 2, 2),
    ),
    "max pool": (lambda: layers(nn.Conv2d(1, 2, 1), lambda n: pool(n, 2), nn.Flatten(), nn.Linear(8, 2)), (1, 4, 4)),
    "max pool overlapping": (
        lambda: layers(nn.Conv2d(1, 2, 2), lambda n: pool(n, 2, stride=1), relu, nn.Flatten(), nn.Linear(2, 2)),
        (1, 3, 3),
    ),
    "max pool padded": (
        lambda: layers(nn.Conv2d(1, 1, 1), lambda n: pool(n, 3, stride=2, padding=1), nn.Flatten(), nn.Linear(4, 2)),
        (1, 3, 3),
    ),
    "sequences": (
        lambda: layers(
            nn.Conv1d(2, 2, 2, stride=2, dilation=2, padding=1), relu, nn.AvgPool1d(2, 1, padding=1),
            lambda n: Node(nn.MaxPool1d(2, stride=1), (n,), "max"), nn.AdaptiveAvgPool1d(2), nn.Flatten(),
            nn.Linear(4, 2),
        ),
        (2, 5),
    ),
    "sums": around(lambda x: x.mean(1, keepdim=True) - 0.5 * x.sum((2, 3))[:, :, None, None], SMALL, 8),
    "max pools": (
        lambda: layers(lambda n: pool(n, 2, stride=1), nn.Conv2d(1, 1, 1), lambda n: pool(n, 2, stride=1), nn.Flatten(),
                       nn.Linear(1, 2)),
        (1, 3, 3),
    ),
    "moved": around(
        lambda x, m: (F.pad(x.permute(0, 3, 2, 1), (1, 1), value=-0.2) @ m).transpose(1, 2),
        (1, 2, 2), 8, m=MATRIX[:3, :2],
    ),
    "constants": around(lambda x, c: 1 - (2 - (c - x) * 3 / c.add(2.5)) + -x * c, c=CONSTANT),
    "constants on images": around(lambda x, c: torch.sub(c, c * x, alpha=0.3) / -0.5, SMALL, 8, c=PLANES),
    "index": around(lambda x: x[:, [0, 1, 0], :, 1:] - x[:, None, 0, ..., :1], SMALL, 6),
    "selection": around(
        lambda x: x.index_select(1, torch.tensor([1, 1])).narrow(2, 1, 1) - x.select(3, 1)[:, :, None], SMALL, 4
    ),
    "parts": around(lambda x: x.chunk(2, 1)[1] - x.split([1, 1], dim=1)[0], SMALL, 4),
    "no operation": around(nn.Sequential(nn.Identity(), nn.Dropout(0.9))),
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


def optima(graph, box, spec):
    """Return the exact minima and maxima [B, K] of spec . graph over the box, and the inputs where they lie."""
    minima = []
    low, high = box.center - box.radius, box.center + box.radius
    for example in range(len(spec)):
        encoding = Encoding(graph, low[example], high[example])
        minima.append([[encoding.minimum(sign * row.numpy()) for row in spec[example]] for sign in (1, -1)])
    values = torch.tensor([[[value for value, _ in row] for row in signs] for signs in minima], dtype=torch.float64)
    points = torch.tensor(np.array([[[x for _, x in row] for row in signs] for signs in minima]))
    return values[:, 0], -values[:, 1], points.flatten(1, 2)


def evaluated(graph, spec, inputs, shape):
    """Return spec . graph at inputs [B, S, n]: [S, B, K]."""
    with torch.no_grad():
        return torch.stack(
            [torch.einsum("bkn,bn->bk", spec, graph(part.reshape(-1, *shape)).flatten(1)) for part in inputs.unbind(1)]
        )


def contractive(size, rate=0.7, kernel=None):
    """Return a FixedPoint whose channel matrix of |W| has the spectral radius `rate`."""
    return FixedPoint(random_weight(size, kernel, rate)).eval()


def wild_box(count, dtype):
    """Return centres and radii of scales 1e-30 to 1e30; most of the boxes contain 0."""
    exponents = 60 * torch.rand(count, 1, dtype=torch.float64) - 30
    center = torch.randn(count, 1, dtype=torch.float64) * 10**exponents
    ratio = 10 ** (
        torch.randn(count, 1, dtype=torch.float64) * torch.tensor([0.1, 1.0, 5.0]).repeat(count)[:count, None]
    )
    radius = (center.abs() * ratio).clamp(max=1e36)
    radius[::7] = 0
    return Box(center.to(dtype), radius.to(dtype))


def deep(dtype=torch.float64):
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).to(dtype).eval()
