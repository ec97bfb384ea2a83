"""Files are read once: what is hashed or judged is what is used, and JSON means the same to every reader."""

import json

import pytest

from harness.data import load
from harness.evaluation import certification_shards
from harness.evaluation.certification_shards import certification_of, certify_shard
from harness.evaluation.parts import merge_parts
from harness.storage import certification, folder, lock
from harness.storage.files import DamagedFileError, parse_json, read_bytes
from harness.training import train_and_certify

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


@pytest.fixture
def certified(tiny_trial, tmp_path):
    """A certification with a finished shard."""
    config = tiny_trial(width=0.05, train={"epochs": 1, "ramp_epochs": 1})
    trial_dir, data = tmp_path / "trials/0", load("digits")
    train_and_certify(config, trial_dir)
    trial, stored = certification_of(trial_dir, config, data, read_bytes(trial_dir / folder.WEIGHTS))
    directory = certification.directory_of(trial_dir, config.evaluation)
    certification.take_over(directory, trial, stored)
    certify_shard(directory, 0, lambda row: None, None)
    return directory


def test_the_weights_that_are_hashed_are_those_that_are_evaluated(certified, monkeypatch):
    """The file is exchanged after it was read."""
    path, load_network = certification.trial_of(certified) / folder.WEIGHTS, certification_shards.load_network

    def exchange(*arguments):
        path.write_bytes(b"other weights")
        return load_network(*arguments)

    monkeypatch.setattr(certification_shards, "load_network", exchange)
    certification_shards._load.cache_clear()
    certify_shard(certified, 0, lambda row: None, None)
    assert path.read_bytes() == b"other weights"


def test_a_shard_whose_files_were_exchanged_is_not_merged(certified):
    assert 0 not in certification.unfinished_shards(certified)
    path = certification.proofs_path(certified, 0)
    path.write_bytes(path.read_bytes() + b" ")
    assert 0 in certification.unfinished_shards(certified)
    stored = certification.read_certification(certified)
    with pytest.raises(DamagedFileError, match="cannot be read"):
        merge_parts(certified, stored.images, stored.digest)
