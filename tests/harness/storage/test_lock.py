"""One run holds a directory, also on file systems without locks, and others learn its name."""

import errno
import fcntl
import json
import os
import socket
import subprocess
import sys

import pytest

from harness.common.errors import InputError
from harness.storage.lock import LOCK, Holder, holder, lock_directory

HOLDING = """
import sys
from pathlib import Path
from harness.storage.lock import lock_directory
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


@pytest.fixture(params=["locks", "no locks"])
def file_system(request, monkeypatch):
    def fail(*_args):
        raise OSError(errno.ENOLCK, "No locks available")

    if request.param == "no locks":
        monkeypatch.setattr(fcntl, "flock", fail)


@pytest.mark.usefixtures("file_system")
def test_a_second_run_is_refused_until_the_first_is_gone(tmp_path, other):
    with pytest.raises(InputError, match=f"process {other.pid} on {socket.gethostname()}"), lock_directory(tmp_path):
        pass
    assert holder(tmp_path).process == other.pid
    other.kill()
    other.wait()
    assert holder(tmp_path) is None
    with lock_directory(tmp_path):
        assert holder(tmp_path).process == os.getpid()
    assert (tmp_path / LOCK).read_text() == ""
    assert holder(tmp_path) is None


@pytest.mark.usefixtures("file_system")
def test_the_file_of_a_run_on_another_machine_must_be_deleted_by_hand(tmp_path):
    (tmp_path / LOCK).write_text(json.dumps({"host": "elsewhere", "process": 7, "since": 0}))
    assert holder(tmp_path).host == "elsewhere"
    refused = pytest.raises(InputError, match="process 7 on elsewhere; if that run is gone, delete the file")
    with refused, lock_directory(tmp_path):
        pass
    (tmp_path / LOCK).unlink()
    with lock_directory(tmp_path):
        pass


@pytest.mark.parametrize("text", ["", "{", '{"host": "elsewhere", "process": -1, "since": 0}'])
def test_a_file_that_names_nobody_is_replaced(tmp_path, text):
    (tmp_path / LOCK).write_text(text)
    assert holder(tmp_path) is None
    with lock_directory(tmp_path):
        pass


def test_a_refused_run_leaves_the_lock_as_it_was(tmp_path):
    with lock_directory(tmp_path):
        before = holder(tmp_path)
        with pytest.raises(InputError, match="another run"), lock_directory(tmp_path):
            pass
        assert holder(tmp_path) == before == Holder.model_validate_json((tmp_path / LOCK).read_text())


def test_a_new_directory_is_removed_if_nothing_was_written_there(tmp_path):
    for content, is_left in (({}, False), ({"training.json": "{}"}, True)):
        with lock_directory(tmp_path / "new"):
            for name, text in content.items():
                (tmp_path / "new" / name).write_text(text)
        assert (tmp_path / "new").exists() == is_left
