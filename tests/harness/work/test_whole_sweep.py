"""`python -m harness.run` from a sweep file to MLflow and the leaderboard, and the same command again."""

import json
import shutil

import pytest
from mlflow import MlflowClient
from one_network import train_and_evaluate
from processes import alive, wait_for
from study import TINY, Study, snapshot

from harness.command_line import main
from harness.storage import folder
from harness.storage.lock import lock_directory
from harness.storage.records import make_record

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # MLflow's, of SQLAlchemy


STORE = ("mlflow.db", ".mlflow.db.lock", "mlruns")  # in the working directory, where no other one is named


def test_every_network_ends_with_its_files_its_run_and_a_row_in_the_tables(finished):
    assert finished.status == 0, finished.err
    finished.assert_complete()
    assert {path.name for path in finished.root.iterdir()} == {"sweep.yaml", "results", *STORE}, "nothing lies about"
    (artifacts,) = {run.info.artifact_uri.rpartition("/mlruns/")[0] for run in finished.runs.values()}
    assert artifacts == str(finished.root)
    trained = {folder.LOG, folder.TRAINING, folder.STUDY, folder.EPOCHS, folder.CHECKPOINT, folder.SAVED_EPOCHS}
    trained |= {folder.STEPS, folder.WEIGHTS, folder.TRAINED, folder.TRAINED_ON, folder.EVALUATIONS, "mlflow.json"}
    evaluated = {folder.LOG, folder.EVALUATION, folder.VERDICTS, folder.COUNTEREXAMPLES, folder.RESULT}
    for network_dir in finished.network_dirs.values():
        assert {path.name for path in network_dir.iterdir()} == trained
    for evaluation_dir in finished.evaluation_dirs.values():
        assert {path.name for path in evaluation_dir.iterdir()} == evaluated


def test_what_is_printed_names_networks_tables_and_mlflow_and_nothing_of_ray(finished):
    assert finished.err == "", "neither Ray nor MLflow speaks"
    assert "2 networks, 0 trained already; 2 evaluations, 0 finished already" in finished.out
    for model in ("cnn5", "cerdeq"):
        assert f"done {model} ibp seed 0: standard error" in finished.out
    assert "leaderboard.md" in finished.out
    lines = finished.out.splitlines()
    number = next(number for number, line in enumerate(lines) if " mlflow ui " in line)
    command, link, page = lines[number], lines[number + 1], lines[-1]
    assert page == str(finished.directory / "report.html")
    assert command.endswith(f" uv run mlflow ui --workers 1 --backend-store-uri {finished.store}")
    assert link.endswith("/runs?viewStateShareKey=comparison&compareRunsMode=CHART")
    assert "%" not in link
    assert "\x1b" not in finished.out, "no colours in a file"
    assert [line for line in finished.out.splitlines() if "ray" in line.lower() and "running:" not in line] == [
        "loads Ray and starts it: about 15 s"
    ]


def test_no_process_is_left_behind(finished):
    assert len(finished.processes) > 3, "Ray was seen"
    wait_for(lambda: not any(map(alive, finished.processes)), 30)


def test_a_second_call_logs_what_mlflow_lost_and_does_nothing_else(copied, no_ray, capsys):
    before, runs = snapshot(copied.directory / folder.NETWORKS), copied.runs
    tables = {kind: (copied.directory / f"leaderboard.{kind}").read_bytes() for kind in ("md", "csv", "json")}
    lost = copied.records["cnn5", 0].key
    MlflowClient(copied.store).delete_run(runs[lost].info.run_id)
    assert copied.main() == 0
    assert "2 networks, 2 trained already; 2 evaluations, 2 finished already" in capsys.readouterr().out
    assert snapshot(copied.directory / folder.NETWORKS) == before
    for key, run in copied.runs.items():
        assert run.data.metrics == runs[key].data.metrics
        assert (run.info.run_id == runs[key].info.run_id) == (key != lost)
    for kind, content in tables.items():
        assert (copied.directory / f"leaderboard.{kind}").read_bytes() == content
    copied.assert_complete()


def add_a_network(study):
    record = study.records["cnn5", 0]
    other = make_record(record.config.replace(seed=9), record.fingerprint)
    network_dir = folder.network_dir(study.directory, other.key)
    folder.begin_network(network_dir, other, "full", study.evaluations)
    (network_dir / folder.LOG).touch()  # as one that has begun has it


def assert_logged(study):
    assert {record.key for record in study.records.values()} <= study.runs.keys()
    assert all(run.info.status in ("FINISHED", "KILLED") for run in study.runs.values())


@pytest.mark.slow
def test_a_lost_store_gets_all_again(copied, no_ray):
    (copied.root / "mlflow.db").unlink()
    assert copied.main() == 0
    assert_logged(copied)


def test_the_page_is_drawn_where_it_is_missing_or_a_table_changes(copied, no_ray):
    """Here by a network from elsewhere, logged, too; first by a command that writes no page, or was killed before."""
    page = copied.directory / "report.html"
    page.unlink()
    assert copied.main() == 0
    before = page.stat().st_mtime_ns
    assert copied.main() == 0
    assert page.stat().st_mtime_ns == before
    add_a_network(copied)
    assert copied.main("--here") == 0
    assert page.stat().st_mtime_ns > before
    assert_logged(copied)


def test_a_network_made_elsewhere_is_imported(tmp_path, store, no_ray):
    """Trained without Ray under another directory, copied, and found finished."""
    study = Study(tmp_path, {**TINY, "name": "imported", "trials": TINY["trials"][:1]}, store)
    with lock_directory(tmp_path / "elsewhere/imported"):  # so that it only trains
        assert main("run", [str(study.file), "--here", "--results-dir", str(tmp_path / "elsewhere")]) == 0
    assert not study.directory.exists()
    shutil.copytree(tmp_path / "elsewhere", tmp_path / "results")
    before = snapshot(study.directory / folder.NETWORKS)
    assert study.main() == 0
    assert snapshot(study.directory / folder.NETWORKS) == before
    study.assert_complete()
    (row,) = json.loads((study.directory / "leaderboard.json").read_text())
    assert row["model"] == "cnn5"


def test_the_profile_is_printed_and_stands_in_every_table(tmp_path, store, no_ray, capsys):
    """A profile's numbers are not comparable, and everything it produces says so."""
    content = {**TINY, "name": "profiled", "trials": TINY["trials"][:1], "profiles": {"cpu": {"seeds": [1]}}}
    study = Study(tmp_path, content, store)
    (record,), (evaluation,) = study.records.values(), study.evaluations
    assert record.config.seed == 1
    train_and_evaluate(record.config, [evaluation], folder.network_dir(study.directory, record.key))
    capsys.readouterr()
    assert study.main() == 0
    printed = capsys.readouterr().out
    assert "no GPU here: profile 'cpu' was picked" in printed
    assert "warning: the attack moves a pixel by at most 0.375 eps" in printed, "two steps, of 0.25 and of 0.125 eps"
    for name in ("leaderboard.md", "report.html"):
        assert "not comparable with published" in (study.directory / name).read_text()
    for kind in ("csv", "json"):
        assert "cpu" in (study.directory / f"leaderboard.{kind}").read_text()
