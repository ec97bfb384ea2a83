"""How steps are computed follows from the recipe and the kind of device alone, and a training keeps to it."""

import json
import re
import shutil
import subprocess
import sys

import pytest
import torch
from one_network import train_and_evaluate
from safetensors.torch import load_file
from steppers import Killed, kill, train_network

from harness.common import names
from harness.common.errors import InputError
from harness.machine.device import count_cores
from harness.storage import folder, training_progress
from harness.training import decisions, objective
from harness.training.compilation import compiler_problem
from harness.training.decisions import WORTH_COMPILING, decide_steps
from harness.training.step import Stepper

CPU, GPU = torch.device("cpu"), torch.device("cuda")
NO_COMPILER = "there is no C++ compiler here"
FC = {"options": {"hidden": [8]}, "method": "plain"}


@pytest.fixture
def compiler(monkeypatch):
    """A function that says what the compiler lacks here, None for nothing."""

    def say(problem):
        monkeypatch.setattr(decisions, "compiler_problem", lambda device_type: problem)

    say(None)
    return say


@pytest.mark.parametrize(
    ("mode", "device", "steps", "compiled"),
    [
        ("auto", CPU, WORTH_COMPILING, True),
        ("auto", CPU, WORTH_COMPILING - 1, False),
        ("auto", GPU, WORTH_COMPILING, True),
        ("auto", GPU, WORTH_COMPILING - 1, False),
        ("always", CPU, 1, True),
        ("never", GPU, WORTH_COMPILING, False),
    ],
)
def test_the_recipe_decides_whether_steps_are_compiled(
    tiny_training, tmp_path, compiler, mode, device, steps, compiled
):
    config = tiny_training(train={"compile": mode, "epochs": 1, "ramp_epochs": 1})
    assert decide_steps(config, 64 * steps, device, tmp_path).compile == compiled
    assert json.loads((tmp_path / folder.STEPS).read_text())["compile"] == compiled


def test_quickstart_networks_are_eager(tiny_training, tmp_path, compiler):
    """On every kind of device: 10 epochs of 44 steps."""
    config = tiny_training(train={"compile": "auto", "epochs": 10, "batch_size": 32})
    for device in (CPU, GPU):
        assert not decide_steps(config, 1437, device, tmp_path / device.type).compile


def test_a_training_that_continues_keeps_to_what_was_decided(tiny_training, tmp_path, compiler):
    """Whatever has changed: the rule, the compiler, or the device."""
    config = tiny_training(train={"compile": "auto", "epochs": 1, "ramp_epochs": 1})
    compiler(NO_COMPILER)
    first = decide_steps(config, 10**7, CPU, tmp_path)
    assert (first.compile, first.precision) == (False, "float32")
    compiler(None)
    assert decide_steps(config, 10**7, CPU, tmp_path) == decide_steps(config, 10**7, GPU, tmp_path) == first


def test_a_machine_that_cannot_continue_a_training_says_why(tiny_training, tmp_path, compiler):
    config = tiny_training(train={"compile": "always"})
    decide_steps(config, 320, GPU, tmp_path)
    with pytest.raises(InputError, match="began on a GPU, in TF32, which a CPU does not have"):
        decide_steps(config, 320, CPU, tmp_path)
    compiler(NO_COMPILER)
    with pytest.raises(
        InputError, match=f"compiled, and {re.escape(NO_COMPILER)}; train.compile=never trains without it"
    ):
        decide_steps(config, 320, GPU, tmp_path)


def test_a_long_training_without_a_compiler_is_eager_and_its_result_says_so(
    tiny_training, tmp_path, compiler, monkeypatch
):
    compiler(NO_COMPILER)
    monkeypatch.setattr(decisions, "WORTH_COMPILING", 15)
    result = train_network(tiny_training(width=0.05, train={"compile": "auto"}), tmp_path)
    assert result.warnings == [f"steps are eager, which takes longer: {NO_COMPILER}"]
    assert result.environment["steps"] == "eager, float32"


def test_a_training_that_must_be_compiled_fails_without_a_compiler(tiny_training, tmp_path, compiler):
    compiler(NO_COMPILER)
    with pytest.raises(InputError):
        train_network(tiny_training(width=0.05, train={"compile": "always"}), tmp_path)
    assert NO_COMPILER in folder.read_failure(tmp_path).error


