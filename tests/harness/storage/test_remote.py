"""Files at an address: whole or not at all, results last, and nothing lost or sent for nothing."""

import json
import os
import socket
from pathlib import Path

import pytest

from harness.errors import InputError
from harness.storage import folder, lease, remote
from harness.storage.remote import check, join, pull, push

NAMES = ["trials/a/result.json", "trials/a/epochs.jsonl", "trials/a/checkpoint.pt", "trials/a/certified/x/result.json"]


@pytest.fixture
def uri(tmp_path):
    return f"file://{tmp_path}/bucket/pre fix".replace(" ", "%20")


@pytest.fixture
def there(tmp_path):
    """Where the address leads."""
    return tmp_path / "bucket/pre fix"


@pytest.fixture
def here(tmp_path):
    return fill(tmp_path / "here")


@pytest.fixture
def written(monkeypatch):
    """The names that are written at an address, in order; whoever sets `dies` to a number dies at that one."""

    class Written(list):
        dies = None

    names, write = Written(), remote._write

    def told(fs, path, content):
        if len(names) == names.dies:
            raise KeyboardInterrupt
        names.append(path.partition("/trials/")[2])
        return write(fs, path, content)

    monkeypatch.setattr(remote, "_write", told)
    return names


def fill(directory, text="first"):
    for name in NAMES:
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text} {name}")
    return directory


def files(directory):
    found = {path.relative_to(directory).as_posix(): path for path in directory.rglob("*") if path.is_file()}
    return {name: path.read_text() for name, path in found.items()}


def test_what_was_pushed_is_pulled_elsewhere_and_nothing_goes_twice(here, uri, tmp_path, written):
    push(here, uri)
    assert pull(uri, tmp_path / "elsewhere") == set(NAMES)
    assert files(tmp_path / "elsewhere") == files(here)
    assert len(written) == len(NAMES)
    push(tmp_path / "elsewhere", uri)
    push(here, uri)
    assert len(written) == len(NAMES)
    before = {path: path.stat().st_ino for path in (tmp_path / "elsewhere").rglob("*")}
    pull(uri, tmp_path / "elsewhere")
    assert {path: path.stat().st_ino for path in (tmp_path / "elsewhere").rglob("*")} == before


def test_what_has_another_content_of_the_same_length_goes_over(here, uri, tmp_path):
    push(here, uri)
    pull(uri, tmp_path / "elsewhere")
    fill(here, "other")
    push(here, uri)
    pull(uri, tmp_path / "elsewhere")
    assert files(tmp_path / "elsewhere") == files(here)
    assert all(text.startswith("other") for text in files(here).values())


@pytest.mark.parametrize("count", range(len(NAMES)))
def test_results_go_last_and_rows_before_checkpoints(here, uri, there, written, count):
    written.dies = count
    with pytest.raises(KeyboardInterrupt):
        push(here, uri)
    pushed = files(there) if there.exists() else {}
    assert pushed.items() <= files(here).items(), "whole or not at all"
    order = ["epochs.jsonl", "checkpoint.pt", "certified/x/result.json", "result.json"]
    assert [name.removeprefix("a/") for name in written] == order[:count]
    assert set(pushed) == {f"trials/a/{name}" for name in order[:count]}


def test_an_upload_that_is_broken_off_leaves_what_was_there(here, uri, there, tmp_path, monkeypatch):
    push(here, uri)
    before = files(there)
    fs, base = remote._open(uri)

    class BrokenOff:
        def __getattr__(self, name):
            return getattr(fs, name)

        def move(self, *_):
            raise OSError("the net is gone")

    fill(here, "changed")
    with monkeypatch.context() as patch:
        patch.setattr(remote, "_open", lambda _: (BrokenOff(), base))
        with pytest.raises(OSError, match="the net is gone"):
            push(here, uri)
    shown = {name: text for name, text in files(there).items() if not Path(name).name.startswith(".")}
    assert shown == before
    pull(uri, tmp_path / "elsewhere")
    assert files(tmp_path / "elsewhere") == before, "nobody sees what was begun"


