"""When steps are compiled, and that a compiled trial is repeated and resumed to the same bits."""

import pytest
import torch
from safetensors.torch import load_file

from baselines import build
from harness.clock import Clock
from harness.storage import folder, names
from harness.training import compilation, loop, run_trial
from harness.training.compilation import Decision, decide

CPU = torch.device("cpu")


@pytest.fixture
def compiling_works(monkeypatch):
    monkeypatch.setattr(compilation, "compiler_problem", lambda device: None)


def _decided(config, images=1000, before=None) -> Decision:
    model = build(config.model, config.dataset, config.width, **config.options)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    decision = decide(config, model, images, CPU, before)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    return decision


@pytest.mark.parametrize("model", ["cnn5", "cerdeq"])
def test_steps_are_compiled_where_that_is_earned_back(tiny_trial, compiling_works, model):
    short, long = _decided(tiny_trial(model)), _decided(tiny_trial(model), images=10**9)
    assert (short.compiled, long.compiled) == (False, True)
    assert "would not pay" in short.why and "to compile" in long.why


def test_small_networks_gain_by_their_boxes_not_by_their_products(tiny_trial, compiling_works):
    """At an eighth of the width a step takes less than half as long compiled (docs/measurements.md)."""
    trial = tiny_trial("cnn7", dataset="cifar10", width=0.125, train={"epochs": 10, "batch_size": 64})
    assert _decided(trial, images=20_000).compiled
    assert not _decided(trial, images=5_000).compiled


@pytest.mark.parametrize("wanted", ["always", "never"])
def test_a_trial_can_say_whether_they_are(tiny_trial, compiling_works, wanted):
    assert _decided(tiny_trial(train={"compile": wanted})).compiled == (wanted == "always")


@pytest.mark.parametrize("before", [True, False])
def test_a_trial_goes_on_as_it_began(tiny_trial, compiling_works, before):
    assert _decided(tiny_trial(), before=before).compiled == before
    assert _decided(tiny_trial(train={"compile": "always"}), before=before).compiled == before


def test_steps_are_eager_where_compiling_does_not_work_and_the_reason_is_given(tiny_trial, monkeypatch):
    def broken(function):
        raise RuntimeError("no C++ compiler\nand much more")

    monkeypatch.setattr(torch, "compile", broken)
    compilation.compiler_problem.cache_clear()
    decision = _decided(tiny_trial(train={"compile": "always"}))
    compilation.compiler_problem.cache_clear()
    assert not decision.compiled and decision.why.endswith("RuntimeError: no C++ compiler and much more")


class Killed(BaseException):
    """Stands for SIGKILL."""


@pytest.fixture
def _compiler():
    """Skip without a compiler. A fixture, since the probe takes seconds that collection has no need of."""
    if compilation.compiler_problem("cpu") is not None:
        pytest.skip("no C++ compiler that torch can use")


@pytest.mark.usefixtures("_compiler")
@pytest.mark.parametrize("method", ["plain", pytest.param("ibp", marks=pytest.mark.slow)])  # with thrice the kernels
def test_a_compiled_trial_is_repeated_and_resumed_to_the_same_bits(tmp_path, tiny_trial, method):
    """By Inductor itself, on a CPU."""
    config = tiny_trial("cnn5", width=0.05, method=method, train={"compile": "always"})
    run_trial(config, directory=tmp_path / "whole")

    def kill(row):
        if row[names.EPOCH] == 2:
            raise Killed

    with pytest.raises(Killed):
        run_trial(config, directory=tmp_path / "broken", report=kill, clock=Clock(keep_every=0))
    assert [row[names.EPOCH] for row in folder.read_epochs(tmp_path / "broken")] == [0, 1, 2]
    run_trial(config, directory=tmp_path / "broken")
    run_trial(tiny_trial("cnn5", width=0.05, method=method), directory=tmp_path / "eager")
    whole, broken, eager = (load_file(tmp_path / name / folder.WEIGHTS) for name in ("whole", "broken", "eager"))
    assert all(torch.equal(whole[name], broken[name]) for name in whole)
    for name in ("whole", "broken"):
        compiled = [row[names.TRAIN_COMPILED] for row in folder.read_epochs(tmp_path / name)[1:]]
        assert compiled == [1.0] * config.train.epochs
    torch.testing.assert_close(whole, eager, rtol=0.2, atol=1e-2)


def test_what_was_decided_is_said(tmp_path, tiny_trial, caplog):
    with caplog.at_level("INFO", logger=loop.__name__):
        run_trial(tiny_trial(), directory=tmp_path)
    assert "would not pay" in caplog.text
