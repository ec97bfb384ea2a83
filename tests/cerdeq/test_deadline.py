"""Every long step of `verify` ends soon after its limit: on networks of which one step takes longer than the limit."""

import time

import pytest
import torch
from torch import nn

from cerdeq import Box, bound, verify
from cerdeq.branch.threads import map_parts
from cerdeq.deadline import DeadlineError, check, stop_at

LATE = 30  # seconds: a machine may be busy. Without a deadline the steps here take minutes.


class Block(nn.Module):
    """A residual block."""

    def __init__(self, channels):
        super().__init__()
        self.first, self.second = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))

    def forward(self, x):
        return torch.relu(x + self.second(torch.relu(self.first(x))))


def network_of(kind):
    """A network with 30,000 to 130,000 units in a layer."""
    torch.manual_seed(0)
    if kind == "residual":
        blocks = [Block(8) for _ in range(6)]
        return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), *blocks, nn.Flatten(), nn.Linear(2**15, 10))
    wide = [nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 16, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*wide, nn.Flatten(), nn.Linear(2**16, 200))


SLOWER = [pytest.param(*case, marks=pytest.mark.slow) for case in (("residual", 1e-2), ("wide", 1e-4))]


@pytest.mark.parametrize(("kind", "radius"), [("residual", 1e-3), *SLOWER])
@torch.no_grad()
def test_an_answer_comes_soon_after_the_limit(kind, radius):
    model, x = network_of(kind).eval(), torch.rand(1, 3, 64, 64)
    outputs = model(x)[0]
    spec = torch.eye(len(outputs)) - torch.eye(len(outputs))[outputs.argmin()]
    spec = spec[outputs != outputs.min()][None]  # every output stays above the smallest one
    bound(model, Box(x, torch.zeros_like(x)), "crown-ibp", spec[:, :1])  # imports
    began = time.monotonic()
    result = verify(model, Box(x, torch.full_like(x, radius)), spec, seconds=1)
    assert time.monotonic() - began < LATE
    assert result.status[0] in ("timeout", "falsified")


def test_a_gradient_ends_at_the_deadline():
    x = torch.ones(3, requires_grad=True)
    with stop_at(time.monotonic() + 0.2):
        y = x * 2
        check(y)
        time.sleep(0.3)
        with pytest.raises(DeadlineError):
            torch.autograd.grad(y.sum(), x)


def test_deadlines_hold_in_other_threads_and_the_earlier_one_counts(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    for deadlines in ([0, 100], [100, 0]):
        with stop_at(time.monotonic() + deadlines[0]), stop_at(time.monotonic() + deadlines[1]):
            for parts in ([1], [1, 2, 3]):
                with pytest.raises(DeadlineError):
                    map_parts(lambda part: check(), parts, torch.device("cpu"))
    check()
