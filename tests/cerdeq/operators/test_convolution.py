"""Convolutions as matrix products, which CUDA takes where rounding is counted, against torch's own."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from pairs import every_pair
from torch import nn

from cerdeq import LinfBall, bound
from cerdeq.equilibrium import Equilibrium
from cerdeq.operators import convolution
from cerdeq.operators.convolution import conv2d_by_products, conv_transpose2d_by_products
from cerdeq.precision import counted_rounding

pytestmark = pytest.mark.usefixtures("short_searches")
PADDINGS = [0, 1, (2, 1), "same", "valid"]
STRIDES = [1, 2, (1, 3)]
SHAPES = every_pair([(3, 2), (1, 1), (4, 4)], [1, 2, (2, 1)], [1, 2, 4])  # kernel, dilation, groups
EXACT = {"rtol": 1e-12, "atol": 1e-12}


def images(channels, batch=3, dtype=torch.float64):
    return torch.randn(batch, channels, 9, 8, dtype=dtype)


def weights(groups, kernel=(3, 2), dtype=torch.float64):
    return torch.randn(8, 4 // groups, *kernel, dtype=dtype)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize(("kernel", "dilation", "groups"), SHAPES)
def test_convolutions_are_torch_s(kernel, dilation, groups, monkeypatch):
    monkeypatch.setattr(convolution, "_BYTES", 2 * 8 * 4 * 72 * 6)  # two or three images of some kernels at a time
    x, weight, bias = images(4), weights(groups, kernel), torch.randn(8, dtype=torch.float64)
    for stride, padding in itertools.product(STRIDES, PADDINGS):
        if padding == "same" and stride != 1:
            continue
        arguments = stride, padding, dilation, groups
        with torch.no_grad():
            for b in (bias, None):
                expected = F.conv2d(x, weight, b, *arguments)
                torch.testing.assert_close(conv2d_by_products(x, weight, b, *arguments), expected, **EXACT)


@pytest.mark.parametrize(("kernel", "dilation", "groups"), SHAPES)
def test_transposed_convolutions_are_torch_s(kernel, dilation, groups, monkeypatch):
    monkeypatch.setattr(convolution, "_BYTES", 2 * 8 * 4 * 72 * 6)
    x, weight = images(8), weights(groups, kernel)
    for stride, padding, rest in itertools.product(STRIDES, [0, 1, (0, 1)], [0, (1, 0)]):
        if rest and stride in (1, (1, 3)) and dilation in (1, (1, 2)):
            continue  # torch wants the rest smaller than stride or dilation
        expected = F.conv_transpose2d(x, weight, None, stride, padding, rest, groups, dilation)
        result = conv_transpose2d_by_products(x, weight, stride, padding, rest, groups, dilation)
        torch.testing.assert_close(result, expected, **EXACT)


def test_gradients_are_torch_s():
    x, weight = images(4).requires_grad_(), weights(2).requires_grad_()
    mine = torch.autograd.grad(conv2d_by_products(x, weight, None, 2, 1, 1, 2).square().sum(), (x, weight))
    torch.testing.assert_close(
        mine, torch.autograd.grad(F.conv2d(x, weight, None, 2, 1, 1, 2).square().sum(), (x, weight))
    )
    y = images(8).requires_grad_()
    mine = torch.autograd.grad(conv_transpose2d_by_products(y, weight, 2, 1, 1, 2, 1).square().sum(), (y, weight))
    expected = F.conv_transpose2d(y, weight, None, 2, 1, 1, 2, 1).square().sum()
    torch.testing.assert_close(mine, torch.autograd.grad(expected, (y, weight)))


@pytest.mark.parametrize(("method", "equilibrium"), [("crown-ibp", False), ("crown", True)])
def test_bounds_by_products_are_those_by_convolutions(monkeypatch, method, equilibrium):
    """As on CUDA, where the search and the guesses keep to cuDNN; every product there is counts its rounding."""
    layer = Equilibrium(4, nn.Conv2d(1, 4, 3, stride=2, padding=1)) if equilibrium else nn.Conv2d(1, 4, 3, 2, "valid")
    head = nn.Sequential(nn.Conv2d(4, 6, 2, padding=1, groups=2), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3))
    model = nn.Sequential(layer, nn.ReLU(), head).eval()
    ball = LinfBall(torch.rand(2, 1, 8, 8), 0.05)
    model(ball.center)
    expected, enabled = bound(model, ball, method), []

    def without_cudnn(x):
        enabled.append(torch.backends.cudnn.enabled)
        return not enabled[-1]

    monkeypatch.setattr(convolution, "_image_by_image", without_cudnn)
    torch.testing.assert_close(bound(model, ball, method), expected, rtol=1e-4, atol=1e-5)
    assert not all(enabled)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_on_cuda_rounding_that_is_counted_takes_products(dtype, monkeypatch):
    x, weight = images(4, 40, dtype).cuda(), weights(1, dtype=dtype).cuda()
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-13}[dtype]
    exact = F.conv2d(x.double().cpu(), weight.double().cpu(), None, 2, 1)
    with counted_rounding("cuda"):
        result = convolution.conv2d(x, weight, None, 2, 1)
        monkeypatch.setattr(convolution.F, "conv2d", None)
        assert torch.equal(convolution.conv2d(x, weight, None, 2, 1), result)
    torch.testing.assert_close(result.double().cpu(), exact, rtol=tolerance, atol=tolerance)