def test_a_file_that_changes_while_it_is_read_is_read_again(here, uri, there, tmp_path, monkeypatch):
    push(here, uri)
    fs, base = remote._open(uri)
    changed = there / NAMES[0]
    left = ["other length", "and another"]

    class Changing:
        def __getattr__(self, name):
            return getattr(fs, name)

        def open_input_stream(self, path):
            stream = fs.open_input_stream(path)
            if left and path == str(changed):
                changed.write_text(left.pop())
            return stream

    monkeypatch.setattr(remote, "_open", lambda _: (Changing(), base))
    pull(uri, tmp_path / "elsewhere")
    assert (tmp_path / "elsewhere" / NAMES[0]).read_text() == changed.read_text() == "other length"


def test_what_is_lost_on_one_side_is_not_removed_on_the_other(here, uri, there):
    push(here, uri)
    whole = files(here)
    (here / NAMES[0]).unlink()
    push(here, uri)
    assert files(there) == whole
    (there / NAMES[1]).unlink()
    pull(uri, here)
    assert files(here) == whole


def test_each_side_s_own_files_and_names_that_lead_elsewhere_stay_where_they_are(here, uri, there, monkeypatch):
    (here / ".lock").write_text("mine")
    push(here, uri)
    assert files(there).keys() == set(NAMES)
    (there / "trials/.a.tmp").write_text("half")
    assert pull(uri, here) == set(NAMES)
    for name in ("../../x", "trials//etc/x", "/etc/x", "trials/../../x", ""):
        assert not remote._is_shared(name)


def test_only_what_is_wanted_goes(here, uri, there, tmp_path):
    push(here, uri, "trials/a", lambda name: name.endswith(folder.EPOCHS))
    assert files(there).keys() == {"trials/a/epochs.jsonl"}
    assert pull(uri, tmp_path / "elsewhere", wanted=lambda name: False) == {"trials/a/epochs.jsonl"}
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("bad", ["nothing://here", "file:///proc/nowhere/results"])
def test_a_storage_that_cannot_be_used_is_named_with_the_cause(bad):
    with pytest.raises(remote.StorageError, match=f"^{bad} cannot be used: .+"):
        check(bad)


@pytest.mark.parametrize("bad", ["s3://key:hidden@bucket/x", "s3://bucket/x?access_key=hidden"])
def test_an_address_with_a_secret_is_refused_without_it(bad):
    with pytest.raises(InputError, match="environment") as told:
        check(bad)
    assert "hidden" not in str(told.value)


def test_a_storage_that_takes_files_is_left_as_it_was(uri, there):
    check(uri)
    assert list(there.iterdir()) == []


def test_names_are_joined_before_what_follows_a_question_mark():
    assert join("s3://bucket/prefix/?scheme=http", "a sweep") == "s3://bucket/prefix/a%20sweep?scheme=http"


def test_a_storage_that_is_away_for_a_while_is_waited_for(monkeypatch):
    slept, answers = [], [OSError("away"), OSError("away"), 7]
    monkeypatch.setattr(remote.time, "sleep", slept.append)

    def answer():
        if isinstance(answers[0], OSError):
            raise answers.pop(0)
        return answers[0]

    assert remote.patiently(answer) == 7
    assert slept == [1, 2]
    monkeypatch.setattr(remote, "PATIENCE", 0.0)
    answers[:] = [OSError("away")]
    with pytest.raises(OSError, match="away"):
        remote.patiently(answer)


@pytest.mark.parametrize(("host", "process"), [(socket.gethostname(), os.getppid()), ("elsewhere", 1)])
def test_an_address_has_one_holder_which_its_lock_file_names(uri, there, host, process):
    with lease.lock_address(uri):
        assert f'"process": {os.getpid()}' in (there / lease.LOCK).read_text()
    assert remote.read(uri, lease.LOCK) == b""
    remote.write(uri, lease.LOCK, json.dumps({"host": host, "process": process, "since": 0}).encode())
    with pytest.raises(InputError, match=f"process {process} on {host}; if that run is gone"), lease.lock_address(uri):
        pass
