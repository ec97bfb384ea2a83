"""Networks written as ONNX files and read again: the same outputs, and the same bounds but for rounding."""

import copy

import pytest
import torch
import torch.nn.functional as F
from onnx_writer import export_onnx
from oracles import Lambda
from torch import nn

from baselines import build, network_names, required_options
from baselines.contract import with_statistics
from cerdeq import LinfBall, OnnxError, bound, load_onnx
from cerdeq.equilibrium import FixedPoint


def explicit_networks():
    """Return the first network of each kind that has no equilibrium. Networks of a kind are made of the same layers."""
    first = {name.rstrip("0123456789"): name for name in reversed(network_names()) if not required_options(name)}
    models = {name: build(name, "digits", 0.1) for name in first.values()}
    return {name: m for name, m in models.items() if not any(isinstance(part, FixedPoint) for part in m.modules())}


NETWORKS = explicit_networks()
LAYERS = {
    "leaky, max pooling": nn.Sequential(nn.Conv2d(1, 2, 3, padding="same"), nn.LeakyReLU(0.3), nn.MaxPool2d(2, 1, 1)),
    "pools": nn.Sequential(nn.AvgPool2d(3, 2, 1, count_include_pad=False), nn.Dropout(), nn.AdaptiveAvgPool2d(1)),
    "norms": nn.Sequential(nn.BatchNorm2d(1, affine=False), nn.Flatten(), nn.BatchNorm1d(64)),
    "linear layers of images": nn.Sequential(nn.Linear(8, 3), nn.ReLU(), nn.Linear(3, 2, bias=False)),
    "arithmetic": Lambda(lambda m, x: (m.c - x * 2) / m.c - 3 + (-x) * m.c - x, c=torch.rand(8) + 1),
    "shapes": Lambda(lambda m, x: F.pad(x, (1, 2, 0, 3), value=0.5).permute(0, 2, 3, 1).flatten(2).transpose(1, 2)),
    "views": Lambda(
        lambda m, x: torch.cat([x.view(x.size(0), 2, -1), x.reshape(-1, 2, 32) @ m.w], 2), w=torch.rand(32, 5)
    ),
    "curves, a step": nn.Sequential(nn.Sigmoid(), nn.Conv2d(1, 2, 3), Lambda(lambda m, x: torch.sign(x.tanh() - 0.1))),
    "transposed": nn.Sequential(
        nn.ConvTranspose2d(1, 4, (3, 2), (2, 1), (1, 0), (1, 0)), nn.ConvTranspose2d(4, 2, 2, groups=2, bias=False)
    ),
    "one layer": nn.Linear(8, 2),
    "parts": Lambda(lambda m, x: torch.add(x, x.abs(), alpha=2)[:, :, 1:3].narrow(3, 0, 1)),
    "chunks": nn.Sequential(nn.AdaptiveAvgPool2d(4), Lambda(lambda m, x: x.chunk(2, 3)[0] - x.chunk(2, 3)[1])),
    "computed constants": nn.Sequential(
        nn.utils.parametrizations.weight_norm(nn.Linear(8, 2)), Lambda(lambda m, x: x * (m.c / 3), c=torch.rand(2))
    ),
}  # fmt: skip


class SideBySide(nn.Module):
    """All of LAYERS on one image, so that they are written together: a file takes a second, whatever it holds."""

    def __init__(self):
        super().__init__()
        self.parts = nn.ModuleList(LAYERS.values())

    def forward(self, x):
        return torch.cat([part(x).flatten(1) for part in self.parts], 1)


def check_written(network, tmp_path):
    export_onnx(network, tmp_path / "net.onnx", (1, 8, 8))
    loaded, x = load_onnx(tmp_path / "net.onnx"), torch.rand(3, 1, 8, 8)
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), network(x))
    for method in ("ibp", "crown-ibp"):
        expected = bound(network, LinfBall(x, 0.01), method)
        torch.testing.assert_close(bound(loaded, LinfBall(x, 0.01), method), expected, rtol=1e-4, atol=1e-5)


OFTEN = ("cnn5", "resnet9")  # every network takes seconds


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in OFTEN else pytest.mark.slow) for name in NETWORKS]
)
def test_networks_survive_being_written_and_read(name, tmp_path):
    check_written(with_statistics(NETWORKS[name].double(), "digits").float(), tmp_path)


def test_layers_survive_being_written_and_read(tmp_path):
    network = SideBySide()
    network(torch.rand(4, 1, 8, 8))  # moves the statistics of norms
    check_written(network.eval(), tmp_path)


def in_float64(network, by=0.0):
    """Return a network in float64, its first parameter changed by so much."""
    network = network.double().eval()
    with torch.no_grad():
        next(network.parameters()).add_(by)
    return network


def test_a_network_in_float64_is_written_with_its_very_weights(tmp_path):
    """As harness.load returns it: certified in float64, with weights of float32."""
    network = with_statistics(build("conv", "digits", 0.25).double(), "digits").float()
    in_float32 = copy.deepcopy(network).eval()
    export_onnx(in_float64(network), tmp_path / "net.onnx", (1, 8, 8))
    stored = load_onnx(tmp_path / "net.onnx").state_dict().values()
    weights = [parameter for parameter in in_float32.parameters() if parameter.dim() > 1]
    assert len(weights) >= 3 and all(any(torch.equal(w, tensor) for tensor in stored) for w in weights)


REFUSED = {
    "no ONNX operator for fixed_point": lambda: build("cerdeq", "digits", 0.1).eval(),
    "weight: found torch.float32 on meta": lambda: nn.Linear(8, 2, device="meta").eval(),
    "weight: found torch.float16 on cpu, allowed: torch.float32": lambda: nn.Linear(8, 2).half().eval(),
    "linear at .*found numbers in float64 that the file": lambda: in_float64(nn.Linear(8, 2), by=1e-12),
    "found numbers in float64 .*call .float.. first": lambda: Lambda(
        lambda m, x: x * (m.c / 3), c=torch.tensor([0.1], dtype=torch.float64)
    ).eval(),
    "in training mode": lambda: nn.Linear(8, 2),
    "no bound rule for erf": lambda: Lambda(lambda m, x: x.erf()).eval(),
    "found ceil_mode = 1": lambda: nn.MaxPool2d(2, ceil_mode=True).eval(),
    "computes other outputs than the original": lambda: nn.AvgPool2d(2, divisor_override=3).eval(),
    r"outputs \[8, 64\], the original \[512\]": lambda: nn.Flatten(0).eval(),
    "found a batch of 2": lambda: Lambda(lambda m, x: x + m.c, c=torch.ones(2, 1, 1, 1)).eval(),
}


@pytest.mark.parametrize("message", REFUSED)
def test_networks_that_no_file_can_hold_are_refused(message, tmp_path):
    with pytest.raises(OnnxError, match=message):
        export_onnx(REFUSED[message](), tmp_path / "net.onnx", (1, 8, 8))
    assert not list(tmp_path.iterdir())
