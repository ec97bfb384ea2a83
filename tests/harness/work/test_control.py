"""Which networks a run takes and how it ends: --dry-run, --only, --set, --fail-fast, --retry-failed, Ctrl-C."""

import dataclasses
import json
import os
import shutil
import signal

import mlflow
import pytest
import torch
from study import TINY, Study, snapshot

from harness.checker.bounds import operators
from harness.common import names
from harness.common.errors import Stopped
from harness.storage import folder, training_progress
from harness.tracking.tracker import Tracker
from harness.work import on_ray
from harness.work.queue import end_job

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # MLflow's, of SQLAlchemy


@pytest.fixture
def unfinished(copied):
    """The finished study without its results: both networks are to be evaluated."""
    for evaluation_dir in copied.evaluation_dirs.values():
        (evaluation_dir / folder.RESULT).unlink()
    return copied


@pytest.fixture
def replace_ray(monkeypatch):
    """A function that replaces Ray by another: it gets the jobs, and functions that report and end one."""

    def replace(act):
        def run_on_ray(queue, do, listener, options, directory):
            def end(job, error):
                end_job(queue, listener, job, error)

            def begin():
                if (job := queue.take()) is not None:
                    listener.on_start(job)
                return job

            act(iter(begin, None), listener.on_report, end)

        monkeypatch.setattr(on_ray, "run_on_ray", run_on_ray)

    return replace


@pytest.fixture
def started(unfinished, replace_ray):
    """The models whose networks are started, in order; each fails."""
    models = {network_dir: model for (model, _), network_dir in unfinished.network_dirs.items()}
    started = []

    def act(jobs, on_report, on_end):
        for job in jobs:
            started.append(models[job.network_dir])
            on_end(job, "it died")

    replace_ray(act)
    return started


def statuses(study):
    return {run.data.tags["model"]: run.info.status for run in study.runs.values()}


def test_a_dry_run_shows_each_network_and_writes_nothing(copied, no_ray, monkeypatch, capsys):
    monkeypatch.setattr(Tracker, "open", lambda *_: pytest.fail("it opens MLflow"))
    (copied.evaluation_dirs["cerdeq", 0] / folder.RESULT).unlink()
    before = snapshot(copied.root)
    assert copied.main("--dry-run") == 0
    printed = capsys.readouterr().out
    assert snapshot(copied.root) == before
    lines = {label: next(line for line in printed.splitlines() if line.startswith(label)) for label in ("cnn5", "cerd")}
    for part in (copied.records["cnn5", 0].key, "finished", "certified error", " no "):
        assert part in lines["cnn5"]
    for part in (copied.records["cerdeq", 0].key, "unfinished", "trained", " evaluate ", "unknown"):
        assert part in lines["cerd"]
    for part in ("1 CPU and 0 GPUs for each network", "side by side", "time: unknown", "nothing was started"):
        assert part in printed


def test_networks_that_recheck_cannot_read_are_named_before_anything_starts(tmp_path, no_ray, monkeypatch, capsys):
    monkeypatch.delitem(operators._MODULES, torch.nn.ReLU)
    study = Study(tmp_path, {**TINY, "seeds": [0, 1]}, "sqlite:///nowhere.db")
    assert study.main("--dry-run") == 0
    lines = capsys.readouterr().out.splitlines()
    warnings = [line for line in lines if "harness.recheck will confirm no verdict: it has no rule for ReLU()" in line]
    assert [line.split(": ")[:2] for line in warnings] == [["warning", "cnn5"], ["warning", "cerdeq"]]


