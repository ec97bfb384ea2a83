"""Files at an address: complete or as before, results last, nothing lost, nothing copied twice."""

import json
import os
import socket
from pathlib import Path

import pytest

from harness.common.errors import InputError
from harness.storage import folder, remote
from harness.storage import lock as lease
from harness.storage.remote import check_address, join, pull, push

NAMES = ["trials/a/result.json", "trials/a/epochs.jsonl", "trials/a/checkpoint.pt", "trials/a/certified/x/result.json"]
ORDER = ["trials/a/epochs.jsonl", "trials/a/checkpoint.pt", "trials/a/certified/x/result.json", "trials/a/result.json"]


@pytest.fixture
def uri(tmp_path):
    return f"file://{tmp_path}/bucket/pre fix".replace(" ", "%20")


@pytest.fixture
def bucket(tmp_path):
    """The directory of the address."""
    return tmp_path / "bucket/pre fix"


@pytest.fixture
def local(tmp_path):
    return fill(tmp_path / "local")


@pytest.fixture
def written(monkeypatch):
    """The names that are written at an address, in order; `kill_at` raises at the number that it is set to."""

    class Written(list):
        kill_at = None

    names, write = Written(), remote.write

    def write_or_die(uri, name, content):
        if len(names) == names.kill_at:
            raise KeyboardInterrupt
        names.append(name)
        return write(uri, name, content)

    monkeypatch.setattr(remote, "write", write_or_die)
    return names


def fill(directory, text="first"):
    for name in NAMES:
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text} {name}")
    return directory


def files(directory):
    paths = (path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): path.read_text() for path in paths}


def test_files_that_are_the_same_are_not_copied_again(local, uri, tmp_path, written):
    push(local, uri)
    assert pull(uri, tmp_path / "elsewhere") == set(NAMES)
    assert files(tmp_path / "elsewhere") == files(local)
    before = {path: path.stat().st_ino for path in (tmp_path / "elsewhere").rglob("*")}
    push(tmp_path / "elsewhere", uri)
    push(local, uri)
    pull(uri, tmp_path / "elsewhere")
    assert len(written) == len(NAMES)
    assert {path: path.stat().st_ino for path in (tmp_path / "elsewhere").rglob("*")} == before


def test_another_content_of_the_same_length_is_copied(local, uri, tmp_path):
    push(local, uri)
    pull(uri, tmp_path / "elsewhere")
    fill(local, "other")
    push(local, uri)
    pull(uri, tmp_path / "elsewhere")
    assert files(tmp_path / "elsewhere") == files(local)
    assert all(text.startswith("other") for text in files(local).values())


@pytest.mark.parametrize("count", range(len(NAMES)))
def test_epochs_go_before_checkpoints_and_results_last(local, uri, bucket, written, count):
    written.kill_at = count
    with pytest.raises(KeyboardInterrupt):
        push(local, uri)
    assert written == ORDER[:count]
    if count:
        assert files(bucket) == {name: files(local)[name] for name in ORDER[:count]}


class Patched:
    """A file system, some of whose methods are replaced."""

    def __init__(self, fs, **methods):
        self.fs = fs
        vars(self).update(methods)

    def __getattr__(self, name):
        return getattr(self.fs, name)


def test_an_interrupted_upload_leaves_the_file_as_it_was(local, uri, bucket, tmp_path, monkeypatch):
    push(local, uri)
    before = files(bucket)
    fs, base = remote._open(uri)

    def fail(*_):
        raise OSError("no connection")

    fill(local, "changed")
    with monkeypatch.context() as patch:
        patch.setattr(remote, "_open", lambda _: (Patched(fs, move=fail), base))
        with pytest.raises(OSError, match="no connection"):
            push(local, uri)
    assert {name: text for name, text in files(bucket).items() if not Path(name).name.startswith(".")} == before
    pull(uri, tmp_path / "elsewhere")
    assert files(tmp_path / "elsewhere") == before


