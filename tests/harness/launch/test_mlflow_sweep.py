"""What MLflow has of a finished sweep beside its runs: a view of it, networks that predict, tables from it alone."""

import base64
import json
import shutil
import zlib

import mlflow
import numpy
import pytest
from mlflow import MlflowClient
from study import TINY

from harness.command_line import main
from harness.data import load
from harness.storage import folder, names
from harness.tracking.store import Tracker

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # MLflow's, of SQLAlchemy


@pytest.fixture
def experiment(finished):
    return MlflowClient(finished.store).get_experiment_by_name("tiny")


def test_the_view_shows_what_matters_and_closes_what_else_there_is(finished, experiment):
    text = experiment.tags["mlflow.sharedViewState.comparison"]
    state = json.loads(zlib.decompress(base64.b64decode(text.removeprefix("deflate;"))))
    opened = {section["name"]: section["display"] for section in state["compareRunSections"]}
    drawn = [chart.get("metricKey") or chart["yaxis"]["key"] for chart in state["compareRunCharts"]]
    logged = set().union(*(run.data.metrics for run in finished.runs.values()))
    assert set(drawn) <= logged, "no chart of what nobody has"
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
def test_the_network_of_each_run_predicts_as_it_was_judged(finished):
    client = MlflowClient(finished.store)
    images = load("digits").test.images[:50].numpy() / 255
    for key, run in finished.runs.items():
        (output,) = run.outputs.model_outputs
        location = client.get_logged_model(output.model_id).artifact_location
        network = mlflow.pyfunc.load_model(location)
        logits = network.predict(images.astype(numpy.float32))
        assert logits.shape == (50, 10)
        judged = folder.read_verdicts(folder.place(finished.directory, key), [names.PREDICTION])[names.PREDICTION]
        assert numpy.array_equal(network.predict(images).argmax(1), judged)
        with pytest.raises(ValueError, match=r"pixels in \[0, 1\]"):
            network.predict(255 * images)


def errors(run):
    """What the best one has least of."""
    return [run.data.metrics[name] for name in (names.CERTIFIED_ERROR, names.STANDARD_ERROR)]


def test_the_best_network_is_registered_once(copied):
    best = min(copied.runs.values(), key=errors)
    client = MlflowClient(copied.store)
    assert Tracker.open("tiny", copied.store).register(copied.runs.keys()) == "models:/tiny@best"
    (version,) = [v for v in client.search_model_versions("name = 'tiny'") if v.run_id == best.info.run_id]
    assert client.get_model_version_by_alias("tiny", "best").version == version.version
    assert version.tags == {
        "certified_error": f"{best.data.metrics[names.CERTIFIED_ERROR]:g}",
        "eps": "1/16",
        "stages": ",".join(TINY["evaluation"]["stages"]),
        "trial": best.data.tags["trial"],
    }


def test_another_network_that_is_better_is_the_best_from_then_on(copied):
    client, tracker = MlflowClient(copied.store), Tracker.open("tiny", copied.store)
    worse = max(copied.runs.values(), key=errors)
    client.log_metric(worse.info.run_id, names.CERTIFIED_ERROR, 1.0, step=1)
    before = len(client.search_model_versions("name = 'tiny'"))
    tracker.register(copied.runs.keys())
    tracker.register(copied.runs.keys())
    assert len(client.search_model_versions("name = 'tiny'")) == before + 1
    assert client.get_model_version_by_alias("tiny", "best").run_id == worse.info.run_id
    assert tracker.register([]) is None


def test_a_store_without_a_registry_is_said_and_is_no_failure(copied, no_ray, monkeypatch, capsys):
    def refuse(*_args):
        raise OSError("there is no registry")

    monkeypatch.setattr("harness.tracking.store.register_best", refuse)
    assert copied.main() == 0
    assert "no network is registered as a model: MLflow store" in capsys.readouterr().out


def test_tables_from_mlflow_alone_are_the_same_bytes(finished, tmp_path, capsys):
    """And again, over what was restored."""
    directory = tmp_path / "there" / "tiny"
    for _ in range(2):
        assert main("tables", [str(directory), "--from-mlflow", finished.store]) == 0
        for kind in ("json", "csv", "md", "tex"):
            expected = (finished.directory / f"leaderboard.{kind}").read_bytes()
            assert (directory / f"leaderboard.{kind}").read_bytes() == expected, kind
    for place in finished.places.values():
        restored = folder.place(directory, place.name)
        assert folder.read_epochs(restored) == folder.read_epochs(place)
        assert (restored / folder.VERDICTS).read_bytes() == (place / folder.VERDICTS).read_bytes()


def test_failed_and_unfinished_trials_come_back_as_they_were(copied, tmp_path, capsys):
    for place, name in zip(copied.places.values(), ("failed", "unfinished"), strict=True):
        (place / folder.RESULT).unlink()
        if name == "failed":
            folder.write_failure(place, "loss is not finite")
    tracker = Tracker.open("anew", copied.store)
    shutil.move(copied.directory, copied.directory.with_name("anew"))
    directory = copied.directory.with_name("anew")
    for place in folder.trial_folders(directory):
        tracker.sync(place)
    assert main("tables", [str(directory)]) == 0
    assert main("tables", [str(tmp_path / "there" / "anew"), "--from-mlflow", copied.store]) == 0
    for kind in ("json", "csv", "md", "tex"):
        restored = tmp_path / "there" / "anew" / f"leaderboard.{kind}"
        assert restored.read_bytes() == (directory / f"leaderboard.{kind}").read_bytes(), kind
    assert "failed: loss is not finite" in (directory / "leaderboard.md").read_text()


def spoil(study, directory, what):
    if what == "neither empty nor absent":
        directory.mkdir()
        (directory / "mine.txt").touch()
    elif what == "trials that MLflow does not have":
        shutil.copytree(study.directory, directory)
        first = folder.trial_folders(directory)[0]
        first.rename(first.with_name("another"))
    elif what == "is not what MLflow has":
        shutil.copytree(study.directory, directory)
        (folder.trial_folders(directory)[0] / folder.RESULT).write_text("{}")


@pytest.mark.parametrize(
    "what", ["neither empty nor absent", "trials that MLflow does not have", "is not what MLflow has"]
)
def test_a_directory_of_anything_else_is_left_as_it_is(finished, tmp_path, capsys, what):
    directory = tmp_path / "tiny"
    spoil(finished, directory, what)
    before = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file() and path.name != ".lock"}
    assert main("tables", [str(directory), "--from-mlflow", finished.store]) == 2
    assert what in capsys.readouterr().err
    after = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file() and path.name != ".lock"}
    assert after == before


@pytest.mark.parametrize(
    ("name", "uri", "what"),
    [
        ("nobody", None, "there is no experiment 'nobody'"),
        ("tiny", "sqlite:////nowhere/mlflow.db", "there is no MLflow store /nowhere/mlflow.db"),
        ("tiny", "http://127.0.0.1:9", "cannot be used"),
    ],
)
@pytest.mark.parametrize("command", ["tables", "ui"])
def test_a_store_or_sweep_that_is_not_there_is_refused(
    finished, tmp_path, monkeypatch, capsys, command, name, uri, what
):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    option = "--from-mlflow" if command == "tables" else "--tracking-uri"
    assert main(command, [str(tmp_path / name), option, uri or finished.store]) == 2
    error = capsys.readouterr().err
    assert what in error
    assert len(error.splitlines()) == 1