def test_a_dry_run_estimates_by_networks_of_the_same_row_and_as_many_as_run_at_a_time(
    copied, no_ray, capsys, monkeypatch
):
    machines = [{"CPU": 4, "GPU": 0}]
    monkeypatch.setattr("harness.work.machines.machines_at", lambda address: machines)
    study = Study(copied.root, {**TINY, "seeds": [0, 1]}, copied.store)
    for model in ("cnn5", "cerdeq"):
        path = study.evaluation_dirs[model, 0] / folder.RESULT
        result = json.loads(path.read_text())
        result["metrics"] |= {names.TRAIN_SECONDS: 120.0, names.EVALUATION_SECONDS: 240.0}
        path.write_text(json.dumps(result))
    assert study.main("--dry-run") == 0
    printed = capsys.readouterr().out
    new = [line for line in printed.splitlines() if " train, evaluate " in line]
    assert len(new) == 2 and all(line.rstrip().endswith(" 6.0 min") for line in new)
    assert "4 side by side" in printed
    assert "time: 12.0 min of work for 2 of 2 evaluations; 6.0 min side by side" in printed
    for one_at_a_time in (["--max-concurrent", "1"], ["--here"]):
        assert study.main("--dry-run", *one_at_a_time) == 0
        printed = capsys.readouterr().out
        assert "1 side by side" in printed and "time: 12.0 min of work for 2 of 2 evaluations\n" in printed
    machines = [{"CPU": 1, "GPU": 0}, {"CPU": 2, "GPU": 0}]
    assert study.main("--dry-run", "--ray-address", "of a cluster") == 0
    assert "3 side by side" in capsys.readouterr().out


def test_a_dry_run_before_the_first_makes_no_directory(tmp_path, no_ray, capsys):
    study = Study(tmp_path, {**TINY, "seeds": list(range(20))}, "sqlite:///nowhere.db")
    assert study.main("--dry-run") == 0
    assert {path.name for path in tmp_path.iterdir()} == {"sweep.yaml"}
    assert capsys.readouterr().out.count("not begun") == 40


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--max-concurrent", "0"], ["--max-concurrent"]),
        (["--only", "resnet*"], ["--only", "resnet*", "cnn5 ibp seed 0", "cerdeq ibp seed 0"]),
    ],
    ids=["none at a time", "no such network"],
)
def test_options_that_cannot_be_are_refused(tmp_path, no_ray, capsys, monkeypatch, options, expected):
    monkeypatch.chdir(tmp_path)
    assert Study(tmp_path, TINY, "sqlite:///nowhere.db").main(*options) == 2
    error = capsys.readouterr().err
    assert all(part in error for part in expected)
    assert {path.name for path in tmp_path.iterdir()} == {"sweep.yaml"}


def test_failed_networks_start_last(unfinished, started):
    folder.write_failure(unfinished.evaluation_dirs["cnn5", 0], "it died")
    assert unfinished.main() == 1
    assert started == ["cerdeq", "cnn5"]


def test_only_selects_by_label_key_or_recipe_and_counts_what_it_selects(unfinished, started, capsys):
    assert unfinished.main("--only", "cnn5*") == 1
    assert unfinished.main("--only", unfinished.records["cnn5", 0].key) == 1
    assert unfinished.main("--only", "cnn5 *train.epochs=2 *") == 1, "by its recipe"
    assert started == ["cnn5"] * 3
    assert capsys.readouterr().out.count("1 of 2 networks, 1 trained already; 1 evaluation, 0 finished already") == 3


