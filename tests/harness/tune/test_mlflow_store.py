"""What MLflow has of trials, in a real SQLite store: nothing missing and nothing doubled, whatever happened."""

import errno
import os
import shutil
import time
from collections import Counter
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import ViewType
from mlflow_folders import FINAL, FINGERPRINT, artifacts, assert_complete, finish, history, make_folder, only_run, train

from harness.config.trial import RECIPE_VERSION
from harness.storage import files, folder
from harness.tracking import TrackingError, view
from harness.tracking.upload import STATE, Tracker


class CountingClient:
    """A client that counts its calls and dies before call number `fatal`, as if the driver were killed."""

    def __init__(self, client, fatal=None):
        self.client, self.fatal, self.calls, self.batches = client, fatal, Counter(), []

    def __getattr__(self, name):
        def call(*args, **kwargs):
            self.calls[name] += 1
            if self.calls.total() == self.fatal:
                raise KeyboardInterrupt
            if name == "log_batch":
                self.batches.append(len(args[1]) if len(args) > 1 else 0)
            return getattr(self.client, name)(*args, **kwargs)

        return call


def counting(tracker, fatal=None):
    other = Tracker(tracker.uri, tracker.sweep, tracker.experiment_id, tracker.client)
    other.client = CountingClient(tracker.client, fatal)
    return other


def test_a_run_follows_its_trial_from_epoch_0_to_the_end(tracker, tmp_path):
    trial_dir = make_folder(tmp_path)
    tracker.sync(trial_dir)
    assert only_run(tracker).info.status == "RUNNING" and artifacts(tracker) == {folder.TRIAL}
    folder.write_epoch(trial_dir, {"epoch": 0, "train/eps": 0.0, "train/bound_width_relative": None})
    for first, last in ((1, 2), (3, 4)):
        for _ in range(2):
            tracker.sync(trial_dir)
        train(trial_dir, first, last)
    finish(trial_dir)
    for _ in range(2):
        tracker.sync(trial_dir)
    assert_complete(tracker, first=0)
    counted = counting(tracker)
    counted.sync(trial_dir)
    assert not counted.client.calls, "once it is complete"


def test_a_full_disk_of_the_trials_is_not_taken_for_a_store_that_cannot_be_used(tracker, tmp_path, monkeypatch):
    def full(path, content):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr("harness.tracking.upload.write_json", full)
    trial_dir = make_folder(tmp_path)
    with pytest.raises(TrackingError, match=r"mlflow\.json cannot be written: No space left on device") as error:
        tracker.sync(trial_dir)
    assert str(error.value).startswith(str(trial_dir / STATE))


@pytest.mark.parametrize("is_there", [True, False])
def test_a_later_command_goes_on_by_the_trial_s_file_and_without_it_by_the_run(tracker, tmp_path, is_there):
    trial_dir = make_folder(tmp_path)
    train(trial_dir, 1, 2)
    tracker.sync(trial_dir)
    if not is_there:
        (trial_dir / STATE).unlink()
    later = counting(Tracker.open(tracker.sweep, tracker.uri))
    for epoch in (3, 4):
        train(trial_dir, epoch, epoch)
        later.sync(trial_dir)
    assert later.client.calls["get_metric_history"] == (0 if is_there else 1)
    finish(trial_dir)
    later.sync(trial_dir)
    assert_complete(tracker)


def test_a_run_begins_with_its_trial_and_lasts_as_long_as_it_has_worked(tracker, tmp_path):
    """Not as long as the sweep has waited, or been interrupted."""
    trial_dir = make_folder(tmp_path)
    folder.write_epoch(trial_dir, {"epoch": 1, "train/eps": 0.1, "train/seconds": 100.0})
    os.utime(trial_dir / folder.EPOCHS, (1_600_000_100, 1_600_000_100))
    tracker.sync(trial_dir)
    folder.write_epoch(trial_dir, {"epoch": 2, "train/eps": 0.2, "train/seconds": 50.0})
    finish(trial_dir, {**FINAL, "evaluation_seconds": 4.0})
    tracker.sync(trial_dir)
    run = only_run(tracker)
    assert run.info.start_time == 1_600_000_000_000 and run.info.end_time == run.info.start_time + 154_000
    points = tracker.client.get_metric_history(run.info.run_id, "train/eps")
    assert [point.timestamp - run.info.start_time for point in points] == [100_000, 150_000]


