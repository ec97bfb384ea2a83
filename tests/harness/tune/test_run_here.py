"""`harness.run --here`: trials of a sweep file or of trial.json, on a machine that has neither Ray nor MLflow."""

import json
import os
import subprocess
import sys

import pytest
from small_sweep import write
from study import TINY, snapshot

from harness.command_line import main
from harness.common import names
from harness.config.training import RECIPE_VERSION, Trial
from harness.data import load
from harness.storage import files, folder

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
def trial_file(tiny_trial, fingerprint, tmp_path):
    """A function of changed fields to the trial.json of a trial of one epoch."""

    def make(name="trial.json", **changes):
        train = {"epochs": 1, "ramp_epochs": 1, **changes.pop("train", {})}
        trial = folder.make_trial(tiny_trial(train=train, **{"train_images": 128, **changes}), fingerprint)
        files.write_json(tmp_path / name, folder.trial_json(trial))
        return tmp_path / name

    return make


def call(path, *options):
    return main("run", ["--here", str(path), "--results-dir", str(path.parent / "results"), *options])


def edit(path, **changes):
    """Change a trial.json's top level."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return path


def edit_config(path, **changes):
    """Change a trial.json's config, and leave its key."""
    return edit(path, config=json.loads(path.read_text())["config"] | changes)


def change(path, **changes):
    """Change a trial.json's config and its key to match, as other code would have written it."""
    content = json.loads(edit_config(path, **changes).read_text())
    return edit(path, key=Trial.model_validate(content["config"]).key(content["fingerprint"]))


def trial_dir_of(path):
    content = json.loads(path.read_text())
    return folder.trial_dir(path.parent / "results" / content["config"]["sweep"], content["key"])


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
    (trial_dir,) = folder.trial_folders(tmp_path / "elsewhere/out/tiny")
    result = folder.read_result(trial_dir)
    assert result.environment["threads"] == "1", "as under Ray, which reserves one core"
    error = result.metrics[names.CERTIFIED_ERROR]
    assert f"certified error {error:.2f} % (1 of 1 trials" in done.stdout
    assert json.loads((trial_dir.parents[1] / "leaderboard.json").read_text())[0][names.CERTIFIED_ERROR] == error


def test_a_sweep_file_s_trials_are_those_that_harness_run_finds_finished(tmp_path, capsys, monkeypatch):
    file, results = write(tmp_path, TINY), str(tmp_path / "results")
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setitem(sys.modules, "mlflow", None)
    options = ["--only", "cnn5 *", "--set", "train.epochs=1", "--results-dir", results]
    assert main("run", [str(file), "--here", *options]) == 0
    (trial_dir,) = folder.trial_folders(tmp_path / "results/tiny")
    assert folder.read_result(trial_dir) is not None
    capsys.readouterr()
    assert main("run", [str(file), *options, "--dry-run"]) == 0
    assert "1 finished already" in capsys.readouterr().out
    assert "leaderboard.md" in {path.name for path in trial_dir.parents[1].iterdir()}
    assert main("run", ["--here", str(trial_dir / folder.TRIAL), "--results-dir", str(tmp_path / "again")]) == 0
    again = tmp_path / "again/tiny/trials" / trial_dir.name
    assert f" -> {again}\n" in capsys.readouterr().out
    assert folder.read_trial(again / folder.TRIAL) == folder.read_trial(trial_dir / folder.TRIAL)
    assert folder.read_result(again) is not None


