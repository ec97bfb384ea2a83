"""Folders of networks and evaluations: no file is ever cut off, and those that are damaged or another's are named."""

import os
from pathlib import Path

import pytest

from harness.command_line import main
from harness.common import names
from harness.common.errors import InputError, SettingError
from harness.storage import files, folder, training_progress
from harness.storage.files import DamagedFileError
from harness.storage.records import Failure, Result, make_record

SWEEPS = Path(__file__).parents[3] / "sweeps"


@pytest.fixture
def record(tiny_training):
    return make_record(tiny_training(), "data")


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


@pytest.mark.parametrize("content", [b'{"a": NaN}', b'{"a": 1e999}', '{"a": 1}'.encode("utf-16"), b"[" * 10**5, b""])
def test_what_is_no_json_is_damaged(tmp_path, content):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(DamagedFileError, match=r"x\.json cannot be read"):
        files.parse_json(tmp_path / "x.json", lambda content: content)


def test_huge_files_are_refused_before_they_are_read(tmp_path):
    (tmp_path / "x.json").touch()
    os.truncate(tmp_path / "x.json", 8 * 2**40)
    with pytest.raises(DamagedFileError, match=r"x\.json cannot be read: .*allowed: at most "):
        files.read_bytes(tmp_path / "x.json")


def test_records_results_and_failures_are_read_as_they_were_written(tmp_path, record, tiny_evaluation):
    assert folder.read_trained(tmp_path) is None and folder.read_failure(tmp_path) is None
    folder.begin_network(tmp_path, record)
    directory = folder.begin_evaluation(tmp_path, tiny_evaluation(), "weights")
    assert directory == folder.evaluation_dir(tmp_path, tiny_evaluation()) and folder.network_of(directory) == tmp_path
    trained = Result(record.key, {names.GAIN: None}, {"torch": "2"}, {}, ["odd"])
    result = Result("a/b", {names.CERTIFIED_ERROR: 100 / 3}, {}, {}, [], {"other": 3})
    folder.write_trained(tmp_path, trained)
    folder.write_result(directory, result)
    folder.write_failure(tmp_path, "RuntimeError: diverged", {names.TRAIN_LOSS: 2.5}, repeats=True)
    assert folder.read_training(tmp_path / folder.TRAINING) == record
    assert folder.read_evaluation(directory).config == tiny_evaluation()
    assert (folder.read_trained(tmp_path), folder.read_result(directory)) == (trained, result)
    failure = {"error": "RuntimeError: diverged", "last_finite": {names.TRAIN_LOSS: 2.5}, "repeats": True}
    assert folder.read_failure(tmp_path) == Failure(**failure)


def test_an_epoch_written_again_drops_the_rows_from_it_on(tmp_path):
    assert training_progress.read_epochs(tmp_path) == []
    for epoch, loss in ((0, 9.0), (1, 8.0), (2, 7.0), (1, 6.0)):
        training_progress.write_epoch(tmp_path, {names.EPOCH: epoch, names.TRAIN_LOSS: loss})
    assert [(row[names.EPOCH], row[names.TRAIN_LOSS]) for row in training_progress.read_epochs(tmp_path)] == [
        (0, 9.0),
        (1, 6.0),
    ]


def test_a_folder_is_claimed_once_and_by_one_network(tmp_path, record, tiny_training):
    folder.begin_network(tmp_path, record)
    before = (tmp_path / folder.TRAINING).stat().st_mtime_ns
    folder.begin_network(tmp_path, record)
    assert (tmp_path / folder.TRAINING).stat().st_mtime_ns == before
    other = make_record(tiny_training(seed=1), "data")
    with pytest.raises(SettingError, match=f"that of network {other.key}; it holds {record.key}"):
        folder.begin_network(tmp_path, other)
    with pytest.raises(SettingError, match="data: found 'other', allowed: the data this network was made for, data"):
        folder.begin_network(tmp_path, make_record(record.config, "other"))
    assert folder.read_training(tmp_path / folder.TRAINING) == record


