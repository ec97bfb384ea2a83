"""When steps are compiled, and that a compiled trial is repeated and resumed to the same bits."""

import shutil

import pytest
import torch
from safetensors.torch import load_file
from steppers import Killed, kill, stepper_of, train_network

from harness.common import names
from harness.storage import folder, training_record
from harness.training import loop, objective
from harness.training.compilation import WORTH_COMPILING, choose_compilation

CPU, GPU = torch.device("cpu"), torch.device("cuda")
LONG, SHORT = 1.1 * WORTH_COMPILING, 0.9 * WORTH_COMPILING


@pytest.mark.parametrize(
    ("mode", "device", "before", "seconds", "compiled"),
    [
        ("auto", CPU, None, LONG, True),
        ("auto", CPU, None, SHORT, False),
        ("auto", GPU, None, None, True),
        ("auto", CPU, True, None, True),
        ("always", CPU, None, None, True),
        ("always", CPU, False, None, False),
        ("never", GPU, None, None, False),
    ],
)
def test_steps_are_compiled_if_that_gains_time_or_earlier_epochs_were(mode, device, before, seconds, compiled):
    def eager_seconds():
        assert seconds is not None, "a measurement that decides nothing"
        return seconds

    assert choose_compilation(mode, device, before, eager_seconds)[0] == compiled


def test_steps_are_eager_if_compiling_does_not_work(tiny_training, tmp_path, monkeypatch):
    def fail(*arguments):
        raise RuntimeError("no C++ compiler\nand much more")

    monkeypatch.setattr(objective, "compiled_loss", lambda loss: fail)
    result = train_network(tiny_training(width=0.05, train={"compile": "always"}), tmp_path)
    assert result.warnings == ["compiled steps given up: RuntimeError: no C++ compiler and much more"]
    assert [row[names.TRAIN_COMPILED] for row in training_record.read_epochs(tmp_path)[1:]] == [0.0] * 3


def test_timing_steps_changes_nothing(tiny_training):
    """With everything that has a state: an average, batch norm, an equilibrium's schedule, random attacks."""
    options = {"margin": 0.2, "margin_start": 0.8}
    stepper = stepper_of(tiny_training("cerdeq", method="sabr", options=options, train={"ema_decay": 0.9}))
    before = [{key: value.clone() for key, value in network.state_dict().items()} for network in stepper.networks]
    generator = torch.get_rng_state()
    assert loop.seconds_per_step(stepper) > 0
    assert torch.equal(generator, torch.get_rng_state()) and not stepper.optimiser.state
    for network, state in zip(stepper.networks, before, strict=True):
        assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
@pytest.mark.parametrize("method", ["plain", pytest.param("ibp", marks=pytest.mark.slow)])  # with thrice the kernels
def test_a_compiled_trial_is_repeated_and_resumed_to_the_same_bits(tmp_path, tiny_training, method):
    """By Inductor itself, on a CPU."""
    config = tiny_training("fc", options={"hidden": [8]}, method=method, train={"compile": "always"})
    train_network(config, tmp_path / "uninterrupted")
    with pytest.raises(Killed):
        train_network(config, tmp_path / "interrupted", kill, save_seconds=0)
    assert [row[names.EPOCH] for row in training_record.read_epochs(tmp_path / "interrupted")] == [0, 1, 2]
    train_network(config, tmp_path / "interrupted")
    train_network(tiny_training("fc", options={"hidden": [8]}, method=method), tmp_path / "eager")
    ways = ("uninterrupted", "interrupted", "eager")
    uninterrupted, resumed, eager = (load_file(tmp_path / way / folder.WEIGHTS) for way in ways)
    assert all(torch.equal(uninterrupted[name], resumed[name]) for name in uninterrupted)
    for name in ("uninterrupted", "interrupted"):
        compiled = [row[names.TRAIN_COMPILED] for row in training_record.read_epochs(tmp_path / name)[1:]]
        assert compiled == [1.0] * config.train.epochs
    torch.testing.assert_close(uninterrupted, eager, rtol=0.2, atol=1e-2)
