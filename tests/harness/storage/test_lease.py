"""One run holds a directory, also where locks of another machine are not seen."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from harness.errors import InputError
from harness.storage import lease
from harness.storage.lease import LOCK, holder, locked

HOLDING = """
import sys, time
from pathlib import Path
from harness.storage import lease
lease.RENEWED = 0.05
lease.socket.gethostname = lambda: "elsewhere"
lease.fcntl.flock = lambda *_: None  # locks that nobody sees
with lease.locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(lease, "RENEWED", 0.05)
    monkeypatch.setattr(lease, "STALE", 1.0)


@pytest.fixture
def elsewhere(tmp_path):
    """A process that holds the directory as if on another machine, by its lease alone."""
    command = [sys.executable, "-c", HOLDING, str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_run_on_another_machine_is_seen_by_its_lease_and_taken_over_once_it_is_gone(quick, tmp_path, elsewhere):
    who = f"process {elsewhere.pid} on elsewhere"
    with pytest.raises(InputError, match=who), locked(tmp_path):
        pass
    assert holder(tmp_path)["process"] == elsewhere.pid
    elsewhere.kill()
    elsewhere.wait()
    began = time.monotonic()
    with locked(tmp_path):
        assert time.monotonic() - began >= 1.0
        assert holder(tmp_path)["process"] == os.getpid()
    assert (tmp_path / LOCK).read_text() == ""


def test_a_run_that_was_held_up_and_taken_over_ends_at_once(quick, tmp_path, elsewhere):
    elsewhere.send_signal(signal.SIGSTOP)
    with locked(tmp_path):
        elsewhere.send_signal(signal.SIGCONT)
        assert elsewhere.wait(30) == 1
        assert f"was taken over by process {os.getpid()}" in elsewhere.stderr.read()
        assert holder(tmp_path)["process"] == os.getpid()


def test_a_run_of_this_machine_that_was_killed_keeps_nobody_waiting(tmp_path):
    (tmp_path / LOCK).write_text(json.dumps({"host": lease.socket.gethostname(), "process": 1, "since": 0}))
    began = time.monotonic()
    with locked(tmp_path):
        assert time.monotonic() - began < 5


def test_a_clock_that_goes_backwards_changes_nothing(quick, tmp_path, monkeypatch):
    """Nor one that is far from another machine's: a lease of the future that nobody renews is stale."""
    past = {"host": "elsewhere", "process": 1, "since": 2**40, "renewed": 7}
    (tmp_path / LOCK).write_text(json.dumps(past))
    monkeypatch.setattr(lease.time, "time", lambda: 1.0)
    with locked(tmp_path):
        time.sleep(0.3)
        assert holder(tmp_path)["renewed"] > 1


def test_a_file_system_without_locks_has_the_lease_alone(quick, tmp_path, monkeypatch):
    def unknown(*_args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unknown)
    with locked(tmp_path), pytest.raises(InputError, match="another run"), locked(tmp_path):
        pass
    assert [thread for thread in threading.enumerate() if thread.daemon and "_keep" in thread.name] == []
    with locked(tmp_path):
        pass


def test_a_directory_that_goes_away_is_not_made_again(quick, tmp_path):
    with locked(tmp_path / "results"):
        (tmp_path / "results" / LOCK).unlink()
        (tmp_path / "results").rmdir()
        time.sleep(0.2)
    assert list(tmp_path.iterdir()) == []
