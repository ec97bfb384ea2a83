"""Regularisers against the formulas of Shi et al. 2021, written out again in numpy."""

import numpy as np
import pytest
import torch

from cerdeq import Box
from harness.training.regularisers import balance, tightness


def _boxes(*shapes):
    return [Box(torch.randn(shape), torch.rand(shape)) for shape in shapes]


def test_tightness_is_the_published_formula():
    boxes, entry = _boxes((4, 3, 5, 5), (4, 7)), torch.rand(4, 3, 5, 5) * 0.3
    expected = np.mean([max(0, 0.5 - entry.numpy().mean() / box.radius.numpy().mean()) / 0.5 for box in boxes])
    assert float(tightness(entry, boxes)) == pytest.approx(expected, rel=1e-5)
    assert float(tightness(entry * 100, boxes)) == 0


def test_balance_is_the_published_formula():
    def q(t):
        return min(t, 1 / t)

    boxes, terms = _boxes((4, 3, 5, 5), (4, 7)), []
    boxes[0] = Box(boxes[0].center + 1.5, boxes[0].radius * 0.1)
    for box in boxes:
        c, low, up = box.center.numpy(), box.lower.numpy(), box.upper.numpy()
        a = np.mean(c * (low > 0)) / -np.mean(c * (up < 0))
        b = np.sum((c - c.mean()) ** 2 * (low > 0)) / np.sum((c - c.mean()) ** 2 * (up < 0))
        terms.append((max(0, 0.5 - q(a)) + max(0, 0.5 - q(b))) / 0.5)
    assert terms[0] > 0
    assert float(balance(boxes)) == pytest.approx(np.mean(terms), rel=1e-4)


def test_a_layer_without_stable_units_is_left_out_and_has_finite_gradients():
    center = torch.zeros(4, 7, requires_grad=True)
    value = balance([Box(center, torch.ones(4, 7))])
    value.backward()
    assert value.item() == 0
    assert center.grad.isfinite().all()


def test_a_layer_of_active_units_alone_is_unbalanced_and_has_finite_gradients():
    center = (3 + 0.1 * torch.randn(4, 7)).requires_grad_(True)
    value = balance([Box(center, torch.ones(4, 7))])
    value.backward()
    assert value.item() == 2
    assert center.grad.isfinite().all()
