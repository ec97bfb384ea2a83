"""What MLflow has of a finished sweep beside its runs: a view of it, networks that predict, tables from it alone."""

import base64
import json
import shutil
import zlib

import mlflow
import numpy
import pytest
from mlflow import MlflowClient
from study import snapshot

from harness.command_line import main
from harness.common import names
from harness.data import load
from harness.storage import folder
from harness.tracking.store import Tracker

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # MLflow's, of SQLAlchemy


@pytest.fixture
def experiment(finished):
    return MlflowClient(finished.store).get_experiment_by_name("tiny")


def test_the_view_opens_sections_of_errors_and_closes_all_others(finished, experiment):
    text = experiment.tags["mlflow.sharedViewState.comparison"]
    state = json.loads(zlib.decompress(base64.b64decode(text.removeprefix("deflate;"))))
    opened = {section["name"]: section["display"] for section in state["compareRunSections"]}
    drawn = [chart.get("metricKey") or chart["yaxis"]["key"] for chart in state["compareRunCharts"]]
    logged = set().union(*(run.data.metrics for run in finished.runs.values()))
    assert set(drawn) <= logged, "no empty chart"
    assert {"BAR", "SCATTER", "LINE"} == {chart["type"] for chart in state["compareRunCharts"]}
    for name in logged - set(drawn):  # MLflow adds charts of these by what stands before their last slash
        assert opened[name.rpartition("/")[0] or "Model metrics"] is False, name
    assert all(opened[chart["metricSectionId"]] for chart in state["compareRunCharts"])
    (group,) = state["groupBy"]["groupByKeys"]
    rows = {run.data.tags[group["groupByData"]] for run in finished.runs.values()}
    assert rows == {"cnn5 ibp", "cerdeq ibp"}


def test_the_experiment_s_note_has_the_leaderboard(experiment):
    note = experiment.tags["mlflow.note.content"]
    assert "| cnn5 ibp " in note
    assert "first 50 test images" in note
    assert len(note) <= 5000


@pytest.mark.filterwarnings("ignore::UserWarning")  # of MLflow's, when it is imported
def test_the_network_of_each_run_predicts_as_it_was_evaluated(finished):
    client = MlflowClient(finished.store)
    images = load("digits").test.images[:50].numpy() / 255
    for key, run in finished.runs.items():
        (output,) = run.outputs.model_outputs
        network = mlflow.pyfunc.load_model(client.get_logged_model(output.model_id).artifact_location)
        assert network.predict(images.astype(numpy.float32)).shape == (50, 10)
        verdicts = folder.read_verdicts(folder.trial_dir(finished.directory, key), [names.PREDICTION])[names.PREDICTION]
        assert numpy.array_equal(network.predict(images).argmax(1), verdicts)
    with pytest.raises(ValueError, match=r"pixels in \[0, 1\]"):
        network.predict(255 * images)


def test_the_best_network_is_registered_once_and_another_once_it_is_better(copied):
    def errors(run):
        return [run.data.metrics[name] for name in (names.CERTIFIED_ERROR, names.STANDARD_ERROR)]

    best, worse = sorted(copied.runs.values(), key=errors)
    client, tracker = MlflowClient(copied.store), Tracker.open("tiny", copied.store)
    assert tracker.register(copied.runs.keys()) == "models:/tiny@best"
    version = client.get_model_version_by_alias("tiny", "best")
    assert version.run_id == best.info.run_id
    client.log_metric(worse.info.run_id, names.CERTIFIED_ERROR, 1.0, step=1)
    for _ in range(2):
        tracker.register(copied.runs.keys())
    assert len(client.search_model_versions("name = 'tiny'")) == 2
    assert client.get_model_version_by_alias("tiny", "best").run_id == worse.info.run_id
    assert tracker.register([]) is None


def test_tables_from_mlflow_alone_are_the_same_bytes_also_the_second_time(finished, tmp_path):
    directory = tmp_path / "restored" / "tiny"
    for _ in range(2):
        assert main("tables", [str(directory), "--from-mlflow", finished.store]) == 0
        assert_same_tables(directory, finished.directory)
    for trial_dir in finished.trial_dirs.values():
        restored = folder.trial_dir(directory, trial_dir.name)
        assert folder.read_epochs(restored) == folder.read_epochs(trial_dir)
        assert (restored / folder.VERDICTS).read_bytes() == (trial_dir / folder.VERDICTS).read_bytes()


def assert_same_tables(one, other):
    for kind in ("json", "csv", "md", "tex"):
        assert (one / f"leaderboard.{kind}").read_bytes() == (other / f"leaderboard.{kind}").read_bytes(), kind


def test_failed_and_unfinished_trials_come_back_as_they_were(copied, tmp_path):
    for trial_dir, name in zip(copied.trial_dirs.values(), ("failed", "unfinished"), strict=True):
        (trial_dir / folder.RESULT).unlink()
        if name == "failed":
            folder.write_failure(trial_dir, "loss is not finite")
    directory, tracker = copied.directory.with_name("anew"), Tracker.open("anew", copied.store)
    shutil.move(copied.directory, directory)
    for trial_dir in folder.trial_folders(directory):
        tracker.sync(trial_dir)
    assert main("tables", [str(directory)]) == 0
    assert main("tables", [str(tmp_path / "restored" / "anew"), "--from-mlflow", copied.store]) == 0
    assert_same_tables(tmp_path / "restored" / "anew", directory)
    assert "failed: loss is not finite" in (directory / "leaderboard.md").read_text()


@pytest.mark.parametrize("content", ["other files", "another trial", "another result"])
def test_a_directory_of_anything_else_is_left_as_it_is(finished, tmp_path, capsys, content):
    directory = tmp_path / "tiny"
    shutil.copytree(finished.directory, directory)
    trial_dir = folder.trial_folders(directory)[0]
    if content == "other files":
        shutil.rmtree(directory / "trials")
        reason = "contains other files"
    elif content == "another trial":
        trial_dir.rename(trial_dir.with_name("another"))
        reason = "trials that MLflow does not have"
    else:
        (trial_dir / folder.RESULT).write_text("{}")
        reason = "is not what MLflow has"
    (directory / ".lock").unlink(missing_ok=True)
    before = snapshot(directory)
    assert main("tables", [str(directory), "--from-mlflow", finished.store]) == 2
    assert reason in capsys.readouterr().err
    (directory / ".lock").unlink(missing_ok=True)
    assert snapshot(directory) == before


@pytest.mark.parametrize(
    ("name", "uri", "reason"),
    [
        ("nobody", None, "there is no experiment 'nobody'"),
        ("tiny", "sqlite:////nowhere/mlflow.db", "there is no MLflow store /nowhere/mlflow.db"),
        ("tiny", "http://127.0.0.1:9", "cannot be used"),
    ],
)
def test_a_store_or_sweep_that_does_not_exist_is_refused(finished, tmp_path, monkeypatch, capsys, name, uri, reason):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    for command, option in (("tables", "--from-mlflow"), ("ui", "--tracking-uri")):
        assert main(command, [str(tmp_path / name), option, uri or finished.store]) == 2
        error = capsys.readouterr().err
        assert reason in error and len(error.splitlines()) == 1
