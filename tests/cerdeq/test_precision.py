"""What rounds otherwise than bounds count is off while they are computed, whatever the caller's switches say."""

import copy

import pytest
import torch
from torch import nn

from cerdeq import LinfBall, bound
from cerdeq.bounds import BOUNDS
from cerdeq.bounds.precision import counted_rounding

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
@pytest.mark.parametrize("chosen", ["tf32", "ieee"])
def test_every_switch_is_off_within_and_as_it_was_after(name, chosen):
    OPERATORS[name].fp32_precision = chosen
    enabled = torch.backends.cudnn.enabled
    with counted_rounding("cpu"):
        assert {part.fp32_precision for part in OPERATORS.values()} == {"ieee"}
        assert not torch.backends.cudnn.enabled
    assert OPERATORS[name].fp32_precision == chosen and torch.backends.cudnn.enabled == enabled


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
