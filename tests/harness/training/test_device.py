"""TF32 in the steps alone, since whatever is watched or judged has float32 products; oneDNN where it can be trusted."""

import sys
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from baselines import build
from harness.storage import names
from harness.training import loop, run_trial
from harness.training.device import set_up, tf32, whole_gradients
from harness.training.step import Stepper


@pytest.fixture(autouse=True)
def _restored():
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic = before[1:]


def on():
    return torch.get_float32_matmul_precision() != "highest", torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize("wanted", [True, False])
def test_tf32_is_off_after_the_steps_whatever_came_before(wanted):
    torch.backends.cudnn.allow_tf32 = True
    with pytest.raises(ValueError, match="a step"), tf32(torch.device("cuda"), wanted):
        assert on() == (wanted, wanted)
        raise ValueError("a step")
    assert on() == (False, False)


def test_a_cpu_is_left_as_it_is():
    before = on()
    set_up(torch.device("cpu"))
    with tf32(torch.device("cpu"), True):
        assert on() == before
    assert on() == before


@pytest.mark.parametrize("known", [{"deterministic": False}, {}], ids=["where the switch is there", "where it is not"])
def test_setting_up_a_gpu_turns_off_tf32_and_what_is_chosen_by_timing(monkeypatch, known):
    inductor = SimpleNamespace(**known)
    monkeypatch.setitem(sys.modules, "torch._inductor.config", inductor)
    set_up(torch.device("cuda"))
    assert vars(inductor) == {name: True for name in known}
    assert torch.backends.cudnn.deterministic
    assert on() == (False, False)


@pytest.mark.parametrize("precision", ["tf32", "float32", "bf16"])
def test_the_steps_alone_are_within(tiny_trial, tmp_path, monkeypatch, precision):
    state, steps, watched = [], [], []

    @contextmanager
    def recorded(device, wanted):
        state.append(wanted)
        yield
        state.pop()

    def seen(function, where):
        def call(*arguments):
            where.append(list(state))
            return function(*arguments)

        return call

    monkeypatch.setattr(loop, "tf32", recorded)
    monkeypatch.setattr(Stepper, "__call__", seen(Stepper.__call__, steps))
    for name in ("monitored", "monitored_untrained", "recompute_statistics"):
        monkeypatch.setattr(loop, name, seen(getattr(loop, name), watched))
    train = {"epochs": 2, "precision": precision, "recompute_statistics": True}
    monkeypatch.setattr("harness.training.trial.judge", seen(None, watched))
    with pytest.raises(TypeError, match="NoneType"):
        run_trial(tiny_trial(width=0.05, train=train), tmp_path)
    assert steps == [[precision == "tf32"]] * 10
    assert watched == [[]] * 5, "untrained, two epochs, statistics, verdicts"
    assert names.TRAIN_LOSS in loop.read_epochs(tmp_path)[-1]


@pytest.mark.parametrize(
    ("name", "capability", "without"),
    [("resnet9", "AVX2", True), ("resnet9", "AVX512", False), ("cnn7", "AVX2", False)],
)
def test_onednn_is_left_out_where_it_would_write_past_a_gradient(name, capability, without, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    before = torch.backends.mkldnn.enabled
    with pytest.raises(ValueError, match="a step"), whole_gradients(build(name, "digits", 0.1)):
        assert torch.backends.mkldnn.enabled == (before and not without)
        raise ValueError("a step")
    assert torch.backends.mkldnn.enabled == before


def test_a_step_differentiates_without_onednn_where_that_is_needed(tiny_trial, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    seen, backward = [], torch.Tensor.backward

    def watched(tensor, *arguments, **options):
        seen.append(torch.backends.mkldnn.enabled)
        return backward(tensor, *arguments, **options)

    monkeypatch.setattr(torch.Tensor, "backward", watched)
    monkeypatch.setattr("harness.training.trial.judge", None)
    with pytest.raises(TypeError, match="NoneType"):
        run_trial(tiny_trial("resnet9", width=0.05, train={"epochs": 2}), tmp_path)
    assert seen and not any(seen)
