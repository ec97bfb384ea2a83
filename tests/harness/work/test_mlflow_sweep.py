"""What MLflow has of a finished sweep beside its runs: a view of it, networks that predict."""

import base64
import json
import zlib

import mlflow
import numpy
import pytest
from mlflow import MlflowClient
from rich.console import Console

from harness.common import names
from harness.data import load
from harness.storage import folder, parquet
from harness.tracking.tracker import Tracker

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # MLflow's, of SQLAlchemy


@pytest.fixture
def experiment(finished):
    return MlflowClient(finished.store).get_experiment_by_name("tiny")


def test_the_view_opens_sections_of_errors_and_closes_all_others(finished, experiment):
    text = experiment.tags["mlflow.sharedViewState.comparison"]
    state = json.loads(zlib.decompress(base64.b64decode(text.removeprefix("deflate;"))))
    opened = {section["name"]: section["display"] for section in state["compareRunSections"]}
    drawn = [chart.get("metricKey") or chart["yaxis"]["key"] for chart in state["compareRunCharts"]]
    drawn += [chart["xaxis"]["key"] for chart in state["compareRunCharts"] if chart["type"] == "SCATTER"]
    logged = set().union(*(run.data.metrics for run in finished.runs.values()))
    assert set(drawn) <= logged, "no empty chart"
    assert {"BAR", "SCATTER", "LINE"} == {chart["type"] for chart in state["compareRunCharts"]}
    for name in logged - set(drawn):  # MLflow adds charts of these by what stands before their last slash
        assert opened[name.rpartition("/")[0] or "Model metrics"] is False, name
    assert all(opened[chart["metricSectionId"]] for chart in state["compareRunCharts"])
    (group,) = state["groupBy"]["groupByKeys"]
    rows = {run.data.tags[group["groupByData"]] for run in finished.runs.values()}
    assert {row.rpartition(" ")[0] for row in rows} == {"cnn5 ibp", "cerdeq ibp"} and len(rows) == 2


def test_the_experiment_s_note_has_the_leaderboard(experiment):
    note = experiment.tags["mlflow.note.content"]
    assert "| cnn5 ibp " in note
    assert "first 50 test images" in note
    assert len(note) <= 5000


@pytest.mark.filterwarnings("ignore::UserWarning")  # of MLflow's, when it is imported
def test_the_network_of_each_run_predicts_as_it_was_evaluated(finished):
    images = load("digits").test.images[:50].numpy() / 255
    for key, run in finished.runs.items():
        network = mlflow.pyfunc.load_model(f"{run.info.artifact_uri}/network")
        assert network.predict(images.astype(numpy.float32)).shape == (50, 10)
        evaluation_dir = folder.evaluation_dir(folder.network_dir(finished.directory, key), finished.evaluations[0])
        verdicts = parquet.read_verdicts(evaluation_dir, [names.PREDICTION])[names.PREDICTION]
        assert numpy.array_equal(network.predict(images).argmax(1), verdicts)
    with pytest.raises(ValueError, match=r"pixels in \[0, 1\]"):
        network.predict(255 * images)


def test_the_best_network_is_registered_once_and_another_once_it_is_better(copied):
    def errors(run):
        return [run.data.metrics[name] for name in (names.CERTIFIED_ERROR, names.STANDARD_ERROR)]

    best, worse = sorted(copied.runs.values(), key=errors)
    client = MlflowClient(copied.store)

    def register(keys):
        assert Tracker.open("tiny", copied.store, Console()).finish(copied.directory, [], keys)

    register(copied.runs.keys())
    version = client.get_model_version_by_alias("tiny", "best")
    assert version.run_id == best.info.run_id
    client.log_metric(worse.info.run_id, names.CERTIFIED_ERROR, 1.0, step=1)
    for _ in range(2):
        register(copied.runs.keys())
    assert len(client.search_model_versions("name = 'tiny'")) == 2
    assert client.get_model_version_by_alias("tiny", "best").run_id == worse.info.run_id
    register([])
    assert client.get_model_version_by_alias("tiny", "best").run_id == worse.info.run_id