def test_what_set_changes_stands_apart_and_is_not_registered(copied, replace_ray, capsys):
    """As if it had been trained: its errors are better, and still the file's own network stays the best."""

    def act(jobs, on_report, on_end):
        (job,) = jobs
        finished, own = (
            copied.network_dirs["cnn5", 0],
            (folder.TRAINING, folder.STUDY, folder.TRAINED, folder.EVALUATIONS, "mlflow.json"),
        )
        shutil.copytree(finished, job.network_dir, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*own))
        trained = folder.read_trained(finished)
        folder.write_trained(job.network_dir, dataclasses.replace(trained, key=job.network_dir.name))
        (evaluation_dir,) = folder.evaluation_folders(job.network_dir)
        finished = copied.evaluation_dirs["cnn5", 0]
        shutil.copytree(finished, evaluation_dir, dirs_exist_ok=True)
        key = f"{job.network_dir.name}/{evaluation_dir.name}"
        result = json.loads((evaluation_dir / folder.RESULT).read_text()) | {"key": key}
        result["metrics"] |= dict.fromkeys((names.STANDARD_ERROR, names.ATTACK_ERROR, names.CERTIFIED_ERROR), 1.0)
        (evaluation_dir / folder.RESULT).write_text(json.dumps(result))
        on_end(job, None)

    replace_ray(act)
    assert copied.main("--set", "train.kappa=0.5", "--only", "cnn5*") == 0
    assert "profile 'full --set train.kappa=0.5': width" in capsys.readouterr().out
    table = (copied.directory / "leaderboard.md").read_text()
    assert "profile full --set train.kappa=0.5" in table and "not comparable with published" in table
    best = mlflow.MlflowClient(copied.store).get_model_version_by_alias("tiny", "best")
    assert best.run_id in {copied.runs[record.key].info.run_id for record in copied.records.values()}


def test_what_would_fail_again_is_left_unless_asked_for(unfinished, started, capsys):
    folder.write_failure(unfinished.evaluation_dirs["cnn5", 0], "NonFiniteLossError: of last week", repeats=True)
    assert unfinished.main() == 1
    assert started == ["cerdeq"]
    printed = capsys.readouterr().out
    assert "failed cnn5 ibp seed 0: NonFiniteLossError: of last week; " in printed and "--retry-failed" in printed
    started.clear()
    assert unfinished.main("--retry-failed") == 1
    assert sorted(started) == ["cerdeq", "cnn5"]


@pytest.mark.parametrize("fail_fast", [True, False])
def test_with_fail_fast_a_failure_stops_the_others(unfinished, replace_ray, capsys, fail_fast):
    def act(jobs, on_report, on_end):
        first, second = jobs
        on_report(second, training_progress.read_epochs(second.network_dir)[-1])
        on_end(first, "it died")
        on_end(second, "it died")

    replace_ray(act)
    assert unfinished.main(*["--fail-fast"] * fail_fast) == 1
    assert statuses(unfinished) == {"cnn5": "FAILED", "cerdeq": "KILLED" if fail_fast else "FAILED"}
    assert ("a network failed: the others are stopped" in capsys.readouterr().out) == fail_fast


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_command_and_mlflow_says_that_nobody_runs(unfinished, replace_ray, capsys, number, status):
    def act(jobs, on_report, on_end):
        for job in jobs:
            on_report(job, training_progress.read_epochs(job.network_dir)[-1])
        assert statuses(unfinished) == {"cnn5": "RUNNING", "cerdeq": "RUNNING"}
        raise Stopped(number)

    replace_ray(act)
    assert unfinished.main() == status
    captured = capsys.readouterr()
    assert captured.err.count("the same command continues") == 1
    assert statuses(unfinished) == {"cnn5": "KILLED", "cerdeq": "KILLED"}
    assert all(folder.read_failure(path) is None for path in unfinished.evaluation_dirs.values())


def test_sigterm_while_a_command_starts_is_a_line_and_a_status(unfinished, monkeypatch, capsys):
    monkeypatch.setattr(Tracker, "open", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    assert unfinished.main() == 143
    assert "stopped by SIGTERM; the same command continues" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_network_that_is_only_evaluated_runs_for_mlflow_too(unfinished, replace_ray):
    def act(jobs, on_report, on_end):
        first, second = jobs
        on_report(first, {names.ACTIVITY: "reads its data"})
        on_report(first, {names.EVALUATED: 0, names.IMAGES: 50, names.EVALUATION_EPS: "1/8"})
        assert sorted(statuses(unfinished).values()) == ["FINISHED", "RUNNING"]
        on_end(first, "it died")
        on_end(second, "it died")

    replace_ray(act)
    assert unfinished.main() == 1
