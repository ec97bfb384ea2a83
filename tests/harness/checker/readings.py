"""Provides READINGS: networks that are easily read as another function, and who must refuse them.

Each is a stem of a few layers, with a flatten and a classifier behind it, for images of `shape`. What tracing refuses,
which both share, is in tests/cerdeq; operators in every form are in its `cases.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.utils import parametrize

BOTH, CERTIFIER, NOBODY = "both bound it", "the checker has no rule", "both refuse it"
IMAGE = (2, 4, 4)


@dataclass(frozen=True)
class Reading:
    """A network and who bounds it. change: what is done to the stem after the whole network was built."""

    name: str
    outcome: str
    stem: Callable[[], nn.Module]
    change: Callable[[nn.Module], object] = lambda stem: None
    shape: tuple[int, ...] = IMAGE

    def build(self):
        """Return the network in float64, in evaluation mode but for what `change` did."""
        torch.manual_seed(0)
        stem = self.stem()
        with torch.no_grad():
            features = stem.double().eval()(torch.zeros(1, *self.shape).double()).flatten(1).shape[1]
        model = nn.Sequential(stem, nn.Flatten(), nn.Linear(features, 3)).double().eval().requires_grad_(False)
        self.change(stem)
        return model


class Calls(nn.Module):
    """Calls `function(self, x)`. Modules and tensors become its own; `plain` is an attribute that is no buffer."""

    def __init__(self, function, plain=None, **parts):
        super().__init__()
        self.function, self.plain = function, plain
        for name, part in parts.items():
            self.add_module(name, part) if isinstance(part, nn.Module) else self.register_buffer(name, part)

    def forward(self, x):
        return self.function(self, x)


def conv(**options):
    return nn.Conv2d(2, 2, 3, **options)


def calls(function, **parts):
    """Return a maker of `Calls`. Parts are made anew each time."""
    return lambda: Calls(function, **{name: make() for name, make in parts.items()})


def constant(*shape):
    return lambda: torch.rand(shape, dtype=torch.float64)


def normed(**options):
    def make():
        layer = nn.BatchNorm2d(2, **options)
        if layer.running_mean is not None:
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
        return layer

    return make


class AlwaysTraining(nn.BatchNorm2d):
    def train(self, mode=True):
        return super().train(True)


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


def augmented(module, x):
    y = x - module.c
    y += x
    y -= module.c
    y /= module.c
    return y


def counted(module, x):
    module.c.add_(1e-9)
    return x + module.c


def counted_outside_of_buffers(module, x):
    module.plain.add_(1e-9)
    return x + module.plain


def with_changed_size(module, x):
    module.pool.kernel_size = module.pool.stride = 2
    y = module.pool(x)
    module.pool.kernel_size = module.pool.stride = 4
    return torch.cat([y.flatten(1), module.pool(x).flatten(1)], 1)


def depending_on_the_type(module, x):
    return module.layer(10 * x if isinstance(x, torch.Tensor) else x)


READINGS = [
    # Arguments of layers and functions
    Reading("sums with the batch", NOBODY, calls(lambda m, x: x.sum(0, keepdim=True))),
    Reading("sums of all", NOBODY, calls(lambda m, x: x.sum() * m.c, c=constant(2, 1, 1))),
    Reading("mean of another type", NOBODY, calls(lambda m, x: x.mean(1, dtype=torch.float32).double())),
    Reading("batch norm, no bias", BOTH, normed(), lambda layer: setattr(layer, "bias", None)),
    Reading("batch norm, no statistics", NOBODY, normed(track_running_stats=False)),
    # Modules in training mode, or used twice
    Reading("batch norm in training", NOBODY, normed(), nn.Module.train),
    Reading("batch norm always in training", NOBODY, lambda: AlwaysTraining(2)),
    Reading("layers used twice", BOTH, lambda: nn.Sequential(*[conv(padding=1), nn.ReLU()] * 2)),
    # Code that torch.fx does not see
    Reading("parametrised", CERTIFIER, conv,
        lambda m: parametrize.register_parametrization(m, "weight", Doubled()).eval()),
    Reading("branch on the type", NOBODY, calls(depending_on_the_type, layer=conv)),
    Reading("size changed in forward", NOBODY, calls(with_changed_size, pool=lambda: nn.AvgPool2d(2))),
    # Values and tensors changed in place
    Reading("augmented assignments", BOTH, calls(augmented, c=constant(2, 1, 1))),
    Reading("in-place ReLU", BOTH, lambda: nn.Sequential(conv(), nn.ReLU(inplace=True))),
    Reading("buffer changed", NOBODY, calls(counted, c=constant(2, 1, 1))),
    Reading("attribute changed", NOBODY,
        lambda: Calls(counted_outside_of_buffers, torch.ones(2, 1, 1, dtype=torch.float64))),
    # Constants, and arguments by name or position
    Reading("difference with alpha", CERTIFIER, calls(lambda m, x: torch.sub(other=x, alpha=2, input=m.c),
        c=constant(*IMAGE))),
    Reading("constant that is computed", CERTIFIER, calls(lambda m, x: x + 2 * m.c, c=constant(2, 1, 1))),
    Reading("layer of a constant", CERTIFIER, calls(lambda m, x: x + m.layer(m.c), layer=lambda: conv(padding=1),
        c=constant(1, *IMAGE))),
    Reading("constant that broadcasts", CERTIFIER, calls(lambda m, x: x + m.c, c=constant(3, 1, 1)), shape=(1, 4, 4)),
    Reading("another precision", NOBODY, calls(lambda m, x: x.half().double())),
    Reading("cast", NOBODY, calls(lambda m, x: x.to(torch.float64))),
    Reading("difference of values", BOTH, calls(lambda m, x: m.layer(x) - x, layer=lambda: conv(padding=1))),
    Reading("products with a constant", BOTH, calls(lambda m, x: m.c * (x * m.c), c=constant(2, 1, 1))),
    # Batches
    Reading("reshaped batch", NOBODY, calls(lambda m, x: x.reshape(-1, 4, 4))),
    Reading("flattened batch", NOBODY, lambda: nn.Flatten(0, 1)),
    Reading("halved images", NOBODY, calls(lambda m, x: x.reshape(-1, 16))),
    Reading("size of the batch", NOBODY, calls(lambda m, x: x * x.shape[0])),
    Reading("constant for each image", NOBODY, calls(lambda m, x: x + m.c, c=constant(2, *IMAGE))),
]  # fmt: skip
