"""`harness.run --here`: networks of a sweep file or of training.json, on a machine that has neither Ray nor MLflow."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from small_sweep import write
from study import TINY, Study, snapshot

from harness.command_line import main
from harness.common import names
from harness.config.training import RECIPE_VERSION, Training
from harness.data import load
from harness.pretrained.network_file import TRAINED_ELSEWHERE
from harness.storage import files, folder
from harness.storage.lock import lock_directory
from harness.storage.records import make_record, record_json

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


@pytest.fixture(scope="session")
def fingerprint():
    return load("digits").fingerprint


@pytest.fixture
def training_file(tiny_training, tiny_evaluation, fingerprint, tmp_path):
    """A function of changed fields to the training.json of a network of one epoch, beside which is an evaluation."""

    def make(**changes):
        train = {"epochs": 1, "ramp_epochs": 1, **changes.pop("train", {})}
        record = make_record(tiny_training(train=train, **{"train_images": 128, **changes}), fingerprint)
        network_dir = folder.network_dir(tmp_path / "tiny", record.key)
        (network_dir / folder.TRAINING).unlink(missing_ok=True)
        folder.begin_network(network_dir, record, "full", [tiny_evaluation()])
        return network_dir / folder.TRAINING

    return make


def call(path, *options):
    return main("run", ["--here", str(path), "--results-dir", str(results_of(path)), *options])


def results_of(path):
    return folder.sweep_dir_of(path.parent).with_name("results")


def edit(path, **changes):
    """Change a training.json's top level."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return path


def edit_config(path, **changes):
    """Change a training.json's config, and leave its key."""
    return edit(path, config=json.loads(path.read_text())["config"] | changes)


def change(path, **changes):
    """Change a training.json's config and its key to match, as other code would have written it."""
    content = json.loads(edit_config(path, **changes).read_text())
    return edit(path, key=Training.model_validate(content["config"]).key(content["fingerprint"]))


def network_dir_of(path):
    return folder.network_dir(results_of(path) / "tiny", json.loads(path.read_text())["key"])


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


def test_a_sweep_file_s_networks_are_those_that_harness_run_finds_finished_and_are_made_again_from_their_files(
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
    assert main("run", ["--here", str(network_dir / folder.TRAINING), "--results-dir", str(tmp_path / "again")]) == 0
    again = tmp_path / "again/tiny/networks" / network_dir.name
    assert f" -> {again}\n" in capsys.readouterr().out
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
        (["study.yaml", "training.json"], "one sweep file alone"),
        (["training.json", "--set", "seeds=[1]"], "--only, --set and --profile: need a sweep file"),
        (["study.yaml", "--set", "epochs=1"], "--set: found 'epochs=1'"),
    ],
)
def test_options_that_fit_no_file_are_refused(tmp_path, capsys, training_file, arguments, expected):
    paths = {"study.yaml": write(tmp_path, TINY), "training.json": training_file()}
    files = [str(paths.get(word, word)) for word in arguments]
    assert main("run", ["--here", *files, "--results-dir", str(tmp_path / "results")]) == 2
    assert expected in capsys.readouterr().err and not (tmp_path / "results").exists()


def test_a_finished_network_is_left_alone_in_a_line(training_file, capsys):
    path = training_file()
    assert call(path) == 0
    network_dir = network_dir_of(path)
    before = snapshot(network_dir)
    capsys.readouterr()
    assert call(path) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.endswith(f"{network_dir}: finished")
    assert snapshot(network_dir) == before


def occupy(path):
    """Put another network into the network's folder."""
    record = folder.read_training(path)
    other = make_record(record.config.replace(seed=1), record.fingerprint)
    files.write_json(network_dir_of(path) / folder.TRAINING, record_json(other))


TEACHER = {
    **{"dataset": "digits", "model": "cnn5", "method": TRAINED_ELSEWHERE, "seed": 0, "width": 0.05, "train": {}},
    "checkpoint": {"file": "net.pt", "sha256": "0" * 64},
}

# What is done to a training.json, and what the message must name; more files: test_malformed_files.py.
REFUSED = {
    "no file": (lambda path: path.unlink(), ["No such file"]),
    "no evaluation": (
        lambda path: shutil.rmtree(path.parent / folder.EVALUATIONS),
        ["evaluations/<key>/evaluation.json"],
    ),
    "a sweep file": (lambda path: path.write_text("name: quickstart\n"), ["*.yaml"]),
    "an older recipe": (lambda path: edit(path, recipe_version=RECIPE_VERSION - 1), ["recipe_version"]),
    "another fingerprint": (lambda path: edit(path, fingerprint="f" * 16), ["key"]),
    "a setting changed by hand": (lambda path: edit_config(path, width=0.1), ["key"]),
    "a setting of another type": (lambda path: edit_config(path, seed="3"), ["training.json"]),
    "a network of other code": (lambda path: change(path, model="cnn99"), ["cnn99"]),
    "an option of other code": (lambda path: change(path, options={"depth": 3}), ["depth"]),
    "a teacher whose file is missing": (
        lambda path: change(path, method="cc-dist", teacher=TEACHER),
        ["method_options.teacher.checkpoint: found no file", folder.NETWORK_FILE],
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_network_of_this_code_is_refused_and_nothing_is_written(training_file, capsys, case):
    spoil, expected = REFUSED[case]
    path = training_file()
    spoil(path)
    assert call(path) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("error: ")
    assert all(part in captured.err for part in (str(path), *expected)), captured.err
    assert not results_of(path).exists()


def test_results_that_cannot_lie_there_are_refused(training_file, capsys):
    path = training_file()
    results_of(path).write_text("")
    assert call(path) == 2
    assert str(results_of(path)) in capsys.readouterr().err
    results_of(path).unlink()
    occupy(path)
    assert call(path) == 2
    assert str(network_dir_of(path)) in capsys.readouterr().err


def test_data_that_is_not_what_the_network_asks_for_is_refused(
    training_file, capsys, fingerprint, tmp_path, monkeypatch
):
    def message_of(path, *options):
        assert call(path, *options) == 2
        return capsys.readouterr().err

    assert "train_images" in message_of(training_file(train_images=5000))
    few = message_of(edit_config(training_file(), train_images=50))
    assert "batch_size: found 64, allowed: at most the 50" in few
    content = json.loads((path := training_file()).read_text())
    edit(path, fingerprint="f" * 16, key=Training.model_validate(content["config"]).key("f" * 16))
    other = message_of(path)
    assert all(part in other for part in ("data", "f" * 16, fingerprint))

    def offline(*_args, **_kwargs):
        raise OSError("blocked by the test")

    monkeypatch.setattr("socket.getaddrinfo", offline)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = change(training_file(), dataset="mnist")
    assert "--data-dir" in message_of(path, "--data-dir", str(tmp_path / "empty"))
