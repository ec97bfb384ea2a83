"""A trial's folder: no file is ever cut off, and files that are damaged or another trial's are named."""

import os

import pytest

from harness.common import names
from harness.common.errors import SettingError
from harness.storage import files, folder, training_record
from harness.storage.files import DamagedFileError
from harness.storage.folder import TrialResult


@pytest.fixture
def trial(tiny_trial):
    return folder.make_trial(tiny_trial(), "data")


def test_a_file_whose_writing_breaks_off_is_as_it_was(tmp_path):
    path = tmp_path / "below/file"
    files.write_text(path, "old")

    def break_off(temporary):
        temporary.write_text("ne")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        files.write_atomically(path, break_off)
    assert path.read_text() == "old"
    assert [each.name for each in path.parent.iterdir()] == ["file"]


def test_temporary_files_of_a_killed_writer_are_removed(tmp_path):
    for name in (".result.json.123.tmp", "result.json", ".lock", "notes.tmp"):
        (tmp_path / name).touch()
    files.remove_unfinished(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"result.json", ".lock", "notes.tmp"}


def test_a_file_is_renamed_once_all_of_it_is_on_disk(tmp_path, monkeypatch):
    path, synced = tmp_path / "file", []
    fsync = os.fsync

    def watched(descriptor):
        synced.append((os.pread(descriptor, 99, 0), path.exists()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    files.write_text(path, "all of it")
    assert synced == [(b"all of it", False)]
    assert path.read_text() == "all of it"


def test_not_a_number_is_not_written_as_json(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        files.write_json(tmp_path / "file", {"loss": float("nan")})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "content",
    [b'{"a": NaN}', b'{"a": 1e999}', b'{"a": 1, "\\u0061": 2}', '{"a": 1}'.encode("utf-16"), b"[" * 10**5, b""],
)
def test_what_is_no_json_or_what_readers_take_differently_is_damaged(tmp_path, content):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(DamagedFileError, match=r"x\.json cannot be read"):
        files.parse_json(tmp_path / "x.json", lambda content: content)


def test_a_trial_its_result_and_its_failure_are_read_as_they_were_written(tmp_path, trial):
    assert folder.read_result(tmp_path) is None and folder.read_failure(tmp_path) is None
    folder.take_over(tmp_path, trial)
    result = TrialResult(trial.key, {names.CERTIFIED_ERROR: 100 / 3, names.GAIN: None}, {"torch": "2"}, {}, ["odd"])
    folder.write_result(tmp_path, result)
    folder.write_failure(tmp_path, "RuntimeError: diverged", {names.TRAIN_LOSS: 2.5}, repeats=True)
    assert folder.read_trial(tmp_path / folder.TRIAL) == trial
    assert folder.read_result(tmp_path) == result
    failure = {"error": "RuntimeError: diverged", "last_finite": {names.TRAIN_LOSS: 2.5}, "repeats": True}
    assert folder.read_failure(tmp_path) == folder.Failure(**failure)


def test_an_epoch_written_again_drops_the_rows_from_it_on(tmp_path):
    assert training_record.read_epochs(tmp_path) == []
    for epoch, loss in ((0, 9.0), (1, 8.0), (2, 7.0), (1, 6.0)):
        training_record.write_epoch(tmp_path, {names.EPOCH: epoch, names.TRAIN_LOSS: loss})
    assert [(row[names.EPOCH], row[names.TRAIN_LOSS]) for row in training_record.read_epochs(tmp_path)] == [
        (0, 9.0),
        (1, 6.0),
    ]


def test_a_folder_is_claimed_once_and_by_one_trial(tmp_path, trial, tiny_trial):
    folder.take_over(tmp_path, trial)
    before = (tmp_path / folder.TRIAL).stat().st_mtime_ns
    folder.take_over(tmp_path, trial)
    assert (tmp_path / folder.TRIAL).stat().st_mtime_ns == before
    other = folder.make_trial(tiny_trial(seed=1), "data")
    with pytest.raises(SettingError, match=f"that of trial {other.key}; it holds {trial.key}"):
        folder.take_over(tmp_path, other)
    assert folder.read_trial(tmp_path / folder.TRIAL) == trial


def test_a_trial_whose_settings_were_changed_by_hand_is_damaged(tmp_path, trial):
    content = folder.trial_json(trial)
    content["config"]["eps"] = "2/255"
    files.write_json(tmp_path / folder.TRIAL, content)
    with pytest.raises(DamagedFileError, match=r"trial\.json.*changed by hand"):
        folder.read_trial(tmp_path / folder.TRIAL)


def test_the_trials_of_a_sweep_are_the_folders_with_a_trial_json_by_name(tmp_path, trial):
    for key in ("b", "a"):
        folder.take_over(folder.trial_dir(tmp_path, key), trial)
    (tmp_path / "trials/notes").mkdir()
    assert [trial_dir.name for trial_dir in folder.trial_folders(tmp_path)] == ["a", "b"]


def test_half_a_row_of_a_killed_process_is_no_row_and_is_replaced(tmp_path):
    for epoch in (0, 1):
        training_record.write_epoch(tmp_path, {names.EPOCH: epoch})
    with open(tmp_path / folder.EPOCHS, "a") as file:
        file.write('{"epoch": 2, "tra')
    assert [row[names.EPOCH] for row in training_record.read_epochs(tmp_path)] == [0, 1]
    training_record.write_epoch(tmp_path, {names.EPOCH: 2})
    assert [row[names.EPOCH] for row in training_record.read_epochs(tmp_path, after=0)] == [1, 2]
