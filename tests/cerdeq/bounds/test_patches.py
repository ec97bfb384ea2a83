"""Windows of coefficients against whole images: the same numbers; which boxes CROWN tightens."""

import pytest
import torch
import torch.nn.functional as F
from oracles import Lambda, random_box
from torch import nn

from baselines.resnet import BasicBlock
from cerdeq.bounds import Backward, Context, Interval, linear_lower_bound, patches, trace, values_of
from cerdeq.bounds.patches import Patches, one_hot


def conv(inputs, outputs, kernel=3, **options):
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel, **options), nn.BatchNorm2d(outputs), nn.ReLU())


def parameters(*shape):
    return nn.Parameter(torch.randn(shape))


NETWORKS = {
    "plain": lambda: nn.Sequential(conv(2, 3, padding=1), conv(3, 4, padding=1), nn.Conv2d(4, 2, 3, padding=1)),
    "strides": lambda: nn.Sequential(conv(2, 3, stride=2, padding=1), conv(3, 4, padding=1), conv(4, 2, 3, stride=2)),
    "uneven": lambda: nn.Sequential(
        conv(2, 4, (3, 2), stride=(2, 1), padding=(1, 2)), conv(4, 4, (1, 3), groups=2, dilation=(1, 2))
    ),
    "dilated": lambda: nn.Sequential(conv(2, 3, padding=2, dilation=2), conv(3, 2, padding="same", dilation=(2, 1))),
    "wide padding": lambda: nn.Sequential(conv(2, 3, 1, padding=3), conv(3, 2, 1, padding=4), conv(2, 2)),
    "leaky": lambda: nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.LeakyReLU(0.2), nn.Conv2d(3, 2, 3), nn.ReLU()),
    "residual, strides": lambda: nn.Sequential(BasicBlock(2, 3, 2), BasicBlock(3, 4, 2), nn.Conv2d(4, 2, 1)),
    "pooled": lambda: nn.Sequential(conv(2, 3, padding=1), nn.AvgPool2d(2), conv(3, 3, padding=1), nn.MaxPool2d(2)),
    "channels alone": lambda: Lambda(
        lambda m, x: F.relu(F.conv2d(F.relu(x * m.c - m.c), m.w, padding=1) / 3), c=parameters(2, 1, 1),
        w=parameters(3, 2, 3, 3),
    ),
    "columns differ": lambda: Lambda(
        lambda m, x: F.relu(F.conv2d(F.relu(x * m.c), m.w, padding=1) + m.d), c=parameters(8), d=parameters(3, 9, 8),
        w=parameters(3, 2, 3, 3),
    ),
    "a value broadcast over the image": lambda: Lambda(
        lambda m, x: F.conv2d(F.relu(x + F.adaptive_avg_pool2d(x, 1)), m.w, padding=1), w=parameters(3, 2, 3, 3)
    ),
}  # fmt: skip


def network(name):
    model = NETWORKS[name]().double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.3, 2)
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    return model


pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")


@pytest.mark.parametrize("name", NETWORKS)
def test_windows_give_the_bounds_of_whole_images(name):
    program = trace(network(name), linear=True)
    box = random_box(2, 2, 9, 8)
    values = values_of(program, Interval(box.center, box.radius), Context(sound=True))
    for at in [n for n, value in enumerate(values) if n and isinstance(value, Interval)]:
        shape = values[at].center.shape[1:]
        index = torch.randint(0, shape.numel(), (2, 6))
        sign = torch.randn(2, 6).double()
        windows = one_hot(index, sign, shape)
        assert isinstance(windows, Patches)
        by_windows, expected = (
            linear_lower_bound(program, values, coefficients, at, Backward(sound=True))
            for coefficients in (windows, windows.dense())
        )
        torch.testing.assert_close(by_windows, expected, rtol=1e-9, atol=1e-9)


def test_a_window_stays_a_window_as_long_as_it_is_smaller(monkeypatch):
    """Otherwise the tests above would compare whole images with whole images."""
    program = trace(network("strides"), linear=True)
    box = random_box(1, 2, 33, 33)
    values = values_of(program, Interval(box.center, box.radius), Context(sound=True))
    forms = []
    pull = patches.pull

    def recorded(ctx, record, coefficients, arguments, options):
        forms.append(tuple(coefficients.values.shape[3:]))
        return pull(ctx, record, coefficients, arguments, options)

    monkeypatch.setattr("cerdeq.bounds.crown_pass.pull", recorded)
    output = one_hot(torch.tensor([[5]]), torch.ones(1, 1).double(), values[-1].center.shape[1:])
    linear_lower_bound(program, values, output, program.output, Backward(sound=True))
    assert forms == [(1, 1)] * 3 + [(3, 3)] * 3 + [(5, 5)] * 3
