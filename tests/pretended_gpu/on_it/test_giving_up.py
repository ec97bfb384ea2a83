"""An optimisation that fails on a GPU is given up by name, and training goes on without it; memory that runs out is
another matter: batches are divided. All kernels do nothing here, so that values are emulated where they are read."""

import pytest
import torch
from controls import counted, failing
from steppers import stepper_of, take_steps, train_network
from values import Values

from harness.training import objective
from harness.training.capture import CapturedStep
from harness.training.step import Stepper, is_out_of_memory

pytestmark = pytest.mark.filterwarnings("default")
NOT_COMPILED = {"compile": "never"}  # compiled kernels have no values here
GRAPH_FAULTS = ["capture-memory", "instantiate-memory"]


@pytest.fixture
def eager_fails(monkeypatch):
    """A function that lets eager steps fail with a message, for all steppers or those that a condition selects."""
    eager = Stepper.eager

    def install(message, condition=lambda stepper: True):
        def fail(stepper, *arguments, **named):
            if condition(stepper):
                raise RuntimeError(message)
            return eager(stepper, *arguments, **named)

        monkeypatch.setattr(Stepper, "eager", fail)

    return install


@pytest.mark.parametrize("method", ["ibp", pytest.param("pgd", marks=pytest.mark.slow)])
def test_a_capture_that_fails_is_given_up_and_steps_go_on(tiny_training, method):
    """Attacks draw random numbers, which a capture that fails may leave unusable."""
    stepper = stepper_of(tiny_training(method=method), "cuda")
    with failing("capture"):
        take_steps(stepper, 2)
    (line,) = stepper.failed_optimisations
    assert line.startswith("CUDA graphs given up: ")
    with counted() as counts:
        take_steps(stepper, 1)
        torch.rand(3, device="cuda")
    assert counts["graphs"] == 0 and counts["launches"] > 100


def test_compiled_steps_that_fail_are_given_up_and_captured_uncompiled(tiny_training, monkeypatch):
    def fail(loss):
        def call(*arguments):
            raise RuntimeError("the compiler fell over")

        return call

    monkeypatch.setattr(objective, "compiled_loss", fail)
    stepper = stepper_of(tiny_training(), "cuda", compiled=True)
    take_steps(stepper, 2)
    assert stepper.failed_optimisations == ["compiled steps given up: RuntimeError: the compiler fell over"]
    assert stepper.captured and not stepper.compiled


def test_channels_last_is_given_up_if_steps_fail_with_it(tiny_training, eager_fails):
    eager_fails("CUDNN_STATUS_NOT_SUPPORTED", lambda stepper: stepper.memory_format == torch.channels_last)
    stepper = stepper_of(tiny_training(train={"ema_decay": 0.9}), "cuda")
    take_steps(stepper, 2)
    assert stepper.failed_optimisations == ["channels-last format given up: RuntimeError: CUDNN_STATUS_NOT_SUPPORTED"]
    assert stepper.captured
    for network in (stepper.model, stepper.averaged):
        assert all(parameter.is_contiguous() for parameter in network.parameters())


@pytest.fixture
def no_fused_adam(monkeypatch):
    def fail(*_arguments, **_named):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(torch, "_fused_adam_", fail)


def test_fused_adam_that_fails_is_given_up_and_has_counted_no_step(tiny_training, no_fused_adam):
    stepper = stepper_of(tiny_training(), "cuda")
    with Values(), failing("capture"):
        take_steps(stepper, 2, 64)
    assert [line.partition(" given up")[0] for line in stepper.failed_optimisations] == ["fused Adam", "CUDA graphs"]
    assert {int(state["step"]) for state in stepper.optimiser.state.values()} == {2}
    assert all(parameter.isfinite().all() for parameter in stepper.model.parameters())


def test_an_error_of_the_step_itself_is_raised(tiny_training, eager_fails):
    eager_fails("always")
    with pytest.raises(RuntimeError, match="always"):
        take_steps(stepper_of(tiny_training(), "cuda"), 1)


@pytest.mark.parametrize("fault", GRAPH_FAULTS)
def test_a_graph_that_does_not_fit_is_given_up_once_batches_cannot_be_divided(tiny_training, fault):
    stepper = stepper_of(tiny_training(), "cuda", is_last_try=True)
    with failing(fault):
        take_steps(stepper, 2)
    (line,) = stepper.failed_optimisations
    assert line.startswith("CUDA graphs given up: ")


@pytest.mark.parametrize("fault", ["memory", *GRAPH_FAULTS])
def test_memory_that_runs_out_in_a_step_is_no_reason_to_give_up_an_optimisation(tiny_training, fault):
    stepper = stepper_of(tiny_training(), "cuda")
    with failing(fault), pytest.raises(RuntimeError) as raised:
        take_steps(stepper, 1)
    assert is_out_of_memory(raised.value)
    assert stepper.failed_optimisations == []


def test_a_training_whose_graph_does_not_fit_goes_on_in_smaller_parts(tiny_training, tmp_path, monkeypatch):
    capture = CapturedStep.__init__

    def too_large(captured, step, choices, stream):
        with failing("capture-memory" if step.func.__self__.config.train.accumulate == 1 else ""):
            capture(captured, step, choices, stream)

    monkeypatch.setattr(CapturedStep, "__init__", too_large)
    with Values():
        config = tiny_training("conv", train_images=128, train=NOT_COMPILED | {"epochs": 1, "ramp_epochs": 1})
        result = train_network(config, tmp_path)
    assert "accumulate 2 instead of 1 after running out of memory" in result.warnings
