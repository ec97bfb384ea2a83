"""Provides CASES: a model around every operator, in every way it can be called; two small networks, assert_sound."""

import operator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from oracles import Lambda, assert_contains, points_of
from torch import nn

from cerdeq import bound


@dataclass(frozen=True)
class Case:
    """A model around one operator.

    shape: of its input, without the batch. form: whether it is only another way to call what an earlier case computes.
    """

    name: str
    make: object
    shape: tuple[int, ...]
    form: bool = False


def conv(kernel, **options):
    return lambda: nn.Conv2d(4, 6, kernel, **options)


def transposed(kernel, **options):
    return lambda: nn.ConvTranspose2d(4, 6, kernel, **options)


def function(forward, **shapes):
    """A model that calls `forward(x, **parameters)`."""
    return lambda: Lambda(
        lambda module, x: forward(x, **{name: getattr(module, name) for name in shapes}),
        **{name: torch.randn(shape) for name, shape in shapes.items()},
    )


def normed(layer):
    """A network of a batch norm whose statistics and parameters are not the defaults."""

    def make():
        norm = layer()
        with torch.no_grad():
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.01, 3)
            if norm.affine:
                norm.weight.normal_()
                norm.bias.normal_()
        return nn.Sequential(norm)

    return make


class FunctionalNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.randn(3))
        self.register_buffer("variance", torch.rand(3) + 0.1)
        self.weight = nn.Parameter(torch.randn(3))

    def forward(self, x):
        return F.batch_norm(x, self.mean, self.variance, self.weight, eps=1e-3)


def half_difference(x):
    first, second = torch.split(x, [2, 2], dim=1)
    return first - second