@pytest.mark.parametrize("weights", ["", "weights", "others"])
def test_a_result_goes_with_the_weights_that_it_is_of(tmp_path, tiny_evaluation, weights):
    directory = folder.begin_evaluation(tmp_path, tiny_evaluation(), "weights")
    folder.write_result(directory, Result("a/b", {}, {}, {}, [], weights="weights"))
    assert folder.begin_evaluation(tmp_path, tiny_evaluation(), weights) == directory
    assert (folder.read_result(directory) is None) == (weights == "others")


@pytest.mark.parametrize("name", [folder.TRAINING, folder.EVALUATION])
def test_a_record_whose_settings_were_changed_by_hand_is_damaged(tmp_path, record, tiny_evaluation, name):
    folder.begin_network(tmp_path, record)
    directory = folder.begin_evaluation(tmp_path, tiny_evaluation())
    path = {folder.TRAINING: tmp_path, folder.EVALUATION: directory}[name] / name
    path.write_text(path.read_text().replace("1/32", "2/255"))
    with pytest.raises(DamagedFileError, match=rf"{name}.*changed by hand"):
        folder.read_training(path) if name == folder.TRAINING else folder.read_evaluation(directory)


def test_the_networks_of_a_sweep_are_the_folders_with_a_training_json_by_name(tmp_path, record, tiny_evaluation):
    for key in ("b", "a"):
        folder.begin_network(folder.network_dir(tmp_path, key), record)
    (tmp_path / "networks/notes").mkdir()
    assert [path.name for path in folder.network_folders(tmp_path)] == ["a", "b"]
    made = [folder.begin_evaluation(tmp_path / "networks/a", tiny_evaluation(eps=eps)) for eps in ("1/8", "1/9")]
    (tmp_path / "networks/a/evaluations/notes").mkdir()
    assert folder.evaluation_folders(tmp_path / "networks/a") == sorted(made)


def test_a_network_knows_its_main_evaluation_in_each_profile(tmp_path, tiny_evaluation):
    with pytest.raises(InputError, match="says how it is evaluated"):
        folder.main_evaluation(tmp_path)
    main, other = (tiny_evaluation(eps=eps) for eps in ("1/8", "1/9"))
    for evaluation in (main, other):
        folder.begin_evaluation(tmp_path, evaluation)
    for evaluation in (other, main):
        folder.add_to_study(tmp_path, "full", evaluation)
        assert folder.main_evaluation(tmp_path) == evaluation
    folder.add_to_study(tmp_path, "cpu", other)
    assert folder.read_study(tmp_path) == {"full": main.key, "cpu": other.key}
    assert folder.main_evaluation(tmp_path) == other, "of the last command"
    folder.add_to_study(tmp_path, "full", main)
    assert folder.main_evaluation(tmp_path) == main


def test_half_a_row_of_a_killed_process_is_no_row_and_is_replaced(tmp_path):
    for epoch in (0, 1):
        training_progress.write_epoch(tmp_path, {names.EPOCH: epoch})
    with open(tmp_path / folder.EPOCHS, "a") as file:
        file.write('{"epoch": 2, "tra')
    assert [row[names.EPOCH] for row in training_progress.read_epochs(tmp_path)] == [0, 1]
    training_progress.write_epoch(tmp_path, {names.EPOCH: 2})
    assert [row[names.EPOCH] for row in training_progress.read_epochs(tmp_path, after=0)] == [1, 2]


def make_older(sweep_dir):
    (trial_dir := sweep_dir / "trials/0123456789abcdef").mkdir(parents=True)
    (trial_dir / "trial.json").write_text("{}")


@pytest.mark.parametrize("command", ["tables", "recheck", "publish"])
def test_a_directory_of_an_older_version_is_refused(command, tmp_path, capsys):
    make_older(tmp_path)
    assert main(command, [str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert f"{tmp_path / 'trials'} is of an older version: run the sweep again, or " in error and error.count("\n") == 1


def test_a_run_in_a_directory_of_an_older_version_is_refused(refused, tmp_path):
    make_older(tmp_path / "results/quickstart")
    assert "trials is of an older version: run the sweep again" in refused(SWEEPS / "quickstart.yaml", "--here")
