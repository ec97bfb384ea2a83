"""One run holds a directory, also on file systems without locks, and names itself to the others."""

import errno
import fcntl
import json
import os
import socket
import subprocess
import sys

import pytest

from harness.errors import InputError
from harness.storage.lease import LOCK, holder, lock_directory

HOLDING = """
import sys
from pathlib import Path
from harness.storage.lease import lock_directory
with lock_directory(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def other(tmp_path):
    """A process that holds the directory."""
    command = [sys.executable, "-c", HOLDING, str(tmp_path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def no_locks(monkeypatch):
    def unknown(*_args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unknown)


def leave(directory, host, process):
    (directory / LOCK).write_text(json.dumps({"host": host, "process": process, "since": 0}))


def test_a_second_run_is_refused_and_told_who_holds_the_directory(tmp_path, other):
    with pytest.raises(InputError, match=f"process {other.pid} on {socket.gethostname()}"), lock_directory(tmp_path):
        pass
    assert holder(tmp_path)["process"] == other.pid


def test_a_run_that_was_killed_keeps_nobody_out(tmp_path, other):
    other.kill()
    other.wait()
    assert holder(tmp_path) is None
    with lock_directory(tmp_path):
        assert holder(tmp_path)["process"] == os.getpid()
    assert (tmp_path / LOCK).read_text() == ""
    assert holder(tmp_path) is None


def test_without_locks_the_file_alone_counts(tmp_path, no_locks, other):
    with pytest.raises(InputError, match=f"process {other.pid}"), lock_directory(tmp_path):
        pass
    other.kill()
    other.wait()
    with lock_directory(tmp_path):
        pass


@pytest.mark.parametrize("without", [True, False])
def test_a_run_of_another_machine_must_be_deleted_by_hand(tmp_path, request, without):
    if without:
        request.getfixturevalue("no_locks")
    leave(tmp_path, "elsewhere", 7)
    assert holder(tmp_path)["host"] == "elsewhere"
    refused = pytest.raises(InputError, match="process 7 on elsewhere; if that run is gone, delete the file")
    with refused, lock_directory(tmp_path):
        pass
    (tmp_path / LOCK).unlink()
    with lock_directory(tmp_path):
        pass


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"host": "elsewhere"}'])
def test_a_file_that_names_nobody_keeps_nobody_out(tmp_path, text):
    (tmp_path / LOCK).write_text(text)
    with lock_directory(tmp_path):
        pass


def test_a_refused_run_leaves_the_lock_as_it_was(tmp_path):
    with lock_directory(tmp_path):
        before = holder(tmp_path)
        with pytest.raises(InputError, match="another run"), lock_directory(tmp_path):
            pass
        assert holder(tmp_path) == before == json.loads((tmp_path / LOCK).read_text())
    assert holder(tmp_path) is None
    with open(tmp_path / LOCK) as file:  # `holder` keeps no lock
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