IMAGE, VECTOR = (4, 7, 6), (5,)
AFFINE = {
    "conv2d": [
        Case("padded", conv(3, padding=1), IMAGE),
        Case("stride", conv(3, stride=2, padding=1), IMAGE),
        Case("uneven", conv((3, 2), stride=(2, 1), padding=(1, 2)), IMAGE),
        Case("dilated", conv(3, padding=2, dilation=2), IMAGE),
        Case("groups", conv(3, groups=2, stride=2), IMAGE),
        Case("depthwise", lambda: nn.Conv2d(4, 4, 3, groups=4, padding=1, bias=False), IMAGE),
        Case("same", conv((3, 5), padding="same", dilation=(2, 1)), IMAGE),
        Case("valid", conv(3, padding="valid"), IMAGE),
        Case(
            "function",
            function(lambda x, w, b: F.conv2d(x, w, b, stride=2, padding=1), w=(3, 4, 3, 3), b=(3,)),
            IMAGE,
        ),
        Case("function positional", function(lambda x, w: F.conv2d(x, w, None, 1, 2, 2, 2), w=(6, 2, 3, 3)), IMAGE),
    ],
    "conv_transpose2d": [
        Case("module", transposed(3), IMAGE),
        Case("stride", transposed(3, stride=2, padding=1, output_padding=1, bias=False), IMAGE),
        Case("uneven", transposed((3, 2), stride=(2, 1), padding=(1, 0), groups=2), IMAGE),
        Case("dilated", transposed(2, dilation=(3, 2), output_padding=1, padding=1), IMAGE),
        Case("longer than the stride", transposed(2, stride=1, dilation=3, output_padding=2), IMAGE),
        Case(
            "function",
            function(lambda x, w, b: F.conv_transpose2d(x, w, b, 2, padding=1), w=(4, 3, 3, 3), b=(3,)),
            IMAGE,
        ),
        Case(
            "function positional",
            function(lambda x, w: F.conv_transpose2d(x, w, None, 1, 2, 1, 2, 2), w=(4, 2, 3, 3)),
            IMAGE,
        ),
    ],
    "linear": [
        Case("module", lambda: nn.Linear(5, 3), VECTOR),
        Case("last dimension", lambda: nn.Linear(6, 3), IMAGE),
        Case("function", function(F.linear, weight=(3, 5), bias=(3,)), VECTOR),
        Case("function of a changed weight", function(lambda x, w: F.linear(x, w.abs() * 2), w=(3, 5)), VECTOR),
    ],
    "matmul": [
        Case("operator", function(lambda x, w: x @ w, w=(5, 3)), VECTOR),
        Case("last dimension", function(lambda x, w: torch.matmul(x, w), w=(6, 3)), IMAGE),
        Case("method", function(lambda x, w: x.matmul(w), w=(5, 1)), VECTOR),
    ],
    "batch_norm": [
        Case("1d", normed(lambda: nn.BatchNorm1d(5)), VECTOR),
        Case("1d of sequences", normed(lambda: nn.BatchNorm1d(3)), (3, 4)),
        Case("2d", normed(lambda: nn.BatchNorm2d(4)), IMAGE),
        Case("not affine", normed(lambda: nn.BatchNorm2d(4, affine=False, eps=0.1)), IMAGE),
        Case("function", FunctionalNorm, (3, 4)),
    ],
    "add": [
        Case("number", function(lambda x: x + 0.3), VECTOR),
        Case("number first", function(lambda x: 2 + x), VECTOR),
        Case("tensor", function(lambda x, c: x + c, c=(4, 1, 1)), IMAGE),
        Case("tensor first", function(lambda x, c: c + x, c=(4, 1, 1)), IMAGE),
        Case("functions", function(lambda x, c: torch.add(c, x.add(c), alpha=-3), c=(5,)), VECTOR),
        Case("itself", function(lambda x: x + x), VECTOR),
    ],
    "subtract": [
        Case("number first", function(lambda x: 1 - x), VECTOR),
        Case("tensor first", function(lambda x, c: c - x, c=(4, 1, 1)), IMAGE),
        Case("function", function(lambda x, c: torch.sub(x, c, alpha=2), c=(5,)), VECTOR),
        Case("function, constant first", function(lambda x, c: torch.sub(c, x, alpha=2), c=(5,)), VECTOR),
        Case("full names", function(lambda x, c: torch.subtract(x.subtract(c).sub(c), c), c=(5,)), VECTOR),
    ],
    "multiply": [
        Case("number", function(lambda x: x * -0.3), VECTOR),
        Case("number first", function(lambda x: 3 * x), VECTOR),
        Case("tensor first", function(lambda x, c: c * x, c=(4, 1, 1)), IMAGE),
        Case("function", function(lambda x, c: torch.mul(c, x), c=(5,)), VECTOR),
        Case("full names", function(lambda x, c: torch.multiply(x.multiply(c).mul(c), c), c=(5,)), VECTOR),
        Case("zero", function(lambda x: x * 0), VECTOR),
    ],
    "divide": [
        Case("number", function(lambda x: x / -0.3), VECTOR),
        Case("tensor", function(lambda x, c: x / c, c=(4, 1, 1)), IMAGE),
        Case("function", function(lambda x, c: torch.div(x, c), c=(5,)), VECTOR),
        Case("full names", function(lambda x, c: torch.divide(x.divide(c).div(c), c), c=(5,)), VECTOR),
    ],
    "negative": [
        Case("sign", function(lambda x: -x), VECTOR),
        Case("function", function(torch.neg), IMAGE),
        Case("full names", function(lambda x: torch.negative(1 + x.negative().neg())), VECTOR),
    ],
    "avg_pool2d": [
        Case("module", lambda: nn.Sequential(nn.AvgPool2d(2)), IMAGE),
        Case("stride", lambda: nn.Sequential(nn.AvgPool2d((3, 2), stride=(2, 1))), IMAGE),
        Case("padded", lambda: nn.Sequential(nn.AvgPool2d(3, 2, padding=1)), IMAGE),
        Case(
            "padding not counted", lambda: nn.Sequential(nn.AvgPool2d(3, 2, padding=1, count_include_pad=False)), IMAGE
        ),
        Case("ceil and padded", lambda: nn.Sequential(nn.AvgPool2d(3, 3, padding=1, ceil_mode=True)), IMAGE),
        Case("negative divisor", lambda: nn.Sequential(nn.AvgPool2d(2, divisor_override=-3)), IMAGE),
        Case("function", function(lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True, count_include_pad=False)), IMAGE),
    ],
    "adaptive_avg_pool2d": [
        Case("module", lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1)), IMAGE),
        Case("uneven", lambda: nn.Sequential(nn.AdaptiveAvgPool2d((3, None))), IMAGE),
        Case("function", function(lambda x: F.adaptive_avg_pool2d(x, (2, 5))), IMAGE),
    ],
    "concatenate": [
        Case("two values", function(lambda x, w: torch.cat([x - 1, F.linear(x, w)], 1), w=(3, 5)), VECTOR),
        Case("last dimension", function(lambda x: torch.cat([x, -x, x * 2], dim=-1)), IMAGE),
        Case("by name", function(lambda x: torch.cat(tensors=[x, -x], dim=2)), IMAGE),
        Case(
            "constant", function(lambda x, c: torch.concat([x, c.expand(x.size(0), -1, -1, -1)], 1), c=(2, 7, 6)), IMAGE
        ),
        Case(
            "constants first",
            function(
                lambda x, c: torch.concatenate([c.expand(x.shape[0], 2), 2 * x, c.expand(x.shape[0], 2)], 1), c=(2,)
            ),
            VECTOR,
        ),
        Case("nested", function(lambda x: torch.cat([torch.cat([x, -x], 1), x / 3], 1)), VECTOR),
    ],
    "flatten": [
        Case("module", nn.Flatten, IMAGE),
        Case("function", function(lambda x: torch.flatten(x, 1)), IMAGE),
        Case("method", function(lambda x: x.flatten(1, 2)), IMAGE),
        Case("in a network", lambda: nn.Sequential(nn.Flatten()), IMAGE),
    ],
    "reshape": [
        Case("function", function(lambda x: torch.reshape(x, (-1, 168))), IMAGE),
        Case("method", function(lambda x: x.reshape(x.shape[0], 2, 2, 42)), IMAGE),
        Case("method, tuple", function(lambda x: x.reshape((x.size(0), -1, 6))), IMAGE),
        Case("view", function(lambda x: x.view(x.size(0), -1)), IMAGE),
        Case("view, tuple", function(lambda x: x.view((-1, 7, 4, 6))), IMAGE),
        Case("view, sizes", function(lambda x: x.view(x.size()[0], x.size(1) * x.shape[2], x.shape[-1])), IMAGE),
    ],
    "permute": [
        Case("function", function(lambda x: torch.permute(x, (0, 2, 3, 1))), IMAGE),
        Case("method", function(lambda x: x.permute(0, 3, 1, 2)), IMAGE),
        Case("method, from the end", function(lambda x: x.permute([0, -1, 2, -3])), IMAGE),
    ],
    "transpose": [
        Case("function", function(lambda x: torch.transpose(x, 1, 2)), IMAGE),
        Case("method, from the end", function(lambda x: x.transpose(-1, 1)), IMAGE),
    ],
    "pad": [
        Case("zeros", function(lambda x: F.pad(x, (1, 0, 2, 3))), IMAGE),
        Case("a number", function(lambda x: F.pad(x, (1, 2), value=-0.3)), VECTOR),
        Case("channels", function(lambda x: F.pad(x, [0, 0, 0, 1, 1, 0], "constant", 0.7)), IMAGE),
        Case("cropped", function(lambda x: F.pad(x, (-1, 0, 2, -2))), IMAGE),
    ],
    "index": [
        Case("a slice", function(lambda x: x[:, 1:3]), IMAGE),
        Case("the last", function(lambda x: x[:, -1]), IMAGE),
        Case("many", function(lambda x: x[:, None, 1, ..., ::2]), IMAGE),
        Case("from the end", function(lambda x: x[..., -1:]), VECTOR),
        Case("computed", function(lambda x: x[:, x.size(1) // 2 :]), IMAGE),
        Case("a list", function(lambda x: x[:, :, [0, -1, 0]]), IMAGE),
        Case("a mask", function(lambda x: x[:, torch.arange(4) > 1]), IMAGE),
    ],
    "narrow": [
        Case("function", function(lambda x: torch.narrow(x, 1, 2, 2)), IMAGE),
        Case("method", function(lambda x: x.narrow(dim=-1, start=-3, length=2)), IMAGE),
    ],
    "select": [
        Case("function", function(lambda x: torch.select(x, 2, 0)), IMAGE),
        Case("method", function(lambda x: x.select(-1, -1)), IMAGE),
    ],
    "index_select": [
        Case("function", function(lambda x: torch.index_select(x, 1, torch.tensor([3, 0, 3]))), IMAGE),
        Case("method", function(lambda x: x.index_select(-1, torch.tensor([2]))), IMAGE),
    ],
    "parts": [
        Case("functions", function(lambda x: torch.chunk(x, 2, 1)[0] - torch.split(x, 2, dim=1)[1]), IMAGE),
        Case("methods", function(lambda x: x.chunk(2, dim=1)[-1].split(4, dim=2)[1]), IMAGE),
    ],
    "part": [
        Case("unpacked", function(half_difference), IMAGE),
        Case("of a list", function(lambda x: torch.split(x, (1, x.shape[1] - 1), dim=1)[1]), IMAGE),
    ],
    "identity": [
        Case("identity", lambda: nn.Sequential(nn.Identity()), VECTOR),
    ],
    "dropout": [
        Case("dropout", lambda: nn.Sequential(nn.Dropout(0.9)), VECTOR),
        Case("channels", lambda: nn.Sequential(nn.Dropout2d(0.9)), IMAGE),
        Case("function", function(lambda x: F.dropout(x, 0.9, training=False)), VECTOR),
        Case("function positional", function(lambda x: F.dropout(x, 0.9, False, True)), VECTOR),
        Case("function of channels", function(lambda x: F.dropout2d(x, training=False)), IMAGE),
    ],
}
NOT_AFFINE = {
    "relu": [
        Case("module", lambda: nn.Sequential(nn.ReLU()), IMAGE),
        Case("in place", lambda: nn.Sequential(nn.ReLU(inplace=True)), IMAGE, form=True),
        Case("function", function(F.relu), VECTOR, form=True),
        Case("function in place", function(lambda x: F.relu(x, inplace=True)), VECTOR, form=True),
        Case("torch function", function(torch.relu), VECTOR, form=True),
        Case("method", function(lambda x: x.relu()), VECTOR, form=True),
    ],
    "leaky_relu": [
        Case("module", lambda: nn.Sequential(nn.LeakyReLU()), IMAGE),
        *(Case(f"slope {s}", lambda s=s: nn.Sequential(nn.LeakyReLU(s)), VECTOR) for s in (0.01, 0, 1, 1.5, -0.5, -3)),
        Case("in place", lambda: nn.Sequential(nn.LeakyReLU(0.3, inplace=True)), IMAGE, form=True),
        Case("function", function(F.leaky_relu), VECTOR, form=True),
        Case("function, slope", function(lambda x: F.leaky_relu(x, -0.5)), VECTOR, form=True),
        Case(
            "function in place",
            function(lambda x: F.leaky_relu(x, negative_slope=1.5, inplace=True)),
            VECTOR,
            form=True,
        ),
        Case("function positional", function(lambda x: F.leaky_relu(x, 0.2, True)), VECTOR, form=True),
    ],
    "absolute": [
        Case("function", function(torch.abs), IMAGE),
        Case("method", function(lambda x: x.abs()), VECTOR, form=True),
        Case("full names", function(lambda x: torch.absolute(x).absolute()), VECTOR, form=True),
    ],
    "clamp": [
        Case("function", function(lambda x: torch.clamp(x, -0.5, 0.7)), IMAGE),
        Case("below", function(lambda x: x.clamp(min=0.1)), VECTOR),
        Case("above", function(lambda x: torch.clip(x, max=-0.3)), VECTOR),
        Case("in the wrong order", function(lambda x: x.clip(1, 0.5)), VECTOR),
    ],
    "hardtanh": [
        Case("module", lambda: nn.Sequential(nn.Hardtanh()), IMAGE),
        Case("ReLU6", lambda: nn.Sequential(nn.ReLU6(inplace=True)), IMAGE),
        Case("function", function(lambda x: F.hardtanh(x, -0.1, 0.2)), VECTOR, form=True),
    ],
    "relu6": [
        Case("function", function(lambda x: F.relu6(6 * x) / 6), VECTOR),
    ],
    "max_pool2d": [
        Case("module", lambda: nn.Sequential(nn.MaxPool2d(2)), IMAGE),
        Case("overlapping", lambda: nn.Sequential(nn.MaxPool2d(3, stride=1)), IMAGE),
        Case("uneven", lambda: nn.Sequential(nn.MaxPool2d((3, 2), stride=(1, 2), padding=(1, 0))), IMAGE),
        Case("padded", lambda: nn.Sequential(nn.MaxPool2d(3, 2, padding=1)), IMAGE),
        Case("dilated", lambda: nn.Sequential(nn.MaxPool2d(2, stride=1, dilation=(3, 2))), IMAGE),
        Case("ceil", lambda: nn.Sequential(nn.MaxPool2d(2, ceil_mode=True)), IMAGE),
        Case("all", lambda: nn.Sequential(nn.MaxPool2d(3, 2, padding=1, dilation=2, ceil_mode=True)), IMAGE),
        Case(
            "function",
            function(lambda x: F.max_pool2d(x, kernel_size=(2, 3), stride=1, ceil_mode=True)),
            IMAGE,
            form=True,
        ),
        Case("function positional", function(lambda x: F.max_pool2d(x, 3, 2, 1, 1, True)), IMAGE, form=True),
        Case("torch function", function(lambda x: torch.max_pool2d(x, 2, 1, 1)), IMAGE, form=True),
    ],
}
for name, module in (("sigmoid", nn.Sigmoid), ("tanh", nn.Tanh)):
    NOT_AFFINE[name] = [
        Case("module", lambda module=module: nn.Sequential(module()), IMAGE),
        Case("function", function(getattr(F, name)), VECTOR, form=True),
        Case("torch function", function(getattr(torch, name)), VECTOR, form=True),
        Case("method", function(lambda x, name=name: getattr(x, name)()), VECTOR, form=True),
    ]
NOT_AFFINE["sign"] = [
    Case("function", function(torch.sign), IMAGE),
    Case("method", function(lambda x: x.sign()), VECTOR),
]
CASES = AFFINE | NOT_AFFINE
AUGMENTED = {operator.iadd, operator.isub, operator.imul, operator.itruediv}  # these have a test of their own


def build_model(case, dtype=torch.float64):
    """Return the case's model; a bare module becomes the layer of a network, so that tracing meets it as a module."""
    model = case.make()
    model = nn.Sequential(model) if type(model).__module__.startswith("torch.nn") else model
    return model.to(dtype).eval()


def mlp():
    return nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))


def assert_sound(model, box, method="ibp"):
    """Check that the bounds contain what the module computes."""
    model = model.double().eval()
    lower, upper = bound(model, box, method)
    with torch.no_grad():
        assert_contains(lower, upper, torch.stack([model(x.clone()) for x in points_of(box, 64)]))
