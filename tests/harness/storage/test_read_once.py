"""Files are read once: what is hashed or judged is what is used, and JSON means the same to every reader."""

import json

import pytest

from harness.storage import folder, lock
from harness.storage.files import DamagedFileError, parse_json

AMBIGUOUS = {
    "a key twice": b'{"a": 1, "a": 2}',
    "a key twice within": b'[{"b": {"a": 1, "c": 0, "a": 1}}]',
    "a key twice in another spelling": b'{"a": 1, "\\u0061": 2}',
    "not a number": b'{"a": NaN}',
    "an infinite number": b'{"a": 1e999}',
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "a byte order mark": b'\xef\xbb\xbf{"a": 1}',
}


@pytest.mark.parametrize("content", AMBIGUOUS.values(), ids=AMBIGUOUS)
def test_json_that_readers_take_differently_is_refused(tmp_path, content):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(DamagedFileError, match=r"x\.json cannot be read"):
        parse_json(tmp_path / "x.json", lambda content: content)


@pytest.mark.parametrize("name", [folder.TRIAL, folder.RESULT, folder.CHOSEN, folder.FAILURE, folder.EPOCHS])
def test_every_file_of_a_trial_is_refused_with_a_key_twice(tmp_path, tiny_trial, name):
    trial = folder.make_trial(tiny_trial(), "data")
    folder.take_over(tmp_path, trial)
    folder.write_result(tmp_path, folder.TrialResult(trial.key, {}, {}, {}, []))
    folder.write_chosen(tmp_path, {"text": "a", "search": "tpe-0"})
    folder.write_failure(tmp_path, "it failed")
    folder.write_epoch(tmp_path, {"epoch": 0})
    readers = {
        folder.TRIAL: lambda directory: folder.read_trial(directory / folder.TRIAL),
        folder.RESULT: folder.read_result,
        folder.CHOSEN: folder.read_chosen,
        folder.FAILURE: folder.read_failure,
        folder.EPOCHS: folder.read_epochs,
    }
    assert readers[name](tmp_path)
    text = (tmp_path / name).read_text()
    first = next(iter(json.loads(text)))
    (tmp_path / name).write_text(text.replace("{", f'{{"{first}": 1, ', 1))
    with pytest.raises(DamagedFileError, match=f"the key '{first}' appears twice"):
        readers[name](tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        '{"host": "elsewhere", "host": "here", "process": 7, "since": 0}',
        '{"host": "elsewhere", "process": "7", "since": 0}',
        '{"host": "elsewhere", "process": -1, "since": 0}',
        '{"host": "elsewhere", "process": 7, "since": [0]}',
    ],
)
def test_a_lock_file_that_is_none_names_nobody(tmp_path, text):
    (tmp_path / lock.LOCK).write_text(text)
    assert lock.holder(tmp_path) is None
