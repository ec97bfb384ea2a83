"""A trial's folder: no file is ever half there, and whatever is damaged or another's is named."""

import dataclasses
import os

import pytest

from harness.config.trial import RECIPE_VERSION
from harness.errors import SettingError
from harness.storage import files, folder, names
from harness.storage.folder import DamagedFileError, TrialResult


@pytest.fixture
def trial(tiny_trial):
    return folder.make_trial(tiny_trial(), "data")


def test_a_file_whose_writing_breaks_off_is_as_it_was(tmp_path):
    path = tmp_path / "below/file"
    files.write_atomically(path, lambda temporary: temporary.write_text("old"))

    def break_off(temporary):
        temporary.write_text("ne")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        files.write_atomically(path, break_off)
    assert path.read_text() == "old"
    assert [each.name for each in path.parent.iterdir()] == ["file"]


def test_what_a_killed_writer_left_goes_and_nothing_else(tmp_path):
    for name in (".result.json.123.tmp", "result.json", ".lock", "notes.tmp"):
        (tmp_path / name).touch()
    files.remove_unfinished(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"result.json", ".lock", "notes.tmp"}


def test_a_file_takes_its_name_only_when_it_is_whole_and_on_disk(tmp_path, monkeypatch):
    path, synced = tmp_path / "file", []
    fsync = os.fsync

    def watched(descriptor):
        synced.append((os.pread(descriptor, 99, 0), path.exists()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    files.write_atomically(path, lambda temporary: temporary.write_text("whole"))
    assert synced == [(b"whole", False)]
    assert path.read_text() == "whole"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_json_does_not_have_is_not_written(tmp_path, value):
    with pytest.raises(ValueError, match="JSON compliant"):
        files.write_json(tmp_path / "file", {"loss": value})
    assert list(tmp_path.iterdir()) == []


def test_a_trial_and_its_result_are_read_as_they_were_written(tmp_path, trial):
    assert folder.read_result(tmp_path) is None
    folder.claim(tmp_path, trial)
    result = TrialResult(trial.key, {names.CERTIFIED_ERROR: 100 / 3, names.GAIN: None}, {"torch": "2"}, {}, ["odd"])
    folder.write_result(tmp_path, result)
    assert folder.read_trial(tmp_path / folder.TRIAL) == trial
    assert folder.read_result(tmp_path) == result


def test_a_failure_keeps_its_error_and_last_finite_values(tmp_path):
    assert folder.read_failure(tmp_path) is None
    written = folder.write_failure(tmp_path, "RuntimeError: diverged")
    assert folder.read_failure(tmp_path) == written
    assert written == {"error": "RuntimeError: diverged", "last_finite": {}, "repeats": False}
    folder.write_failure(tmp_path, "RuntimeError: diverged", {names.TRAIN_LOSS: 2.5})
    assert folder.read_failure(tmp_path)["last_finite"] == {names.TRAIN_LOSS: 2.5}


def test_an_epoch_written_again_drops_the_rows_from_it_on(tmp_path):
    assert folder.read_epochs(tmp_path) == []
    for epoch, loss in ((0, 9.0), (1, 8.0), (2, 7.0), (1, 6.0)):
        folder.write_epoch(tmp_path, {names.EPOCH: epoch, names.TRAIN_LOSS: loss})
    assert [(row[names.EPOCH], row[names.TRAIN_LOSS]) for row in folder.read_epochs(tmp_path)] == [(0, 9.0), (1, 6.0)]


def test_a_folder_is_claimed_once_and_by_one_trial(tmp_path, trial, tiny_trial):
    folder.claim(tmp_path, trial)
    before = (tmp_path / folder.TRIAL).stat().st_mtime_ns
    folder.claim(tmp_path, trial)
    assert (tmp_path / folder.TRIAL).stat().st_mtime_ns == before
    other = folder.make_trial(tiny_trial(seed=1), "data")
    with pytest.raises(SettingError, match=f"that of trial {other.key}; it holds {trial.key}"):
        folder.claim(tmp_path, other)
    assert folder.read_trial(tmp_path / folder.TRIAL) == trial


@pytest.mark.parametrize("content", ["{", "[]", '{"key": "a"}'])
@pytest.mark.parametrize(
    ("read", "name"), [(lambda place: folder.read_trial(place / folder.TRIAL), folder.TRIAL),
                       (folder.read_result, folder.RESULT)], ids=["trial", "result"],
)  # fmt: skip
def test_a_damaged_file_is_named(tmp_path, read, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(DamagedFileError, match=name):
        read(tmp_path)


@pytest.mark.parametrize(("key", "value"), [("seed", 7), ("eps", "2/255")])
def test_a_trial_whose_settings_were_changed_by_hand_is_damaged(tmp_path, trial, key, value):
    folder.claim(tmp_path, trial)
    content = folder.trial_json(trial)
    content["config"][key] = value
    files.write_json(tmp_path / folder.TRIAL, content)
    with pytest.raises(DamagedFileError, match=r"trial\.json.*changed by hand"):
        folder.read_trial(tmp_path / folder.TRIAL)


def test_a_row_cut_off_is_named(tmp_path):
    folder.write_epoch(tmp_path, {names.EPOCH: 0})
    with open(tmp_path / folder.EPOCHS, "a") as file:
        file.write('{"epoch": 1, "train/')
    with pytest.raises(DamagedFileError, match=folder.EPOCHS):
        folder.read_epochs(tmp_path)


def test_a_trial_of_another_recipe_is_stale_readable_or_not(tmp_path, trial):
    folder.claim(tmp_path, trial)
    assert not folder.is_stale(tmp_path)
    older = folder.trial_json(dataclasses.replace(trial, recipe_version=RECIPE_VERSION - 1))
    older["config"]["train"]["momentum"] = 0.9
    files.write_json(tmp_path / folder.TRIAL, older)
    assert folder.is_stale(tmp_path)


def test_the_trials_of_a_sweep_are_the_folders_with_a_trial_json_by_name(tmp_path, trial):
    for key in ("b", "a"):
        folder.claim(folder.trial_dir(tmp_path, key), trial)
    (tmp_path / "trials/notes").mkdir()
    assert [place.name for place in folder.trial_folders(tmp_path)] == ["a", "b"]
