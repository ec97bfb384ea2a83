"""Provides CASES: a model around every operator, in every way to call it; a small network; `assert_sound`."""

import operator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from graphs import normed
from oracles import Lambda, assert_contains, points_of
from torch import nn

from cerdeq import bound


@dataclass(frozen=True)
class Case:
    """A model around one operator.

    shape: of its input, without the batch. form: True for another way to call what an earlier case computes.
    """

    name: str
    make: object
    shape: tuple[int, ...]
    form: bool = False


def cases(shape, makers, form=False):
    return [Case(name, make, shape, form) for name, make in makers.items()]


def conv(kernel, **options):
    return lambda: nn.Conv2d(4, 6, kernel, **options)


def transposed(kernel, **options):
    return lambda: nn.ConvTranspose2d(4, 6, kernel, **options)


def function(forward, **shapes):
    """Return a maker of models that call `forward(x, **parameters)`."""
    return lambda: Lambda(
        lambda module, x: forward(x, **{name: getattr(module, name) for name in shapes}),
        **{name: torch.randn(shape) for name, shape in shapes.items()},
    )


def with_norm(layer):
    """Return a maker of a batch norm whose statistics and parameters are not the defaults."""
    return lambda: nn.Sequential(normed(layer()))


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


IMAGE, VECTOR, SEQUENCE = (4, 7, 6), (5,), (4, 9)
AFFINE = {
    "conv2d": cases(IMAGE, {
        "padded": conv(3, padding=1), "stride": conv(3, stride=2, padding=1),
        "uneven": conv((3, 2), stride=(2, 1), padding=(1, 2)), "dilated": conv(3, padding=2, dilation=2),
        "groups": conv(3, groups=2, stride=2),
        "depthwise": lambda: nn.Conv2d(4, 4, 3, groups=4, padding=1, bias=False),
        "same": conv((3, 5), padding="same", dilation=(2, 1)), "valid": conv(3, padding="valid"),
        "function": function(lambda x, w, b: F.conv2d(x, w, b, stride=2, padding=1), w=(3, 4, 3, 3), b=(3,)),
        "function positional": function(lambda x, w: F.conv2d(x, w, None, 1, 2, 2, 2), w=(6, 2, 3, 3)),
    }),
    "conv1d": cases(SEQUENCE, {
        "padded": lambda: nn.Conv1d(4, 6, 3, padding=2), "same": lambda: nn.Conv1d(4, 6, 5, padding="same"),
        "all": lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1, dilation=2, groups=2, bias=False),
        "function": function(lambda x, w, b: F.conv1d(x, w, b, 2, padding="valid"), w=(3, 4, 2), b=(3,)),
    }),
    "conv_transpose2d": cases(IMAGE, {
        "module": transposed(3), "stride": transposed(3, stride=2, padding=1, output_padding=1, bias=False),
        "uneven": transposed((3, 2), stride=(2, 1), padding=(1, 0), groups=2),
        "dilated": transposed(2, dilation=(3, 2), output_padding=1, padding=1),
        "longer than the stride": transposed(2, stride=1, dilation=3, output_padding=2),
        "function": function(lambda x, w, b: F.conv_transpose2d(x, w, b, 2, padding=1), w=(4, 3, 3, 3), b=(3,)),
        "function positional": function(lambda x, w: F.conv_transpose2d(x, w, None, 1, 2, 1, 2, 2), w=(4, 2, 3, 3)),
    }),
    "linear": cases(VECTOR, {
        "module": lambda: nn.Linear(5, 3), "function": function(F.linear, weight=(3, 5), bias=(3,)),
        "function of a changed weight": function(lambda x, w: F.linear(x, w.abs() * 2), w=(3, 5)),
    }) +
    cases(IMAGE, {"last dimension": lambda: nn.Linear(6, 3)}),
    "matmul": cases(VECTOR, {
        "operator": function(lambda x, w: x @ w, w=(5, 3)), "method": function(lambda x, w: x.matmul(w), w=(5, 1)),
    }) +
    cases(IMAGE, {"last dimension": function(lambda x, w: torch.matmul(x, w), w=(6, 3))}),
    "batch_norm": cases(VECTOR, {"1d": with_norm(lambda: nn.BatchNorm1d(5))}) +
    cases((3, 4), {"1d of sequences": with_norm(lambda: nn.BatchNorm1d(3)), "function": FunctionalNorm}) +
    cases(IMAGE, {
        "2d": with_norm(lambda: nn.BatchNorm2d(4)),
        "not affine": with_norm(lambda: nn.BatchNorm2d(4, affine=False, eps=0.1)),
    }),
    "add": cases(VECTOR, {
        "number": function(lambda x: x + 0.3), "number first": function(lambda x: 2 + x),
        "functions": function(lambda x, c: torch.add(c, x.add(c), alpha=-3), c=(5,)),
        "itself": function(lambda x: x + x),
    }) +
    cases(IMAGE, {
        "tensor": function(lambda x, c: x + c, c=(4, 1, 1)),
        "tensor first": function(lambda x, c: c + x, c=(4, 1, 1)),
    }),
    "subtract": cases(VECTOR, {
        "number first": function(lambda x: 1 - x),
        "function": function(lambda x, c: torch.sub(x, c, alpha=2), c=(5,)),
        "function, constant first": function(lambda x, c: torch.sub(c, x, alpha=2), c=(5,)),
        "full names": function(lambda x, c: torch.subtract(x.subtract(c).sub(c), c), c=(5,)),
    }) +
    cases(IMAGE, {"tensor first": function(lambda x, c: c - x, c=(4, 1, 1))}),
    "multiply": cases(VECTOR, {
        "number": function(lambda x: x * -0.3), "number first": function(lambda x: 3 * x),
        "function": function(lambda x, c: torch.mul(c, x), c=(5,)),
        "full names": function(lambda x, c: torch.multiply(x.multiply(c).mul(c), c), c=(5,)),
        "zero": function(lambda x: x * 0),
    }) +
    cases(IMAGE, {"tensor first": function(lambda x, c: c * x, c=(4, 1, 1))}),
    "divide": cases(VECTOR, {
        "number": function(lambda x: x / -0.3), "function": function(lambda x, c: torch.div(x, c), c=(5,)),
        "full names": function(lambda x, c: torch.divide(x.divide(c).div(c), c), c=(5,)),
    }) +
    cases(IMAGE, {"tensor": function(lambda x, c: x / c, c=(4, 1, 1))}),
    "negative": cases(VECTOR, {
        "sign": function(lambda x: -x), "full names": function(lambda x: torch.negative(1 + x.negative().neg())),
    }) +
    cases(IMAGE, {"function": function(torch.neg)}),
    "avg_pool2d": cases(IMAGE, {
        "module": lambda: nn.Sequential(nn.AvgPool2d(2)),
        "stride": lambda: nn.Sequential(nn.AvgPool2d((3, 2), stride=(2, 1))),
        "padded": lambda: nn.Sequential(nn.AvgPool2d(3, 2, padding=1)),
        "padding not counted": lambda: nn.Sequential(nn.AvgPool2d(3, 2, padding=1, count_include_pad=False)),
        "ceil and padded": lambda: nn.Sequential(nn.AvgPool2d(3, 3, padding=1, ceil_mode=True)),
        "negative divisor": lambda: nn.Sequential(nn.AvgPool2d(2, divisor_override=-3)),
        "function": function(lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True, count_include_pad=False)),
    }),
    "adaptive_avg_pool2d": cases(IMAGE, {
        "module": lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1)),
        "uneven": lambda: nn.Sequential(nn.AdaptiveAvgPool2d((3, None))),
        "function": function(lambda x: F.adaptive_avg_pool2d(x, (2, 5))),
    }),
    "avg_pool1d": cases(SEQUENCE, {
        "module": lambda: nn.Sequential(nn.AvgPool1d(2)),
        "padding not counted": lambda: nn.Sequential(nn.AvgPool1d(3, 2, 1, ceil_mode=True, count_include_pad=False)),
        "function": function(lambda x: F.avg_pool1d(x, 4, 3, padding=2)),
    }),
    "adaptive_avg_pool1d": cases(SEQUENCE, {
        "module": lambda: nn.Sequential(nn.AdaptiveAvgPool1d(4)),
        "function": function(lambda x: F.adaptive_avg_pool1d(x, 1)),
    }),
    "mean": cases(IMAGE, {
        "method": function(lambda x: x.mean((2, 3))),
        "keepdim": function(lambda x: torch.mean(x, dim=[-1, 2], keepdim=True)),
        "one dimension": function(lambda x: x.mean(1)),
    }),
    "sum": cases(IMAGE, {
        "method": function(lambda x: x.sum(-2, True)), "function": function(lambda x: torch.sum(x, (3, 1))),
    }),
    "concatenate": cases(VECTOR, {
        "two values": function(lambda x, w: torch.cat([x - 1, F.linear(x, w)], 1), w=(3, 5)),
        "constants first": function(
            lambda x, c: torch.concatenate([c.expand(x.shape[0], 2), 2 * x, c.expand(x.shape[0], 2)], 1), c=(2,)),
        "nested": function(lambda x: torch.cat([torch.cat([x, -x], 1), x / 3], 1)),
    }) +
    cases(IMAGE, {
        "last dimension": function(lambda x: torch.cat([x, -x, x * 2], dim=-1)),
        "by name": function(lambda x: torch.cat(tensors=[x, -x], dim=2)),
        "constant": function(lambda x, c: torch.concat([x, c.expand(x.size(0), -1, -1, -1)], 1), c=(2, 7, 6)),
    }),
    "flatten": cases(IMAGE, {
        "module": nn.Flatten, "function": function(lambda x: torch.flatten(x, 1)),
        "method": function(lambda x: x.flatten(1, 2)), "in a network": lambda: nn.Sequential(nn.Flatten()),
    }),
    "reshape": cases(IMAGE, {
        "function": function(lambda x: torch.reshape(x, (-1, 168))),
        "method": function(lambda x: x.reshape(x.shape[0], 2, 2, 42)),
        "method, tuple": function(lambda x: x.reshape((x.size(0), -1, 6))),
        "view": function(lambda x: x.view(x.size(0), -1)), "view, tuple": function(lambda x: x.view((-1, 7, 4, 6))),
        "view, sizes": function(lambda x: x.view(x.size()[0], x.size(1) * x.shape[2], x.shape[-1])),
    }),
    "permute": cases(IMAGE, {
        "function": function(lambda x: torch.permute(x, (0, 2, 3, 1))),
        "method": function(lambda x: x.permute(0, 3, 1, 2)),
        "method, from the end": function(lambda x: x.permute([0, -1, 2, -3])),
    }),
    "transpose": cases(IMAGE, {
        "function": function(lambda x: torch.transpose(x, 1, 2)),
        "method, from the end": function(lambda x: x.transpose(-1, 1)),
    }),
    "pad": cases(IMAGE, {
        "zeros": function(lambda x: F.pad(x, (1, 0, 2, 3))),
        "channels": function(lambda x: F.pad(x, [0, 0, 0, 1, 1, 0], "constant", 0.7)),
        "cropped": function(lambda x: F.pad(x, (-1, 0, 2, -2))),
    }) +
    cases(VECTOR, {"a number": function(lambda x: F.pad(x, (1, 2), value=-0.3))}),
    "index": cases(IMAGE, {
        "a slice": function(lambda x: x[:, 1:3]), "the last": function(lambda x: x[:, -1]),
        "many": function(lambda x: x[:, None, 1, ..., ::2]), "computed": function(lambda x: x[:, x.size(1) // 2 :]),
        "a list": function(lambda x: x[:, :, [0, -1, 0]]), "a mask": function(lambda x: x[:, torch.arange(4) > 1]),
    }) +
    cases(VECTOR, {"from the end": function(lambda x: x[..., -1:])}),
    "narrow": cases(IMAGE, {
        "function": function(lambda x: torch.narrow(x, 1, 2, 2)),
        "method": function(lambda x: x.narrow(dim=-1, start=-3, length=2)),
    }),
    "select": cases(IMAGE, {
        "function": function(lambda x: torch.select(x, 2, 0)), "method": function(lambda x: x.select(-1, -1)),
    }),
    "index_select": cases(IMAGE, {
        "function": function(lambda x: torch.index_select(x, 1, torch.tensor([3, 0, 3]))),
        "method": function(lambda x: x.index_select(-1, torch.tensor([2]))),
    }),
    "parts": cases(IMAGE, {
        "functions": function(lambda x: torch.chunk(x, 2, 1)[0] - torch.split(x, 2, dim=1)[1]),
        "methods": function(lambda x: x.chunk(2, dim=1)[-1].split(4, dim=2)[1]),
    }),
    "part": cases(IMAGE, {
        "unpacked": function(half_difference),
        "of a list": function(lambda x: torch.split(x, (1, x.shape[1] - 1), dim=1)[1]),
    }),
    "identity": cases(VECTOR, {"identity": lambda: nn.Sequential(nn.Identity())}),
    "dropout": cases(VECTOR, {
        "dropout": lambda: nn.Sequential(nn.Dropout(0.9)),
        "function": function(lambda x: F.dropout(x, 0.9, training=False)),
        "function positional": function(lambda x: F.dropout(x, 0.9, False, True)),
    }) +
    cases(IMAGE, {
        "channels": lambda: nn.Sequential(nn.Dropout2d(0.9)),
        "function of channels": function(lambda x: F.dropout2d(x, training=False)),
    }),
}  # fmt: skip
NOT_AFFINE = {
    "relu": cases(IMAGE, {"module": lambda: nn.Sequential(nn.ReLU())}) +
    cases(IMAGE, {"in place": lambda: nn.Sequential(nn.ReLU(inplace=True))}, form=True) +
    cases(VECTOR, {
        "function": function(F.relu), "function in place": function(lambda x: F.relu(x, inplace=True)),
        "torch function": function(torch.relu), "method": function(lambda x: x.relu()),
    }, form=True),
    "leaky_relu": cases(IMAGE, {"module": lambda: nn.Sequential(nn.LeakyReLU())}) +
    cases(VECTOR, {f"slope {s}": lambda s=s: nn.Sequential(nn.LeakyReLU(s)) for s in (0.01, 0, 1, 1.5, -0.5, -3)}) +
    cases(IMAGE, {"in place": lambda: nn.Sequential(nn.LeakyReLU(0.3, inplace=True))}, form=True) +
    cases(VECTOR, {
        "function": function(F.leaky_relu), "function, slope": function(lambda x: F.leaky_relu(x, -0.5)),
        "function in place": function(lambda x: F.leaky_relu(x, negative_slope=1.5, inplace=True)),
        "function positional": function(lambda x: F.leaky_relu(x, 0.2, True)),
    }, form=True),
    "absolute": cases(IMAGE, {"function": function(torch.abs)}) +
    cases(VECTOR, {
        "method": function(lambda x: x.abs()), "full names": function(lambda x: torch.absolute(x).absolute()),
    }, form=True),
    "clamp": cases(IMAGE, {"function": function(lambda x: torch.clamp(x, -0.5, 0.7))}) +
    cases(VECTOR, {
        "below": function(lambda x: x.clamp(min=0.1)), "above": function(lambda x: torch.clip(x, max=-0.3)),
        "in the wrong order": function(lambda x: x.clip(1, 0.5)),
    }),
    "hardtanh": cases(IMAGE, {
        "module": lambda: nn.Sequential(nn.Hardtanh()), "ReLU6": lambda: nn.Sequential(nn.ReLU6(inplace=True)),
    }) +
    cases(VECTOR, {"function": function(lambda x: F.hardtanh(x, -0.1, 0.2))}, form=True),
    "relu6": cases(VECTOR, {"function": function(lambda x: F.relu6(6 * x) / 6)}),
    "hardsigmoid": cases(IMAGE, {"module": lambda: nn.Sequential(nn.Hardsigmoid())}) +
    cases(VECTOR, {"function": function(lambda x: F.hardsigmoid(2 * x, inplace=True))}, form=True),
    "hardswish": cases(IMAGE, {"module": lambda: nn.Sequential(nn.Hardswish())}) +
    cases(VECTOR, {"function": function(F.hardswish)}, form=True),
    "max_pool1d": cases(SEQUENCE, {
        "module": lambda: nn.Sequential(nn.MaxPool1d(3, 2, 1)), "function": function(lambda x: F.max_pool1d(x, 2)),
        "torch function": function(lambda x: torch.max_pool1d(x, 3, 1, dilation=2, ceil_mode=True)),
    }),
    "max_pool2d": cases(IMAGE, {
        "module": lambda: nn.Sequential(nn.MaxPool2d(2)),
        "overlapping": lambda: nn.Sequential(nn.MaxPool2d(3, stride=1)),
        "uneven": lambda: nn.Sequential(nn.MaxPool2d((3, 2), stride=(1, 2), padding=(1, 0))),
        "padded": lambda: nn.Sequential(nn.MaxPool2d(3, 2, padding=1)),
        "dilated": lambda: nn.Sequential(nn.MaxPool2d(2, stride=1, dilation=(3, 2))),
        "ceil": lambda: nn.Sequential(nn.MaxPool2d(2, ceil_mode=True)),
        "all": lambda: nn.Sequential(nn.MaxPool2d(3, 2, padding=1, dilation=2, ceil_mode=True)),
    }) +
    cases(IMAGE, {
        "function": function(lambda x: F.max_pool2d(x, kernel_size=(2, 3), stride=1, ceil_mode=True)),
        "function positional": function(lambda x: F.max_pool2d(x, 3, 2, 1, 1, True)),
        "torch function": function(lambda x: torch.max_pool2d(x, 2, 1, 1)),
        "without channels": function(lambda x: F.max_pool2d(x.flatten(1, 2), 2, 1, 1, 2, True)),
    }, form=True),
}  # fmt: skip
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
