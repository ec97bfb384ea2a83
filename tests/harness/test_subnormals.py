"""Subnormal numbers are 0 where training steps and attacks search, and nowhere else."""

from fractions import Fraction

import pytest
import torch
from one_network import train_and_evaluate
from torch import nn

from harness.attacks.pgd import worst_point
from harness.evaluation import ibp
from harness.machine.subnormals import without_subnormals
from harness.settings import EvaluationSettings
from harness.training import loop
from harness.training.step import Stepper

pytestmark = pytest.mark.skipif(not torch.set_flush_denormal(False), reason="this CPU cannot flush them")


def has_subnormals():
    """Return whether half of the smallest normal number is not 0."""
    return bool((torch.tensor([torch.finfo(torch.float32).tiny]) / 2).view(torch.int32).item())


def recorded(function, records):
    """Return the function, which also records whether there are subnormal numbers."""

    def call(*arguments):
        records.append(has_subnormals())
        return function(*arguments)

    return call


def test_subnormals_are_back_after_an_error():
    assert has_subnormals()
    with pytest.raises(ValueError, match="a step"), without_subnormals():
        assert not has_subnormals()
        raise ValueError("a step")
    assert has_subnormals()


def test_several_threads_have_subnormals_throughout():
    """A thread made within the block would never have them again, and compute bounds so."""
    torch.set_num_threads(2)
    try:
        with without_subnormals():
            assert has_subnormals()
    finally:
        torch.set_num_threads(1)


def test_steps_and_attacks_have_no_subnormals_and_bounds_have(tiny_training, tiny_evaluation, tmp_path, monkeypatch):
    steps, bounds, attacks = [], [], []
    monkeypatch.setattr(Stepper, "_differentiate", recorded(Stepper._differentiate, steps))
    for name in ("monitor_bounds", "monitor_untrained"):
        monkeypatch.setattr(loop, name, recorded(getattr(loop, name), bounds))
    monkeypatch.setattr(ibp, "bound_margins", recorded(ibp.bound_margins, bounds))
    train_and_evaluate(tiny_training(width=0.05, train={"epochs": 2}), [tiny_evaluation()], tmp_path)
    model = nn.Linear(2, 2)
    model.forward = recorded(model.forward, attacks)
    worst_point(
        model, torch.rand(3, 2), torch.tensor([0, 1, 0]), Fraction(1, 10), EvaluationSettings(), 0, torch.arange(3)
    )
    assert steps and not any(steps) and attacks and not any(attacks)
    assert len(bounds) > 2 and all(bounds) and has_subnormals()
