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


def test_balance_is_the_published_formula():
    center = (torch.randn(4, 3, 5, 5).double() + 0.8).requires_grad_()
    box = Box(center, torch.rand(4, 3, 5, 5).double() * 0.2)
    active, inactive = (box.lower > 0).double(), (box.upper < 0).double()
    spread = (center - center.mean()).square()
    ratios = (
        (center * active).mean() / -(center * inactive).mean(),
        (spread * active).sum() / (spread * inactive).sum(),
    )
    expected = sum(torch.relu(0.5 - torch.minimum(ratio, 1 / ratio)) for ratio in ratios) / 0.5
    assert expected > 0
    for value in (lambda: balance([box]), lambda: 2 * balance([box, Box(center.detach(), 10 + box.radius)])):
        torch.testing.assert_close(value(), expected)
        torch.testing.assert_close(*(torch.autograd.grad(v, center, retain_graph=True) for v in (value(), expected)))


@pytest.mark.parametrize(("center", "expected"), [(0.0, 0), (3.0, 2)], ids=["no stable unit", "active units alone"])
def test_a_layer_without_a_ratio_has_finite_gradients(center, expected):
    center = (center + 0.1 * center * torch.randn(4, 7)).requires_grad_(True)
    value = balance([Box(center, torch.ones(4, 7))])
    value.backward()
    assert value.item() == expected
    assert center.grad.isfinite().all()


def test_a_layer_behind_one_that_is_inactive_for_all_images_has_finite_gradients():
    """Its box is a point, as the output of a small layer that has died."""
    radius = torch.zeros(4, 7, requires_grad=True)
    value = tightness(torch.full((4, 3), 1e-6), [Box(torch.zeros(4, 7), radius)])
    value.backward()
    assert value == 0 and (radius.grad == 0).all()
