"""`harness.run --here`: networks of a sweep file, on a machine that has neither Ray nor MLflow."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from small_sweep import write
from study import TINY, Study

from harness.command_line import main
from harness.common import names
from harness.storage import folder
from harness.storage.lock import lock_directory

BLOCKED = ("ray", "mlflow", "typer", "sqlalchemy")
BLOCKER = f"""
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {BLOCKED!r}:
            raise ModuleNotFoundError(f"blocked by the test: {{name}}", name=name)

sys.meta_path.insert(0, Blocker())
"""
RUN = """
import contextlib, sys
from harness.command_line import main
with contextlib.suppress(ModuleNotFoundError):
    import ray
    sys.exit("is not blocked")
sys.exit(main("run", ["--here", "../study.yaml", "--results-dir", "out"]))
"""


def test_a_sweep_runs_to_its_tables_without_ray_and_mlflow(tmp_path):
    """In a process of its own, outside the project; Parquet included."""
    train = {**TINY["train"], "epochs": 1}
    write(tmp_path, {**TINY, "train_images": 128, "train": train, "trials": TINY["trials"][:1]})
    for name in ("block", "elsewhere"):
        (tmp_path / name).mkdir()
    (tmp_path / "block/sitecustomize.py").write_text(BLOCKER)
    paths = [str(tmp_path / "block"), os.environ.get("PYTHONPATH")]
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    options = {"cwd": tmp_path / "elsewhere", "env": environment, "capture_output": True, "text": True, "timeout": 200}
    done = subprocess.run([sys.executable, "-c", RUN], **options)
    assert (done.returncode, done.stderr) == (0, "")
    (network_dir,) = folder.network_folders(tmp_path / "elsewhere/out/tiny")
    (evaluation_dir,) = folder.evaluation_folders(network_dir)
    result = folder.read_result(evaluation_dir)
    assert result.environment["threads"] == "1", "as under Ray, which reserves one core"
    error = result.metrics[names.CERTIFIED_ERROR]
    assert f"certified error {error:.2f} % (1 of 1 networks" in done.stdout
    table = json.loads((network_dir.parents[1] / "leaderboard.json").read_text())
    assert table[0][names.CERTIFIED_ERROR] == error


def test_a_sweep_file_s_networks_are_those_that_harness_run_finds_finished_and_are_made_again_by_their_keys(
    tmp_path, capsys, monkeypatch
):
    file, results = write(tmp_path, TINY), str(tmp_path / "results")
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setitem(sys.modules, "harness.tracking.tracker", None)  # as without MLflow
    options = ["--only", "cnn5 *", "--set", "train.epochs=1", "--results-dir", results]
    assert main("run", [str(file), "--here", *options]) == 0
    (network_dir,) = folder.network_folders(tmp_path / "results/tiny")
    (evaluation_dir,) = folder.evaluation_folders(network_dir)
    assert folder.read_result(evaluation_dir) is not None
    capsys.readouterr()
    assert main("run", [str(file), *options, "--dry-run"]) == 0
    assert "1 trained already; 1 evaluation, 1 finished already" in capsys.readouterr().out
    assert "leaderboard.md" in {path.name for path in network_dir.parents[1].iterdir()}
    again = tmp_path / "again/tiny/networks" / network_dir.name
    options = ["--only", network_dir.name, *options[2:4], "--results-dir", str(tmp_path / "again")]
    assert main("run", [str(file), "--here", *options]) == 0
    assert folder.network_folders(tmp_path / "again/tiny") == [again]
    for name in (folder.TRAINING, folder.STUDY, folder.WEIGHTS):
        assert (again / name).read_bytes() == (network_dir / name).read_bytes()
    name = Path(folder.EVALUATIONS) / evaluation_dir.name / folder.VERDICTS
    assert (again / name).read_bytes() == (network_dir / name).read_bytes()
    assert folder.read_trained(again).key == network_dir.name


def test_a_run_here_logs_and_draws_as_under_ray_unless_another_run_does(tmp_path, store, capsys):
    """Of the jobs of an array the first one has the directory; whoever comes last adds what the others trained."""
    trials = [{"model": "cnn5", "method": "ibp"}, {"model": "fc", "method": "ibp"}]
    train = {**TINY["train"], "epochs": 1}
    study = Study(tmp_path, {**TINY, "name": "array", "trials": trials, "train": train}, store)
    page = study.directory / folder.REPORT
    with lock_directory(study.directory):
        assert study.main("--here", "--only", "fc *") == 0
    out = capsys.readouterr().out
    assert "another run is writing there" in out and "MLflow:" not in out and not page.exists()
    assert study.main("--here", "--only", "cnn5 *") == 0
    assert "MLflow:" in capsys.readouterr().out and page.exists()
    assert [run.data.tags["model"] for run in study.runs.values()] == ["cnn5"], (
        "others may be at work on other networks"
    )
    assert study.main("--here") == 0
    study.assert_complete()


def test_a_run_here_removes_nothing_that_others_write(tmp_path):
    """Jobs of an array run --here at the same time: each would remove the tables that another one is writing."""
    file, results = write(tmp_path, TINY), tmp_path / "results"
    written = results / "tiny/.leaderboard.md.abc.tmp"
    written.parent.mkdir(parents=True)
    written.touch()
    options = ["--only", "cnn5 *", "--set", "train.epochs=1", "--results-dir", str(results)]
    with lock_directory(results / "tiny"):
        assert main("run", [str(file), "--here", *options]) == 0
    assert written.exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["study.yaml", "--only", "cnn9*"], "--only: found 'cnn9*'"),
        (["study.yaml", "study.yaml"], "one sweep file alone"),
        (["a/training.json", "b/training.json"], "found 'a/training.json', allowed: a sweep file *.yaml; to train"),
        (["study.yaml", "--set", "epochs=1"], "--set: found 'epochs=1'"),
    ],
)
def test_options_that_fit_no_file_are_refused(tmp_path, capsys, monkeypatch, arguments, expected):
    write(tmp_path, TINY)
    monkeypatch.chdir(tmp_path)
    assert main("run", ["--here", *arguments, "--results-dir", str(tmp_path / "results")]) == 2
    assert expected in capsys.readouterr().err and not (tmp_path / "results").exists()
