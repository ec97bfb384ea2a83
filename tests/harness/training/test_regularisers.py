"""Regularisers against the formulas of Shi et al. 2021, written out again in numpy."""

import numpy as np
import pytest
import torch

from cerdeq import Box
from harness.training.objective import balance, tightness


def _boxes(*shapes):
    return [Box(torch.randn(shape), torch.rand(shape)) for shape in shapes]


def test_tightness_is_the_published_formula():
    boxes, entry = _boxes((4, 3, 5, 5), (4, 7)), torch.rand(4, 3, 5, 5) * 0.3
    expected = np.mean([max(0, 0.5 - entry.numpy().mean() / box.radius.numpy().mean()) / 0.5 for box in boxes])
    assert float(tightness(entry, boxes)) == pytest.approx(expected, rel=1e-5)
    assert float(tightness(entry * 100, boxes)) == 0


@pytest.mark.parametrize(("center", "expected"), [(0.0, 0), (3.0, 2)], ids=["no stable unit", "active units alone"])
def test_a_layer_without_a_ratio_has_finite_gradients(center, expected):
    center = (center + 0.1 * center * torch.randn(4, 7)).requires_grad_(True)
    value = balance([Box(center, torch.ones(4, 7))])
    value.backward()
    assert value.item() == expected
    assert center.grad.isfinite().all()
