"""While bounds are computed, every switch is off that makes torch round differently than they count."""

import copy

import pytest
import torch
from torch import nn

from cerdeq import Box, LinfBall, bound
from cerdeq.bounds import BOUNDS
from cerdeq.equilibrium import certificate
from cerdeq.rules.precision import counted_rounding

OPERATORS = {
    "cuda.matmul": torch.backends.cuda.matmul,
    "cudnn.conv": torch.backends.cudnn.conv,
    "mkldnn.conv": torch.backends.mkldnn.conv,
    "mkldnn.matmul": torch.backends.mkldnn.matmul,
}


@pytest.fixture(autouse=True)
def _restored():
    before = {name: part.fp32_precision for name, part in OPERATORS.items()}
    yield
    for name, part in OPERATORS.items():
        part.fp32_precision = before[name]


@pytest.mark.parametrize("name", OPERATORS)
def test_every_switch_is_off_within_and_as_it_was_after(name):
    OPERATORS[name].fp32_precision = "tf32"
    enabled = torch.backends.cudnn.enabled
    with counted_rounding("cpu"):
        assert {part.fp32_precision for part in OPERATORS.values()} == {"ieee"}
        assert not torch.backends.cudnn.enabled
    assert OPERATORS[name].fp32_precision == "tf32" and torch.backends.cudnn.enabled == enabled


def test_switches_that_torch_cannot_read_together_are_no_obstacle():
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).eval()
    lower, upper = bound(model, LinfBall(torch.rand(3, 4), 0.1))
    assert (lower < upper).all()


@pytest.mark.parametrize("method", BOUNDS)
@pytest.mark.parametrize("images", [1, 4])
def test_float32_bounds_hold_where_convolutions_would_run_in_bfloat16(method, images):
    torch.backends.mkldnn.conv.fp32_precision = "bf16"
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    model = nn.Sequential(nn.Conv2d(16, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 3)).eval()
    x = torch.rand(images, 16, 8, 8)
    exact = copy.deepcopy(model).double()(x.double())
    lower, upper = bound(model, LinfBall(x, 0.0), method)
    assert (lower <= exact).all() and (exact <= upper).all()


def test_a_box_is_verified_with_rounding_counted_whoever_asks(monkeypatch):
    switches, step = [], certificate.interval_step

    def seen(*arguments):
        switches.append((torch.backends.cudnn.enabled, torch.backends.cudnn.conv.fp32_precision))
        return step(*arguments)

    monkeypatch.setattr(certificate, "interval_step", seen)
    torch.backends.cudnn.conv.fp32_precision = "tf32"
    certificate.verified_box(0.2 * torch.rand(3, 3), Box(torch.rand(2, 3), torch.rand(2, 3)))
    assert set(switches) == {(False, "ieee")}