def test_points_that_are_sent_again_are_the_same_points(tracker, tmp_path, monkeypatch):
    """The driver is killed after MLflow has them, before the trial's file says so."""
    monkeypatch.setattr("harness.tracking.upload.LARGEST_BATCH", 4)
    trial_dir, writes = make_folder(tmp_path), []
    train(trial_dir, 1, 4)
    finish(trial_dir)

    def write(path, content):
        writes.append(path)
        if len(writes) % 2:
            raise KeyboardInterrupt
        files.write_json(path, content)

    monkeypatch.setattr("harness.tracking.upload.write_json", write)
    for _ in range(4):
        with pytest.raises(KeyboardInterrupt):
            tracker.sync(trial_dir)
    tracker.sync(trial_dir)
    assert_complete(tracker)


def test_a_store_that_was_moved_with_its_files_gets_all_again_where_they_are(opened_store, tmp_path, request):
    """MLflow keeps absolute paths of files."""
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    shutil.copy(opened_store.removeprefix("sqlite:///"), old / "mlflow.db")
    trial_dir = make_folder(old)
    train(trial_dir, 1, 4)
    finish(trial_dir)
    tracker = Tracker.open("moved", f"sqlite:///{old}/mlflow.db")
    tracker.sync(trial_dir)
    tracker.register([trial_dir.name])
    old.rename(new)
    moved = Tracker.open("moved", f"sqlite:///{new}/mlflow.db")
    moved.sync(new / "trials" / trial_dir.name)
    moved.register([trial_dir.name])
    assert_complete(moved)
    version = moved.client.get_model_version_by_alias("moved", "best")
    assert Path(version.source).is_relative_to(new) and (Path(version.source) / "MLmodel").exists()
    names = {experiment.name for experiment in moved.client.search_experiments()}
    assert {"moved", f"moved, experiment {tracker.experiment_id}, files in {old}/mlruns/moved"} <= names
    assert Tracker.open("moved", f"sqlite:///{new}/mlflow.db").experiment_id == moved.experiment_id


def test_a_run_has_the_trial_s_tags_parameters_and_note(tracker, tmp_path):
    trial_dir = make_folder(tmp_path)
    finish(trial_dir, {**FINAL, "bound_width": None})
    tracker.sync(trial_dir)
    run = only_run(tracker)
    identity = {"sweep": "study", "model": "deqlate", "method": "ibp", "seed": "0", "profile": "cpu"}
    tags = {"trial": trial_dir.name, "environment.device": "cpu"}
    assert (identity | tags).items() <= run.data.tags.items()
    assert run.data.tags["warnings"] == "W is at its bound\nfewer images than published"
    assert run.data.params.items() >= {
        "recipe_version": str(RECIPE_VERSION),
        "fingerprint": FINGERPRINT,
        "eps": "8/255",
        "options.margin": "0.1",
        "train.decay_epochs": "[2]",
        "train_images": "null",
    }.items()  # fmt: skip
    assert run.data.metrics == FINAL
    for part in (
        "**deqlate ibp margin=0.1 parametrisation=perron**, seed 0: digits, l-inf eps 8/255",
        f"MLFLOW_TRACKING_URI={tracker.uri} uv run mlflow artifacts download -r {run.info.run_id} -a trial.json -d .",
        "uv run python -m harness.run --here trial.json --results-dir again",
    ):
        assert part in run.data.tags["mlflow.note.content"]


