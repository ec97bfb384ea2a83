"""Provides READINGS: networks that are easily read as another function, and who must refuse them.

Each is a stem of a few layers, with a flatten and a classifier behind it, for images of `shape`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
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


class OwnCall(nn.Conv2d):
    def __call__(self, x):
        return super().__call__(10 * x)


class OwnCallImpl(nn.Conv2d):
    def _call_impl(self, x):
        return 3 * super()._call_impl(x)


class AlwaysTraining(nn.BatchNorm2d):
    def train(self, mode=True):
        return super().train(True)


class Doubling(torch.Tensor):
    """A tensor whose convolutions are twice what they should be."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        result = super().__torch_function__(function, types, args, kwargs or {})
        return result * 2 if function in (F.conv2d, torch.conv2d) else result


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


def with_own(name):
    """Return a change that replaces a method of a layer's instance."""

    def change(layer):
        plain = getattr(layer, name)
        setattr(layer, name, lambda x: 2 * plain(x))

    return change


def with_doubling(as_parameter):
    def change(layer):
        weight = layer.weight.data.as_subclass(Doubling)
        del layer.weight
        if as_parameter:
            layer.weight = nn.Parameter(weight, requires_grad=False)
        else:
            layer.register_buffer("weight", weight)

    return change


def augmented(module, x):
    y = x - module.c
    y += x
    y -= module.c
    y /= module.c
    return y


def read_by_another_name(module, x):
    y = module.layer(x)
    z = y
    y += x
    return z


def counted(module, x):
    module.c.add_(1e-9)
    return x + module.c


def counted_by_augmentation(module, x):
    c = module.c
    c += 1e-9
    return x + c


def counted_outside_of_buffers(module, x):
    module.plain.add_(1e-9)
    return x + module.plain


def with_data_in_a_buffer(module, x):
    c = module.c
    c += x
    return c


def with_changed_size(module, x):
    module.pool.kernel_size = module.pool.stride = 2
    y = module.pool(x)
    module.pool.kernel_size = module.pool.stride = 4
    return torch.cat([y.flatten(1), module.pool(x).flatten(1)], 1)


def depending_on_the_type(module, x):
    return module.layer(10 * x if isinstance(x, torch.Tensor) else x)


