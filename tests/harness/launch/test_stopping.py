"""Ctrl-C once and twice, as signals, and what it leaves behind."""

import os
import signal

import pytest

from harness.launch.stopping import Stopping
from harness.storage import folder


@pytest.fixture
def stop(tmp_path):
    """A Stopping with what it said, as a list."""
    said = []
    made = Stopping(tmp_path / "sweep" / folder.STOP, said.append)
    made.said = said
    return made


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_once_tells_the_trials_and_lets_the_command_go_on(stop):
    with stop:
        assert not stop.flag.exists()
        interrupt()
        assert stop.flag.exists()
        assert (stop.asked, stop.interrupted) == (True, True)
    assert not stop.flag.exists()
    assert len(stop.said) == 1
    assert "Ctrl-C" in stop.said[0]


def test_sigterm_asks_as_ctrl_c_does(stop):
    with stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.asked and stop.interrupted
    assert stop.said[0].startswith("SIGTERM: running trials end with their epoch")


def test_ctrl_c_twice_stops_at_once(stop):
    with pytest.raises(KeyboardInterrupt), stop:
        interrupt()
        interrupt()
    assert not stop.flag.exists(), "else the next run would begin nothing"


def test_ctrl_c_twice_waits_for_what_must_be_whole(stop):
    written = []
    with pytest.raises(KeyboardInterrupt), stop:
        with stop.whole():
            interrupt()
            interrupt()
            written.append("whole")
        written.append("more")
    assert written == ["whole"]
    assert "as soon as MLflow has what is being written" in stop.said[1]


def test_an_error_in_what_must_be_whole_hides_no_ctrl_c(stop):
    with pytest.raises(KeyboardInterrupt), stop, stop.whole():
        interrupt()
        interrupt()
        raise ValueError


def test_ctrl_c_three_times_waits_for_nothing(stop):
    with pytest.raises(KeyboardInterrupt), stop, stop.whole():
        interrupt()
        interrupt()
        interrupt()
        pytest.fail("went on")


def test_ctrl_c_once_lets_what_must_be_whole_go_on(stop):
    with stop:
        with stop.whole():
            interrupt()
        assert stop.interrupted
        with pytest.raises(KeyboardInterrupt):
            interrupt()


def test_after_a_failure_ctrl_c_is_the_first_one(stop):
    with stop:
        stop.ask("a trial failed")
        assert stop.flag.exists()
        assert not stop.interrupted
        interrupt()
        assert stop.interrupted
    assert len(stop.said) == 1


def test_ctrl_c_is_the_caller_s_again_afterwards(stop):
    before = signal.getsignal(signal.SIGINT)
    with stop:
        assert signal.getsignal(signal.SIGINT) != before
    assert signal.getsignal(signal.SIGINT) == before


def test_what_a_killed_run_left_stops_nobody(stop):
    stop.flag.parent.mkdir()
    stop.flag.write_text("of last week")
    with stop:
        assert not stop.flag.exists()


def test_the_flag_lies_where_trials_look(tmp_path):
    place = folder.place(tmp_path / "sweep", "0" * 16)
    assert folder.stop_file(place) == tmp_path / "sweep" / folder.STOP
