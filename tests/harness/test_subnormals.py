"""Subnormal numbers are 0 where training steps and attacks search, and nowhere else."""

from fractions import Fraction

import pytest
import torch
from torch import nn

from harness.attacks.pgd import worst_point
from harness.config.settings import EvaluationSettings
from harness.evaluation import ibp
from harness.storage import names
from harness.subnormals import without_subnormals
from harness.training import loop, run_trial
from harness.training.step import Stepper

pytestmark = pytest.mark.skipif(not torch.set_flush_denormal(False), reason="this CPU has them always")


@pytest.fixture(autouse=True)
def threads():
    """One, until a test says otherwise."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def subnormal():
    """Whether half of the smallest normal number is a number of its own."""
    return bool((torch.tensor([torch.finfo(torch.float32).tiny]) / 2).view(torch.int32).item())


def test_they_are_back_after_an_error():
    assert subnormal()
    with pytest.raises(ValueError, match="a step"), without_subnormals():
        assert not subnormal()
        raise ValueError("a step")
    assert subnormal()


def test_several_threads_have_them_all_along():
    """A thread that is made within would be without them ever after, and compute bounds so."""
    torch.set_num_threads(2)
    with without_subnormals():
        assert subnormal()


class Watched(nn.Linear):
    """Notes whether there are subnormal numbers where it is called."""

    def forward(self, x):
        self.seen = subnormal()
        return super().forward(x)


def test_an_attack_searches_without_them():
    model = Watched(2, 2)
    x, labels = torch.rand(3, 2), torch.tensor([0, 1, 0])
    worst_point(model, x, labels, Fraction(1, 10), EvaluationSettings(), 0, torch.arange(3))
    assert model.seen is False and subnormal()


def test_steps_are_without_them_and_what_is_watched_or_proved_has_them(tiny_trial, tmp_path, monkeypatch):
    steps, others = [], []

    def seen(function, where):
        def call(*arguments):
            where.append(subnormal())
            return function(*arguments)

        return call

    monkeypatch.setattr(Stepper, "_differentiate", seen(Stepper._differentiate, steps))
    for name in ("monitor_bounds", "monitor_untrained"):
        monkeypatch.setattr(loop, name, seen(getattr(loop, name), others))
    monkeypatch.setattr(ibp, "bound_margins", seen(ibp.bound_margins, others))
    result = run_trial(tiny_trial(width=0.05, train={"epochs": 2}), tmp_path)
    assert steps and not any(steps)
    assert len(others) > 2 and all(others)
    assert names.CERTIFIED_ERROR in result.metrics