READINGS = [
    # Arguments of layers
    Reading("pool", BOTH, lambda: nn.AvgPool2d(2)),
    Reading("pool, odd sides", BOTH, lambda: nn.AvgPool2d(2), shape=(2, 5, 5)),
    Reading("pool, divisor", BOTH, lambda: nn.AvgPool2d(2, divisor_override=3)),
    Reading("pool, ceil", BOTH, lambda: nn.AvgPool2d(2, ceil_mode=True), shape=(2, 5, 5)),
    Reading("pool, padding counted", BOTH, lambda: nn.AvgPool2d(2, padding=1)),
    Reading("pool, padding not counted", BOTH, lambda: nn.AvgPool2d(2, padding=1, count_include_pad=False)),
    Reading("pool, overlapping", BOTH, lambda: nn.AvgPool2d(2, stride=1)),
    Reading("max pool, ceil", BOTH, lambda: nn.MaxPool2d(2, ceil_mode=True), shape=(2, 5, 5)),
    Reading("max pool, dilated", BOTH, lambda: nn.MaxPool2d(2, dilation=2)),
    Reading("convolution padded by reflection", NOBODY, lambda: conv(padding=1, padding_mode="reflect")),
    Reading("padding 'same'", BOTH, lambda: conv(padding="same")),
    Reading("dilated", BOTH, lambda: conv(padding=2, dilation=2)),
    Reading("uneven", BOTH, lambda: nn.Conv2d(2, 2, (3, 2), stride=(1, 2))),
    Reading("one-dimensional", BOTH, lambda: nn.Sequential(nn.Flatten(2), nn.Conv1d(2, 2, 3, 2, "valid"))),
    Reading("means", BOTH, calls(lambda m, x: x.mean((-1, 2), True))),
    Reading("sums with the batch", NOBODY, calls(lambda m, x: x.sum(0, keepdim=True))),
    Reading("sums of all", NOBODY, calls(lambda m, x: x.sum() * m.c, c=constant(2, 1, 1))),
    Reading("mean of another type", NOBODY, calls(lambda m, x: x.mean(1, dtype=torch.float32).double())),
    Reading("squeeze and excite", NOBODY, calls(lambda m, x: x * F.hardsigmoid(F.adaptive_avg_pool2d(x, 1)))),
    Reading("groups", BOTH, lambda: conv(groups=2, bias=False)),
    Reading("transposed", CERTIFIER, lambda: nn.ConvTranspose2d(2, 2, 2)),
    Reading("sigmoid", CERTIFIER, nn.Sigmoid),
    Reading("tanh", CERTIFIER, nn.Tanh),
    Reading("leaky, negative slope", BOTH, lambda: nn.LeakyReLU(-0.5)),
    Reading("softmax", NOBODY, lambda: nn.Softmax(1)),
    Reading("flattened images", BOTH, lambda: nn.Flatten(2)),
    Reading("batch norm", BOTH, normed()),
    Reading("batch norm, no affine", BOTH, normed(affine=False)),
    Reading("batch norm, no bias", BOTH, normed(), lambda layer: setattr(layer, "bias", None)),
    Reading("batch norm, no statistics", NOBODY, normed(track_running_stats=False)),
    Reading("batch norm, no momentum", NOBODY, normed(momentum=None)),
    # Modules in training mode, or used twice
    Reading("batch norm in training", NOBODY, normed(), nn.Module.train),
    Reading("batch norm always in training", NOBODY, lambda: AlwaysTraining(2)),
    Reading("dropout in training", NOBODY, nn.Dropout, nn.Module.train),
    Reading("layers used twice", BOTH, lambda: nn.Sequential(*[conv(padding=1), nn.ReLU()] * 2)),
    # Code that torch.fx does not see
    Reading("hook", NOBODY, conv, lambda layer: layer.register_forward_hook(lambda m, i, o: 2 * o)),
    Reading("pre-hook", NOBODY, conv, lambda layer: layer.register_forward_pre_hook(lambda m, i: (2 * i[0],))),
    Reading("own forward", NOBODY, conv, with_own("forward")),
    Reading("own forward of a ReLU", NOBODY, nn.ReLU, with_own("forward")),
    Reading("own _conv_forward", NOBODY, conv, lambda layer: setattr(layer, "_conv_forward", lambda x, w, b: x)),
    Reading("own _call_impl", NOBODY, conv, with_own("_call_impl")),
    Reading("own _call_impl of a class", BOTH, lambda: OwnCallImpl(2, 2, 1)),
    Reading("own __call__ of a class", BOTH, lambda: OwnCall(2, 2, 1)),
    Reading("tensor of its own class", NOBODY, conv, with_doubling(False)),
    Reading("parameter of its own class", NOBODY, conv, with_doubling(True)),
    Reading("parametrised", CERTIFIER, conv,
        lambda m: parametrize.register_parametrization(m, "weight", Doubled()).eval()),
    Reading("branch on the type", NOBODY, calls(depending_on_the_type, layer=conv)),
    Reading("size changed in forward", NOBODY, calls(with_changed_size, pool=lambda: nn.AvgPool2d(2))),
    # Values and tensors changed in place
    Reading("augmented assignments", BOTH, calls(augmented, c=constant(2, 1, 1))),
    Reading("in-place ReLU", BOTH, lambda: nn.Sequential(conv(), nn.ReLU(inplace=True))),
    Reading("read after in-place ReLU", NOBODY, calls(lambda m, x: m.relu(x) + x, relu=lambda: nn.ReLU(inplace=True))),
    Reading("read by another name", NOBODY, calls(read_by_another_name, layer=nn.Identity)),
    Reading("view read after a change", NOBODY, calls(lambda m, x: m.relu(x.flatten(1)) + x.flatten(1),
        relu=lambda: nn.ReLU(True))),
    Reading("relu_", NOBODY, calls(lambda m, x: F.relu_(x - 0.5) + x)),
    Reading("buffer changed", NOBODY, calls(counted, c=constant(2, 1, 1))),
    Reading("buffer changed by augmentation", NOBODY, calls(counted_by_augmentation, c=constant(2, 1, 1))),
    Reading("buffer that takes data", NOBODY, calls(with_data_in_a_buffer, c=constant(1, *IMAGE))),
    Reading("attribute changed", NOBODY,
        lambda: Calls(counted_outside_of_buffers, torch.ones(2, 1, 1, dtype=torch.float64))),
    # Constants, and arguments by name or position
    Reading("sum with a constant", BOTH, calls(lambda m, x: m.c + x, c=constant(2, 1, 1))),
    Reading("difference with alpha", CERTIFIER, calls(lambda m, x: torch.sub(other=x, alpha=2, input=m.c),
        c=constant(*IMAGE))),
    Reading("constant that is computed", CERTIFIER, calls(lambda m, x: x + 2 * m.c, c=constant(2, 1, 1))),
    Reading("layer of a constant", CERTIFIER, calls(lambda m, x: x + m.layer(m.c), layer=lambda: conv(padding=1),
        c=constant(1, *IMAGE))),
    Reading("integer constant", CERTIFIER, calls(lambda m, x: x + m.c, c=lambda: torch.arange(4))),
    Reading("constant that broadcasts", CERTIFIER, calls(lambda m, x: x + m.c, c=constant(3, 1, 1)), shape=(1, 4, 4)),
    Reading("complex constant", NOBODY, calls(lambda m, x: (x + 1j * m.c).real, c=constant(2, 1, 1))),
    Reading("another precision", NOBODY, calls(lambda m, x: x.half().double())),
    Reading("cast", NOBODY, calls(lambda m, x: x.to(torch.float64))),
    Reading("difference of values", BOTH, calls(lambda m, x: m.layer(x) - x, layer=lambda: conv(padding=1))),
    Reading("difference of a value and itself", BOTH, calls(lambda m, x: x + (x - x))),
    Reading("constant less a value", BOTH, calls(lambda m, x: m.c - x, c=constant(2, 1, 1))),
    Reading("products with a constant", BOTH, calls(lambda m, x: m.c * (x * m.c), c=constant(2, 1, 1))),
    Reading("product with a number", BOTH, calls(lambda m, x: 0.1 * x)),
    Reading("product with a matrix", BOTH, calls(lambda m, x: x @ m.c, c=constant(4, 3))),
    Reading("product with matrices", NOBODY, calls(lambda m, x: x @ m.c, c=constant(2, 4, 3))),
    Reading("product with a matrix first", NOBODY, calls(lambda m, x: m.c @ x, c=constant(3, 4))),
    # Shapes
    Reading("permuted", BOTH, calls(lambda m, x: x.permute(0, 3, 1, 2)), shape=(2, 3, 4)),
    Reading("permuted by a list", BOTH, calls(lambda m, x: torch.permute(x, [0, 2, 3, 1]))),
    Reading("permuted batch", NOBODY, calls(lambda m, x: x.permute(1, 0, 2, 3))),
    Reading("dimensions exchanged", BOTH, calls(lambda m, x: x.transpose(1, 2))),
    Reading("batch exchanged", NOBODY, calls(lambda m, x: x.transpose(0, 1))),
    Reading("reshaped", BOTH, calls(lambda m, x: x.reshape(-1, 4, 8))),
    Reading("reshaped by its size", BOTH, calls(lambda m, x: x.reshape(x.shape[0], -1))),
    Reading("reshaped batch", NOBODY, calls(lambda m, x: x.reshape(-1, 4, 4))),
    Reading("padded", BOTH, calls(lambda m, x: F.pad(x, (1, 0, 2, 3)))),
    Reading("padded channels", BOTH, calls(lambda m, x: F.pad(x, (0, 0, 0, 0, 1, 2), value=0.0))),
    Reading("padded batch", NOBODY, calls(lambda m, x: F.pad(x, (0, 0, 0, 0, 0, 0, 1, 0)))),
    Reading("padded by a number", CERTIFIER, calls(lambda m, x: F.pad(x, (1, 1), value=0.5))),
    Reading("padded by reflection", NOBODY, calls(lambda m, x: F.pad(x, (1, 1, 1, 1), mode="reflect"))),
    Reading("cropped", BOTH, calls(lambda m, x: F.pad(x, (-1, 0)))),
    Reading("indexed", BOTH, calls(lambda m, x: x[:, 1:, ..., None, -1])),
    Reading("indexed by a list", BOTH, calls(lambda m, x: x[:, [0, 1, 0], :, 1::2])),
    Reading("indexed by sizes", CERTIFIER, calls(lambda m, x: x[:, : x.size(1) // 2])),
    Reading("indexed batch", NOBODY, calls(lambda m, x: x[:1])),
    Reading("chunks", CERTIFIER, calls(lambda m, x: x.chunk(2, 1)[1])),
    Reading("absolute value", BOTH, calls(lambda m, x: (x - m.c).abs(), c=constant(2, 1, 1))),
    Reading("clamped", BOTH, calls(lambda m, x: x.clamp(0.2, 0.7))),
    # Batches
    Reading("flattened batch", NOBODY, lambda: nn.Flatten(0, 1)),
    Reading("halved images", NOBODY, calls(lambda m, x: x.reshape(-1, 16))),
    Reading("size of the batch", NOBODY, calls(lambda m, x: x * x.shape[0])),
    Reading("constant for each image", NOBODY, calls(lambda m, x: x + m.c, c=constant(2, *IMAGE))),
]  # fmt: skip