def test_a_run_moves_to_another_row_and_a_new_result_replaces_the_old_one(tracker, tmp_path):
    """Rows differ in more settings once the sweep has more of them."""
    trial_dir = make_folder(tmp_path)
    train(trial_dir, 1, 4)
    finish(trial_dir, {**FINAL, "certified_error": 40.0})
    tracker.sync(trial_dir, "deqlate ibp margin=0.1 parametrisation=perron")
    assert only_run(tracker).data.metrics["certified_error"] == 40.0
    finish(trial_dir)
    tracker.sync(trial_dir, "deqlate ibp width=0.5")
    assert only_run(tracker).data.tags["row"] == "deqlate ibp width=0.5"
    assert only_run(tracker).data.metrics["certified_error"] == FINAL["certified_error"]
    assert history(tracker, "standard_error") == [(0, 25.0)]
    models = tracker.client.search_logged_models([tracker.experiment_id])
    assert [model.status for model in models] == ["READY"]


def test_a_failed_trial_is_tried_again_and_a_repeated_epoch_keeps_its_first_point(tracker, tmp_path):
    trial_dir = make_folder(tmp_path)
    train(trial_dir, 1, 2)
    files.write_json(trial_dir / folder.FAILURE, {"error": "loss is not finite " * 1000, "epoch": 3})
    for _ in range(2):
        tracker.sync(trial_dir)
    run = only_run(tracker)
    assert run.info.status == "FAILED" and run.data.tags["error"].startswith("loss is not finite")
    (trial_dir / folder.FAILURE).unlink()
    train(trial_dir, 2, 2, loss=7.0)
    tracker.sync(trial_dir)
    run = only_run(tracker)
    assert run.info.status == "RUNNING" and "error" not in run.data.tags
    train(trial_dir, 3, 4)
    finish(trial_dir)
    tracker.sync(trial_dir)
    assert_complete(tracker)


KILLED_BEFORE = [1, 2, 4, 7, 10, 13, 16, 19, 22]  # the calls of one sync; all of them in the slow test


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_driver_killed_before_any_call_leaves_nothing_missing_or_doubled(opened_store, tmp_path, monkeypatch, every):
    monkeypatch.setattr("harness.tracking.upload.LARGEST_BATCH", 4)  # two epochs a batch
    trial_dir = make_folder(tmp_path)
    train(trial_dir, 1, 4)
    finish(trial_dir)
    complete = counting(Tracker.open(f"not killed {every}", opened_store))
    complete.sync(trial_dir)
    assert complete.client.batches == [0, 4, 4, 0, len(FINAL)]
    calls = complete.client.calls.total()
    assert 10 < calls < max(KILLED_BEFORE) + 3
    for fatal in range(1, calls + 1) if every else [call for call in KILLED_BEFORE if call <= calls]:
        tracker = Tracker.open(f"killed before call {fatal} {every}", opened_store)
        with pytest.raises(KeyboardInterrupt):
            counting(tracker, fatal).sync(trial_dir)
        Tracker.open(tracker.sweep, tracker.uri).sync(trial_dir)
        assert_complete(tracker)


def test_a_deleted_run_is_made_again_and_a_deleted_experiment_restored(tracker, tmp_path, request):
    trial_dir = make_folder(tmp_path)
    train(trial_dir, 1, 4)
    finish(trial_dir)
    tracker.sync(trial_dir)
    tracker.client.delete_experiment(tracker.experiment_id)
    again = Tracker.open(request.node.name, tracker.uri)
    assert again.experiment_id == tracker.experiment_id
    tracker.client.delete_run(only_run(tracker).info.run_id)
    again = Tracker.open(request.node.name, tracker.uri)
    again.sync(trial_dir)
    assert_complete(again)
    assert len(tracker.client.search_runs([tracker.experiment_id], run_view_type=ViewType.ALL)) == 2


def test_tables_go_to_every_run_and_replace_older_ones(tracker, tmp_path):
    trial_dirs = [make_folder(tmp_path, seed) for seed in range(2)]
    for trial_dir in trial_dirs:
        tracker.sync(trial_dir)
    for text in ("old", "new"):
        (tmp_path / "leaderboard.md").write_text(text)
        tracker.log_tables(tmp_path, "a note")
    counted = counting(tracker)
    counted.log_tables(tmp_path, "a note")
    assert counted.client.calls == {"set_experiment_tag": 1}
    assert tracker.client.get_experiment(tracker.experiment_id).tags["mlflow.note.content"] == "a note"
    runs = tracker.client.search_runs([tracker.experiment_id])
    assert {run.data.tags["trial"] for run in runs} == {trial_dir.name for trial_dir in trial_dirs}
    for run in runs:
        table = tracker.client.download_artifacts(run.info.run_id, "tables/leaderboard.md", str(tmp_path))
        assert Path(table).read_text() == "new"


