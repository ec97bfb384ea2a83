"""What fails on a GPU ends a trial with its cause: no step is tried again in another way, which rounds otherwise."""

import pytest
import torch
from controls import failing
from steppers import stepper_of, take_steps
from values import Values

from cerdeq.errors import is_out_of_memory
from harness.training import objective
from harness.training.compilation import compiler_problem
from harness.training.step import Stepper

pytestmark = pytest.mark.filterwarnings("default")


def fail(*_arguments, **_named):
    raise RuntimeError("no such kernel")


def fail_in_captures(stepper, *arguments, **named):
    if torch.cuda.is_current_stream_capturing():
        fail()
    return EAGER(stepper, *arguments, **named)


EAGER = Stepper.eager


@pytest.mark.parametrize(
    ("owner", "name", "replacement"),
    [
        (torch, "_fused_adam_", fail),
        (torch.nn.functional, "conv2d", fail),
        (objective, "compiled_loss", lambda loss: fail),
        (Stepper, "eager", fail_in_captures),
    ],
    ids=["fused Adam", "a convolution", "a compiled loss", "a capture"],
)
def test_a_step_that_fails_is_not_tried_in_another_way(tiny_training, monkeypatch, owner, name, replacement):
    monkeypatch.setattr(owner, name, replacement)
    with pytest.raises(RuntimeError, match="no such kernel"):
        take_steps(stepper_of(tiny_training(), "cuda", compiled=owner is objective), 1)


@pytest.mark.parametrize("method", ["ibp", pytest.param("pgd", marks=pytest.mark.slow)])
def test_a_step_that_cannot_be_captured_says_so(tiny_training, method):
    with failing("capture"), pytest.raises(RuntimeError, match="a step cannot be captured as a CUDA graph: "):
        take_steps(stepper_of(tiny_training(method=method), "cuda"), 1)


@pytest.mark.parametrize("fault", ["memory", "capture-memory", "instantiate-memory"])
def test_memory_that_runs_out_in_a_step_is_known_as_that(tiny_training, fault):
    stepper = stepper_of(tiny_training(), "cuda")
    with failing(fault), pytest.raises(RuntimeError) as raised:
        take_steps(stepper, 1)
    assert is_out_of_memory(raised.value)


def test_steps_before_a_capture_are_not_counted(tiny_training):
    stepper = stepper_of(tiny_training(), "cuda")
    with Values():
        take_steps(stepper, 1)
        assert {int(state["step"]) for state in stepper.optimiser.state.values()} == {0}, "graphs have no values"
    assert all(parameter.isfinite().all() for parameter in stepper.model.parameters())


def test_a_gpu_needs_triton_and_a_c_compiler(monkeypatch):
    assert compiler_problem.__wrapped__("cuda") is None
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CC", raising=False)
    assert compiler_problem.__wrapped__("cuda").startswith("there is no C compiler here")
    monkeypatch.setattr("torch.utils._triton.has_triton", lambda: False)
    assert compiler_problem.__wrapped__("cuda").startswith("Triton")
