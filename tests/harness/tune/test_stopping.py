"""Ctrl-C once, twice and three times, and SIGTERM, as signals, and what they leave behind."""

import os
import signal

import pytest

from harness.storage import folder
from harness.tune.stopping import Stopping


@pytest.fixture
def lines():
    return []


@pytest.fixture
def stop(tmp_path, lines):
    return Stopping(tmp_path / "sweep" / folder.STOP, lines.append)


def interrupt(times=1):
    for _ in range(times):
        os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize(("number", "name"), [(signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "SIGTERM")])
def test_one_signal_writes_the_file_that_trials_look_for(stop, lines, tmp_path, number, name):
    before = signal.getsignal(number)
    stop.flag.parent.mkdir()
    stop.flag.write_text("of a run that was killed")
    with stop:
        assert not stop.flag.exists()
        os.kill(os.getpid(), number)
        assert stop.asked and stop.interrupted
        assert folder.stop_file(folder.trial_dir(tmp_path / "sweep", "0" * 16)).exists()
    assert not stop.flag.exists()
    assert signal.getsignal(number) == before
    assert lines == [f"{name}: running trials end with their epoch, which is saved; to stop at once, press Ctrl-C"]


def test_a_second_signal_stops_at_once(stop):
    with pytest.raises(KeyboardInterrupt), stop:
        interrupt(times=2)
    assert not stop.flag.exists(), "else the next run would start nothing"


def test_a_second_sigterm_is_the_first_one_again(stop, lines):
    """Slurm sends it before the time limit and at it, to this process and through its parent."""
    with stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.asked and len(lines) == 1
        with pytest.raises(KeyboardInterrupt):
            interrupt()


def test_a_second_signal_waits_for_what_is_being_written(stop, lines):
    written = []
    with pytest.raises(KeyboardInterrupt), stop:
        with stop.delayed():
            interrupt(times=2)
            written.append("in the block")
        written.append("after it")
    assert written == ["in the block"]
    assert "Ctrl-C: stops as soon as the current write to MLflow is done" in lines[1]


def test_a_third_signal_waits_for_nothing(stop):
    with pytest.raises(KeyboardInterrupt), stop, stop.delayed():
        interrupt(times=3)
        pytest.fail("went on")


def test_one_signal_within_the_block_stops_nothing(stop):
    with stop:
        with stop.delayed():
            interrupt()
        assert stop.interrupted
        with pytest.raises(KeyboardInterrupt):
            interrupt()


def test_after_a_failure_the_first_ctrl_c_changes_only_the_exit_status_and_the_second_stops_at_once(stop, lines):
    with pytest.raises(KeyboardInterrupt), stop:
        stop.ask("a trial failed")
        assert stop.flag.exists() and not stop.interrupted
        interrupt()
        assert stop.interrupted
        interrupt()
    assert len(lines) == 1 and lines[0].endswith("; to stop at once, press Ctrl-C twice")