def test_how_to_open_is_a_command_and_a_short_link(tracker):
    link = f"/#/experiments/{tracker.experiment_id}/runs?viewStateShareKey=comparison&compareRunsMode=CHART"
    command = f"uv run mlflow ui --backend-store-uri {tracker.uri}"
    assert tracker.how_to_open() == f"{command}\nhttp://127.0.0.1:5000{link}"
    server = Tracker("http://user:secret@server:8080/", tracker.sweep, tracker.experiment_id, tracker.client)
    assert server.how_to_open() == f"http://user:***@server:8080{link}"


def test_the_view_is_written_when_the_store_is_opened(tracker, request):
    tracker.client.set_experiment_tag(tracker.experiment_id, view.TAG, "of an older version")
    Tracker.open(request.node.name, tracker.uri)
    assert tracker.client.get_experiment(tracker.experiment_id).tags[view.TAG] == view.view()
    assert len(view.view()) < 5000, "what every store takes"


def test_the_environment_names_the_store_and_the_option_wins(opened_store, tmp_path, monkeypatch):
    stores = {name: tmp_path / f"{name}.db" for name in ("environment", "option")}
    for path in stores.values():
        shutil.copy(opened_store.removeprefix("sqlite:///"), path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{stores['environment']}")
    monkeypatch.chdir(tmp_path)
    assert Tracker.open("from the environment").uri == f"sqlite:///{stores['environment']}"
    assert Tracker.open("from the option", "sqlite:///option.db").uri == f"sqlite:///{stores['option']}"
    experiment = MlflowClient(f"sqlite:///{stores['option']}").get_experiment_by_name("from the option")
    assert experiment.artifact_location.startswith(f"{tmp_path}/mlruns/")


def test_without_a_uri_the_store_is_in_the_working_directory_and_nothing_is_printed(made_by_default):
    done, directory = made_by_default
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert {path.name for path in directory.iterdir()} == {"mlflow.db", ".mlflow.db.lock", "mlruns"}
    tracker = Tracker.open("study", f"sqlite:///{directory}/mlflow.db")
    assert only_run(tracker).info.artifact_uri.startswith(f"{directory}/mlruns/study/")
    assert f"--backend-store-uri 'sqlite:///{directory}/mlflow.db'" in tracker.how_to_open()


def test_a_new_store_is_opened_by_several_processes_at_once(made_by_default):
    done, directory = made_by_default
    assert done.returncode == 0, done.stdout + done.stderr
    uri = f"sqlite:///{directory.parent}/new/mlflow.db"
    experiments = {experiment.name for experiment in MlflowClient(uri).search_experiments()}
    assert experiments == {"Default", "study 0", "study 1"}


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("sqlite:///{directory}/text.db", "file is not a database"),
        ("mlruns", "filesystem tracking backend"),
        ("http://user:secret@127.0.0.1:9", "Connection refused"),
    ],
)
def test_a_store_that_cannot_be_used_is_reported_soon_and_in_one_line(uri, reason, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    (tmp_path / "text.db").write_text("not a database, but long enough to have the header of one " * 10)
    start = time.perf_counter()
    with pytest.raises(TrackingError, match=reason) as caught:
        Tracker.open("study", uri.format(directory=tmp_path))
    assert time.perf_counter() - start < 5
    assert "\n" not in str(caught.value) and "secret" not in str(caught.value)


def test_a_full_disk_while_logging_is_a_tracking_error(tracker, tmp_path, monkeypatch):
    def fail(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tracker.client, "log_artifact", fail)
    with pytest.raises(TrackingError, match="No space left"):
        tracker.sync(make_folder(tmp_path))