def test_a_run_here_removes_nothing_that_others_write(tmp_path):
    """Jobs of an array run --here at the same time: each would remove the tables that another one is writing."""
    file, results = write(tmp_path, TINY), tmp_path / "results"
    written = results / "tiny/.leaderboard.md.abc.tmp"
    written.parent.mkdir(parents=True)
    written.touch()
    options = ["--only", "cnn5 *", "--set", "train.epochs=1", "--results-dir", str(results)]
    assert main("run", [str(file), "--here", *options]) == 0
    assert written.exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["study.yaml", "--only", "cnn9*"], "--only: found 'cnn9*'"),
        (["study.yaml", "trial.json"], "one sweep file alone"),
        (["trial.json", "--set", "seeds=[1]"], "--only, --set and --profile: need a sweep file"),
        (["study.yaml", "--set", "epochs=1"], "--set: found 'epochs=1'"),
    ],
)
def test_options_that_fit_no_file_are_refused(tmp_path, capsys, trial_file, arguments, expected):
    write(tmp_path, TINY)
    trial_file()
    files = [str(tmp_path / word) if word in ("study.yaml", "trial.json") else word for word in arguments]
    assert main("run", ["--here", *files, "--results-dir", str(tmp_path / "results")]) == 2
    assert expected in capsys.readouterr().err and not (tmp_path / "results").exists()


def test_a_finished_trial_is_left_alone_in_a_line(trial_file, capsys, monkeypatch):
    """Its data is not read either."""
    path = trial_file()
    assert call(path) == 0
    trial_dir = trial_dir_of(path)
    before = snapshot(trial_dir)
    capsys.readouterr()
    monkeypatch.setattr("harness.data.load", None)
    assert call(path) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.endswith(f"{trial_dir}: finished")
    assert snapshot(trial_dir) == before


def occupy(path):
    """Put another trial into the trial's folder."""
    trial_dir = trial_dir_of(path)
    trial_dir.mkdir(parents=True)
    trial = folder.read_trial(path)
    other = folder.make_trial(trial.config.replace(seed=1), trial.fingerprint)
    files.write_json(trial_dir / folder.TRIAL, folder.trial_json(other))


# What is done to a trial.json, and what the message must name; more files: test_malformed_files.py.
REFUSED = {
    "no file": (lambda path: path.unlink(), ["No such file"]),
    "a sweep file": (lambda path: path.write_text("name: quickstart\n"), ["*.yaml"]),
    "an older recipe": (lambda path: edit(path, recipe_version=RECIPE_VERSION - 1), ["recipe_version"]),
    "another fingerprint": (lambda path: edit(path, fingerprint="f" * 16), ["key"]),
    "a setting changed by hand": (lambda path: edit_config(path, eps="1/16"), ["key"]),
    "a setting of another type": (lambda path: edit_config(path, seed="3"), ["trial.json"]),
    "a network of other code": (lambda path: change(path, model="cnn99"), ["cnn99"]),
    "an option of other code": (lambda path: change(path, options={"depth": 3}), ["depth"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_trial_of_this_code_is_refused_and_nothing_is_written(trial_file, capsys, case):
    spoil, expected = REFUSED[case]
    path = trial_file()
    spoil(path)
    assert call(path) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("error: ")
    assert all(part in captured.err for part in (str(path), *expected)), captured.err
    assert not (path.parent / "results").exists()


def test_results_that_cannot_lie_there_are_refused(trial_file, capsys):
    path = trial_file()
    (path.parent / "results").write_text("")
    assert call(path) == 2
    assert str(path.parent / "results") in capsys.readouterr().err
    (path.parent / "results").unlink()
    occupy(path)
    assert call(path) == 2
    assert str(trial_dir_of(path)) in capsys.readouterr().err


def test_data_that_is_not_what_the_trial_asks_for_is_refused(trial_file, capsys, fingerprint, tmp_path, monkeypatch):
    def message_of(path, *options):
        assert call(path, *options) == 2
        return capsys.readouterr().err

    assert "train_images" in message_of(trial_file(train_images=5000))
    few = message_of(edit_config(trial_file(), train_images=50))
    assert "batch_size: found 64, allowed: at most the 50" in few
    content = json.loads((path := trial_file()).read_text())
    edit(path, fingerprint="f" * 16, key=Trial.model_validate(content["config"]).key("f" * 16))
    other = message_of(path)
    assert all(part in other for part in ("data", "f" * 16, fingerprint))

    def offline(*_args, **_kwargs):
        raise OSError("blocked by the test")

    monkeypatch.setattr("socket.getaddrinfo", offline)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = change(trial_file(), dataset="mnist")
    assert "--data-dir" in message_of(path, "--data-dir", str(tmp_path / "empty"))