def test_a_file_that_changes_while_it_is_read_is_read_again(local, uri, bucket, tmp_path, monkeypatch):
    push(local, uri)
    fs, base = remote._open(uri)
    changed = bucket / NAMES[0]
    contents = ["other length", "and another"]

    def open_input_stream(path):
        stream = fs.open_input_stream(path)
        if contents and path == str(changed):
            changed.write_text(contents.pop())
        return stream

    monkeypatch.setattr(remote, "_open", lambda _: (Patched(fs, open_input_stream=open_input_stream), base))
    pull(uri, tmp_path / "elsewhere")
    assert (tmp_path / "elsewhere" / NAMES[0]).read_text() == changed.read_text() == "other length"


def test_a_file_lost_on_one_side_stays_on_the_other(local, uri, bucket):
    push(local, uri)
    before = files(local)
    (local / NAMES[0]).unlink()
    push(local, uri)
    assert files(bucket) == before
    (bucket / NAMES[1]).unlink()
    pull(uri, local)
    assert files(local) == before


def test_hidden_files_and_names_that_lead_elsewhere_are_not_copied(local, uri, bucket):
    (local / ".lock").write_text("own")
    push(local, uri)
    assert files(bucket).keys() == set(NAMES)
    (bucket / "trials/.a.tmp").write_text("half")
    assert pull(uri, local) == set(NAMES)
    for name in ("../../x", "trials//etc/x", "/etc/x", "trials/../../x", ""):
        assert not remote._is_shared(name)


def test_only_wanted_files_are_copied(local, uri, bucket, tmp_path):
    push(local, uri, "trials/a", lambda name: name.endswith(folder.EPOCHS))
    assert files(bucket).keys() == {"trials/a/epochs.jsonl"}
    assert pull(uri, tmp_path / "elsewhere", wanted=lambda name: False) == {"trials/a/epochs.jsonl"}
    assert not (tmp_path / "elsewhere").exists()


def test_files_and_folders_are_removed_if_they_exist(local, uri, bucket):
    push(local, uri)
    for name in ("trials/a/certified", "trials/a/result.json", "trials/a/none"):
        remote.remove(uri, name)
    assert set(files(bucket)) == {"trials/a/epochs.jsonl", "trials/a/checkpoint.pt"}


@pytest.mark.parametrize("bad", ["nothing://here", "file:///proc/nowhere/results"])
def test_a_storage_that_cannot_be_used_is_named_with_the_cause(bad):
    with pytest.raises(remote.StorageError, match=f"^{bad} cannot be used: .+"):
        check_address(bad)


def test_a_storage_is_checked_without_a_trace(uri, bucket):
    check_address(uri)
    assert list(bucket.iterdir()) == []


def test_names_are_joined_before_the_question_mark():
    assert join("s3://bucket/prefix/?scheme=http", "a sweep") == "s3://bucket/prefix/a%20sweep?scheme=http"


def test_a_storage_that_is_away_is_tried_again_for_a_while(monkeypatch):
    pauses, answers = [], [OSError("away"), OSError("away"), 7]
    monkeypatch.setattr(remote.time, "sleep", pauses.append)

    def answer():
        if isinstance(answers[0], OSError):
            raise answers.pop(0)
        return answers[0]

    assert remote.retry_storage(answer) == 7
    assert pauses == [1, 2]
    monkeypatch.setattr(remote, "PATIENCE", 0.0)
    answers[:] = [OSError("away")]
    with pytest.raises(OSError, match="away"):
        remote.retry_storage(answer)


@pytest.mark.parametrize(("host", "process"), [(socket.gethostname(), os.getppid()), ("elsewhere", 1)])
def test_an_address_has_one_holder_which_its_lock_file_names(uri, bucket, host, process):
    with lease.lock_address(uri):
        assert f'"process": {os.getpid()}' in (bucket / lease.LOCK).read_text()
    assert remote.read(uri, lease.LOCK) == b""
    remote.write(uri, lease.LOCK, json.dumps({"host": host, "process": process, "since": 0}).encode())
    with pytest.raises(InputError, match=f"process {process} on {host}; if that run is gone"), lease.lock_address(uri):
        pass
