"""Certificates of networks with several affine layers before the first ReLU are confirmed."""

import pytest
import torch
import torch.nn.functional as F
from searches import checked, searched
from torch import nn

from cerdeq import LinfBall, bound


class Sum(nn.Module):
    """A layer, and another one beside it."""

    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x):
        return sum(layer(x) for layer in self.layers[1:]) + self.layers[0](x)


class Mean(nn.Module):
    def forward(self, x):
        return x.mean(3)


class Padding(nn.Module):
    def forward(self, x):
        return F.pad(x, (1, 1, 1, 1))


def norm(kind, channels):
    layer = kind(channels)
    for tensor in (layer.weight, layer.bias, layer.running_mean, layer.running_var):
        tensor.data.uniform_(0.5, 1.5)
    return layer


PREFIXES = {  # from images [1, 4, 4] to vectors
    "linear": lambda: [nn.Flatten(), nn.Linear(16, 6)],
    "linear, linear": lambda: [nn.Flatten(), nn.Linear(16, 6), nn.Linear(6, 6)],
    "linear, linear, linear": lambda: [nn.Flatten(), nn.Linear(16, 6), nn.Linear(6, 6), nn.Linear(6, 6)],
    "linear, batch norm, linear": lambda: [nn.Flatten(), nn.Linear(16, 6), norm(nn.BatchNorm1d, 6), nn.Linear(6, 6)],
    "convolution, linear": lambda: [nn.Conv2d(1, 2, 3, 2, 1), nn.Flatten(), nn.Linear(8, 6)],
    "convolution, batch norm, convolution": lambda: [
        nn.Conv2d(1, 2, 3, 2, 1), norm(nn.BatchNorm2d, 2), nn.Conv2d(2, 6, 2), nn.Flatten()
    ],
    "convolution, average pool": lambda: [nn.Conv2d(1, 6, 3, 1, 1), nn.AvgPool2d(4), nn.Flatten()],
    "average pool, linear": lambda: [nn.AvgPool2d(2, 1), nn.Flatten(), nn.Linear(9, 6)],
    "convolution, mean": lambda: [nn.Conv2d(1, 2, 3, 1, 1), Mean(), nn.Flatten(), nn.Linear(8, 6)],
    "sum of two": lambda: [nn.Flatten(), Sum(nn.Linear(16, 6), nn.Linear(16, 6))],
    "sum of two, of linear": lambda: [nn.Flatten(), nn.Linear(16, 6), Sum(nn.Linear(6, 6), nn.Identity())],
    "padding, linear": lambda: [Padding(), nn.Conv2d(1, 2, 3, 2), nn.Flatten(), nn.Linear(8, 6)],
    "batch norm, linear, linear": lambda: [nn.Flatten(), norm(nn.BatchNorm1d, 16), nn.Linear(16, 6), nn.Linear(6, 6)],
}  # fmt: skip


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_certificate_behind_an_affine_prefix_is_confirmed(prefix):
    torch.manual_seed(0)
    layers = [*PREFIXES[prefix](), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 1)]
    model = nn.Sequential(*layers).double().eval().requires_grad_(False)
    region = LinfBall(torch.full((1, 1, 4, 4), 0.5).double(), 0.5)
    for layer in model:
        if isinstance(layer, nn.Linear | nn.Conv2d):
            layer.weight *= 1.5
    x = region.center + region.radius * (2 * torch.rand(5000, 1, 4, 4).double() - 1).sign()
    minimum, lower = model(x).min(), bound(model, region, "crown")[0]
    model[-1].bias -= minimum - 0.7 * (minimum - lower[0, 0])
    result, tensors = searched(model, region, branches=2000)
    assert result.status == ["certified"] and tensors
    assert checked(model, region, tensors).proved_by == "certificate"
