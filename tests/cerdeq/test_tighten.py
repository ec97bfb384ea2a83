"""Which boxes CROWN tightens: all that it can make smaller, and no others."""

import pytest
import torch
from torch import nn

from cerdeq import LinfBall, bound
from cerdeq.bounds import tighten


class Residual(nn.Module):
    """x + conv(x): IBP does not see that both terms depend on x."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1)

    def forward(self, x):
        return x + self.conv(x)


def network(first):
    torch.manual_seed(0)
    head = (nn.ReLU(), nn.Flatten(), nn.Linear(2 * 36, 8), nn.ReLU(), nn.Linear(8, 3))
    return nn.Sequential(*first, *head).double().eval()


@pytest.mark.parametrize("first", ["conv norm", "norm conv", "conv conv", "residual"])
def test_a_box_thatis_exact_is_not_tightened_and_others_are(first, monkeypatch):
    """After one sum and operators that treat elements one by one, IBP is exact; after two sums it is not."""
    layers = {"conv": lambda: nn.Conv2d(2, 2, 3, padding=1), "norm": lambda: nn.BatchNorm2d(2), "residual": Residual}
    model = network([layers[name]() for name in first.split()])
    ball = LinfBall(torch.rand(2, 2, 6, 6, dtype=torch.float64), 0.1)
    calls, original = [], tighten._tighten_box

    def recorded(*arguments, **options):
        calls.append(arguments)
        return original(*arguments, **options)

    monkeypatch.setattr(tighten, "_tighten_box", recorded)
    ends = bound(model, ball, "crown")
    assert len(calls) == (1 if "norm" in first else 2)
    monkeypatch.setattr(tighten, "is_exact", lambda program, number: False)
    for mine, theirs in zip(ends, bound(model, ball, "crown"), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)