def test_a_machine_without_a_compiler_is_known():
    """Asked in a process of its own, since a process asks once."""
    code = "from harness.training.compilation import compiler_problem; print(compiler_problem('cpu'))"
    nowhere = {"PATH": "/nowhere", "HOME": "/nowhere"}
    done = subprocess.run([sys.executable, "-c", code], env=nowhere, capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith(NO_COMPILER), done.stderr


def test_a_step_that_cannot_be_compiled_ends_the_training(tiny_training, tmp_path, compiler, monkeypatch):
    """It was once trained eagerly instead."""

    def fail(*arguments):
        raise RuntimeError("the compiler fell over")

    monkeypatch.setattr(objective, "compiled_loss", lambda loss: fail)
    with pytest.raises(RuntimeError, match="fell over"):
        train_network(tiny_training(width=0.05, train={"compile": "always"}), tmp_path)
    assert folder.read_failure(tmp_path).error == "RuntimeError: the compiler fell over"


def test_compiling_is_announced_before_and_after(tiny_training, tmp_path, compiler, monkeypatch):
    """For each kind of step: TAPS trains by IBP until eps has grown."""
    monkeypatch.setattr(objective, "compiled_loss", lambda loss: loss)
    rows = []
    config = tiny_training("fc", method="taps", width=1.0, options={"hidden": [8, 8]}, train={"compile": "always"})
    train_network(config, tmp_path, rows.append)
    shown = [row.get(names.ACTIVITY, row.get(names.EPOCH)) for row in rows if names.EVALUATED not in row]
    both = ["compiles its steps, which may take minutes", "trains"]
    assert shown == [0, *both, 1, 2, *both, 3]


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
@pytest.mark.parametrize("method", ["plain", pytest.param("pgd", marks=pytest.mark.slow)])  # pgd: random starts
def test_a_compiled_training_is_repeated_and_resumed_to_the_same_bits(tmp_path, tiny_training, method):
    """By Inductor itself, on a CPU."""
    assert compiler_problem("cpu") is None
    config = tiny_training("fc", **FC | {"method": method}, train={"compile": "always"})
    train_network(config, tmp_path / "uninterrupted")
    with pytest.raises(Killed):
        train_network(config, tmp_path / "interrupted", kill, save_seconds=0)
    assert [row[names.EPOCH] for row in training_progress.read_epochs(tmp_path / "interrupted")] == [0, 1, 2]
    train_network(config, tmp_path / "interrupted")
    train_network(tiny_training("fc", **FC | {"method": method}), tmp_path / "eager")
    ways = ("uninterrupted", "interrupted", "eager")
    uninterrupted, resumed, eager = (load_file(tmp_path / way / folder.WEIGHTS) for way in ways)
    assert all(torch.equal(uninterrupted[name], resumed[name]) for name in uninterrupted)
    for name in ("uninterrupted", "interrupted"):
        assert folder.read_trained(tmp_path / name).environment["steps"] == "compiled, float32"
    torch.testing.assert_close(uninterrupted, eager, rtol=0.2, atol=1e-2)


BUSY = "while True: pass"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("mode", "network", "options"), [("auto", "cnn5", {}), ("always", "fc", {"hidden": [8]})])
def test_a_busy_machine_trains_the_same_weights_and_verdicts(
    tmp_path, tiny_training, tiny_evaluation, monkeypatch, mode, network, options
):
    """Byte for byte, with a process on each core that does nothing but compute; compiled anew."""
    config = tiny_training(network, options=options, train={"compile": mode, "learning_rate": 5e-3})
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "first"))
    train_and_evaluate(config, [tiny_evaluation()], tmp_path / "idle")
    others = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(count_cores())]
    try:
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "second"))
        train_and_evaluate(config, [tiny_evaluation()], tmp_path / "busy")
    finally:
        for other in others:
            other.kill()
            other.wait()
    verdicts = f"{folder.EVALUATIONS}/{tiny_evaluation().key}/{folder.VERDICTS}"
    for name in (folder.WEIGHTS, verdicts, folder.STEPS):
        assert (tmp_path / "idle" / name).read_bytes() == (tmp_path / "busy" / name).read_bytes(), name


def test_a_cpu_or_card_without_bf16_is_one_warning(tiny_training, tmp_path, monkeypatch):
    config = tiny_training(width=0.05, train={"precision": "bf16"})
    for has_bf16 in (True, False):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda has_bf16=has_bf16: {"avx512_bf16": has_bf16})
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, has=has_bf16: has)
        directory = tmp_path / str(has_bf16)
        warnings = train_network(config, directory).warnings
        decide_steps(config, 320, GPU, tmp_path / f"gpu {has_bf16}")
        assert warnings == training_progress.read_lines(tmp_path / f"gpu {has_bf16}" / folder.TRAINING_WARNINGS)
        assert [line.partition(":")[0] for line in warnings] == [] if has_bf16 else ["bf16 is slow here"]
    assert "bf16 is slow here" in (directory / folder.LOG).read_text()


def test_memory_that_runs_out_ends_the_training_with_one_line(tiny_training, tmp_path, monkeypatch):
    """It was once trained with smaller parts of batches, which changes batch norm."""

    def fail(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Stepper, "__call__", fail)
    with pytest.raises(torch.OutOfMemoryError):
        train_network(tiny_training(width=0.05, train={"compile": "never"}), tmp_path)
    message = "out of memory; raise train.accumulate, or on a GPU resources.gpu: OutOfMemoryError: CUDA out of memory"
    assert folder.read_failure(tmp_path).error == message
