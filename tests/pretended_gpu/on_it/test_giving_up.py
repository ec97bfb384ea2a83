"""An optimisation that fails on a GPU is given up by name, and a trial trains without it; memory that runs out is
another matter: batches are divided. All kernels do nothing here, so that values are emulated where they are read."""

import pytest
import torch
from controls import counted, failing
from safetensors.torch import load_file
from steppers import stepper_of, take_steps
from values import Values

from harness.clock import Clock
from harness.storage import folder, names
from harness.training import run_trial
from harness.training import step as training_step

pytestmark = pytest.mark.filterwarnings("default")


@pytest.mark.parametrize("method", ["ibp", "pgd", "sabr", "mtl-ibp"])
def test_a_capture_that_fails_is_given_up_and_steps_go_on(tiny_trial, method):
    """Attacks draw random numbers, which a capture that fails may leave unusable."""
    stepper = stepper_of(tiny_trial(method=method), "cuda")
    with failing("capture"):
        take_steps(stepper, 2, 64)
    (line,) = stepper.failed_optimisations
    assert line.startswith("CUDA graphs given up: ")
    with counted() as counts:
        take_steps(stepper, 1, 64)
        torch.rand(3, device="cuda")
    assert counts["graphs"] == 0 and counts["launches"] > 100


def test_compiled_steps_that_fail_are_given_up_and_captured_uncompiled(tiny_trial, monkeypatch):
    def fail(loss):
        def call(*arguments):
            raise RuntimeError("the compiler fell over")

        return call

    monkeypatch.setattr(training_step, "compiled_loss", fail)
    stepper = stepper_of(tiny_trial(), "cuda", compiled=True)
    take_steps(stepper, 2, 64)
    assert stepper.failed_optimisations == ["compiled steps given up: RuntimeError: the compiler fell over"]
    assert stepper.captured and not stepper.compiled


def test_channels_last_is_given_up_where_steps_fail_with_it(tiny_trial, monkeypatch):
    whole = training_step.Stepper.eager

    def fail(stepper, *arguments, **named):
        if stepper.memory_format == torch.channels_last:
            raise RuntimeError("CUDNN_STATUS_NOT_SUPPORTED")
        return whole(stepper, *arguments, **named)

    monkeypatch.setattr(training_step.Stepper, "eager", fail)
    stepper = stepper_of(tiny_trial(), "cuda", averaged=True)
    take_steps(stepper, 2, 64)
    assert stepper.failed_optimisations == ["channels-last format given up: RuntimeError: CUDNN_STATUS_NOT_SUPPORTED"]
    assert stepper.captured and stepper.optimiser.param_groups[0]["fused"]
    for network in (stepper.model, stepper.averaged):
        assert all(parameter.is_contiguous() for parameter in network.parameters())


def without_fused_adam(monkeypatch):
    def fail(*_arguments, **_named):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(torch, "_fused_adam_", fail)


def test_fused_adam_that_fails_is_given_up_and_has_counted_no_step(tiny_trial, monkeypatch):
    without_fused_adam(monkeypatch)
    stepper = stepper_of(tiny_trial(), "cuda", compiled=True)
    with Values(), failing("capture"):
        stepper.compiled = False  # compiled kernels have no values here
        stepper._make_objectives()
        take_steps(stepper, 2, 64)
    assert [line.partition(" given up")[0] for line in stepper.failed_optimisations] == ["fused Adam", "CUDA graphs"]
    assert {int(state["step"]) for state in stepper.optimiser.state.values()} == {2}


def test_a_trial_without_fused_adam_that_was_killed_goes_on_to_the_same_end(tiny_trial, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def kill(row):
        if row[names.EPOCH] == 2:
            raise Killed

    without_fused_adam(monkeypatch)
    config = tiny_trial(width=0.05, train={"compile": "never", "ema_decay": 0.9})
    with Values(), failing("capture"):
        run_trial(config, tmp_path / "whole")
        with pytest.raises(Killed):
            run_trial(config, tmp_path / "broken", kill, clock=Clock(keep_every=0))
        result = run_trial(config, tmp_path / "broken")
    assert sum(" given up: " in warning for warning in result.warnings) == 2
    whole, broken = (load_file(tmp_path / name / folder.WEIGHTS) for name in ("whole", "broken"))
    assert all(torch.equal(value, broken[name]) for name, value in whole.items())


@pytest.mark.parametrize("fault", ["capture-memory", "instantiate-memory"])
def test_a_graph_that_does_not_fit_is_given_up_once_batches_cannot_be_divided(tiny_trial, fault):
    stepper = stepper_of(tiny_trial(), "cuda", divided=True)
    with failing(fault):
        take_steps(stepper, 2, 64)
    assert len(stepper.failed_optimisations) == 1 and stepper.failed_optimisations[0].startswith(
        "CUDA graphs given up: "
    )


def test_an_error_of_the_step_itself_is_raised(tiny_trial, monkeypatch):
    def fail(stepper, *arguments, **named):
        raise RuntimeError("always")

    monkeypatch.setattr(training_step.Stepper, "eager", fail)
    with pytest.raises(RuntimeError, match="always"):
        take_steps(stepper_of(tiny_trial(), "cuda"), 1, 64)


@pytest.mark.parametrize("fault", ["memory", "capture-memory", "instantiate-memory"])
def test_memory_that_runs_out_in_a_step_is_no_reason_to_give_up_an_optimisation(tiny_trial, fault):
    stepper = stepper_of(tiny_trial(), "cuda")
    with failing(fault), pytest.raises(RuntimeError) as raised:
        take_steps(stepper, 1, 64)
    assert training_step.is_out_of_memory(raised.value)
    assert stepper.failed_optimisations == []
    take_steps(stepper, 2, 64)


@pytest.mark.parametrize("fault", ["capture-memory", "instantiate-memory"])
def test_a_trial_whose_graph_does_not_fit_goes_on_in_smaller_parts(tiny_trial, tmp_path, monkeypatch, fault):
    prepared = training_step.Stepper._make_step

    def too_large(stepper, *arguments):
        if stepper.config.train.accumulate > 1:
            return prepared(stepper, *arguments)
        with failing(fault):
            return prepared(stepper, *arguments)

    monkeypatch.setattr(training_step.Stepper, "_make_step", too_large)
    with Values():
        result = run_trial(tiny_trial(width=0.05, train={"compile": "never"}), tmp_path)
    assert "accumulate 2 instead of 1 after running out of memory" in result.warnings


def test_a_trial_says_what_it_was_trained_without(tiny_trial, tmp_path):
    with Values(), failing("capture"):
        result = run_trial(tiny_trial(width=0.05, train={"compile": "never"}), tmp_path)
    assert len(result.warnings) == 1 and result.warnings[0].startswith("CUDA graphs given up: ")
    assert result.environment["device"] == "NVIDIA H200 (pretended)"
    assert result.metrics[names.CERTIFIED_ERROR] <= 100
    assert not (tmp_path / folder.WITHOUT).exists()
