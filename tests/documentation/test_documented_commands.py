"""Commands of README, docs and RESULTS.md: each is read by its own parser and names what there is; cheap ones are run.

Sweep files load: tests/harness/config/test_sweep_to_trials.py. What is not run here is run by the test that COVERED
names, and the quickstart with what follows it under the marker `slow`.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from pages import ROOT, blocks, inline

from harness import __main__ as entry
from harness.command_line import COMMANDS, main, parser_of, select_by_pattern
from harness.config.sweep_file import load_sweep
from harness.config.sweep_text import read
from harness.config.trial import labels
from harness.storage import folder

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
MARKERS = {marker.partition(":")[0] for marker in PROJECT["tool"]["pytest"]["ini_options"]["markers"]}
GOLDEN = ROOT / "tests/harness/golden"

CHEAP = ("schema", "status", "tables", "paired")
COVERED = {
    "run": "harness/launch/test_whole_sweep.py",
    "trial": "harness/launch/test_single.py",
    "certify": "harness/launch/test_certify.py",
    "ui": "harness/launch/test_ui.py",
    "report": "harness/reports/test_report.py",
    "publish": "harness/reports/test_publish.py",
    "recheck": "harness/checker/test_recheck.py",
    "benchmark": "harness/measure/test_benchmark.py",
}
PATTERNS = {"run": "only", "recheck": "only", "publish": "weights"}
TOOLS = {"ruff", "mypy", "mlflow", "sphinx-build"}  # others' commands: they are in the lock, their paths are here


def lines():
    """(place, words) of every command in a `sh` block or in backticks."""
    for block in blocks("sh"):
        whole = block.text.replace("\\\n", "")
        for number, line in enumerate(whole.splitlines(), start=block.line + 1):
            if words := shlex.split(line, comments=True):
                yield f"{block.page.relative_to(ROOT)}:{number}", words
    for place, text in inline():
        if re.match(r"(uv run|python|pytest) ", text):
            yield place, shlex.split(text)
        elif re.match(r"harness\.\w+ ", text):
            yield place, ["python", "-m", *shlex.split(text)]


ALL = [pytest.param(words, id=f"{place} {shlex.join(words)}") for place, words in lines()]


def without_runner(words):
    """Less `uv run` and the groups it names."""
    if words[:2] != ["uv", "run"]:
        return words
    words = words[2:]
    while words[0] == "--group":
        assert words[1] in PROJECT["dependency-groups"]
        words = words[2:]
    return words


def harness_command(words):
    """(name, arguments) of `python -m harness.NAME ...`, None of any other command."""
    if words[:2] == ["python", "-m"] and words[2].startswith("harness."):
        return words[2].removeprefix("harness."), words[3:]
    return None


OURS = [(name, arguments) for name, arguments in filter(None, (harness_command(without_runner(w)) for _, w in lines()))]
PUBLISHED = "results/published/"
ELSEWHERE = {"--baseline", "--from-mlflow", "s3://bucket/prefix/cifar10"}  # the last: harness/launch/test_shared.py
RUN_HERE = dict.fromkeys(
    (name, tuple(rest))
    for name, rest in OURS
    if name in CHEAP and (not ELSEWHERE & set(rest) or rest[0].startswith(PUBLISHED))
)


def labelled(directory):
    """The labels of a sweep's trials: of its file, or of what is published."""
    if str(directory).startswith(PUBLISHED):
        configs = [folder.read_trial(place / folder.TRIAL).config for place in folder.trial_folders(ROOT / directory)]
    else:
        configs = load_sweep(ROOT / "sweeps" / f"{directory.stem}.yaml", "full", True).trials
    return {label: (label,) for label in labels(configs)}


def check_harness(name, arguments):
    """Raises where there is no such command, argument, sweep file, profile, result, row or trial."""
    assert name in COMMANDS
    if arguments == ["--help"]:
        return
    options = parser_of(name).parse_args(arguments)
    baseline = getattr(options, "baseline", None)
    if name in PATTERNS and (patterns := getattr(options, PATTERNS[name])):
        assert select_by_pattern("--only", patterns, labelled(options.sweep if name == "run" else options.directory))
    given = [item for value in vars(options).values() for item in (value if isinstance(value, list) else [value])]
    for path in (item for item in given if isinstance(item, Path)):
        if path.parts[0] == "sweeps":
            assert options.profile in (None, "full", *read(ROOT / path)[0].get("profiles", {}))
        if path.parts[:2] == ("results", "published"):
            assert path.parts[2:] == () or (ROOT / path).is_dir()
        elif path.parts[0] == "results" and path.parts[1:] not in ((), ("*",)):
            sweep = ROOT / "sweeps" / f"{path.parts[1]}.yaml"
            assert sweep.is_file()
            assert baseline is None or baseline in [trial.row for trial in load_sweep(sweep, "full", True).trials]


def check_pytest(arguments):
    """Raises where a path or a marker is not there."""
    if "-m" in arguments:
        assert arguments[arguments.index("-m") + 1] in MARKERS
    for path in (word for word in arguments if "/" in word):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("words", ALL)
def test_a_documented_command_is_one(words):
    tool, *arguments = without_runner(words)
    if harness_command([tool, *arguments]):
        check_harness(*harness_command([tool, *arguments]))
    elif tool == "pytest":
        check_pytest(arguments)
    elif tool == "python" and arguments == ["-m", "harness"]:
        assert entry.main([]) == 0
    elif tool == "python":
        assert (ROOT / arguments[0]).is_file()
    elif "/" in tool:
        assert os.access(ROOT / tool, os.X_OK)
    else:
        assert tool in TOOLS
        assert all((ROOT / word).exists() for word in arguments if "/" in word and "_build" not in word)


def test_every_documented_command_is_run_somewhere():
    assert {name for name, _ in OURS} <= {*CHEAP, *COVERED}
    for path in COVERED.values():
        assert (ROOT / "tests" / path).is_file()


@pytest.fixture
def studies(tmp_path, monkeypatch):
    """A working directory whose results/<sweep> are two small trials of long ago, each under the sweeps' names."""
    for path in (ROOT / "sweeps").glob("*.yaml"):
        for trial in ("cnn5", "cerdeq"):
            shutil.copytree(GOLDEN / trial, tmp_path / "results" / path.stem / "trials" / trial)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("command", [shlex.join([name, *rest]) for name, rest in RUN_HERE])
def test_what_is_cheap_is_run(command, studies):
    name, *arguments = shlex.split(command)
    for study in arguments:
        if study.startswith(PUBLISHED):
            shutil.copytree(ROOT / study, study)
    assert main(name, arguments) == 0


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_quickstart_and_what_follows_it(tmp_path):
    """As users do, in a new directory: what the docs ask of results/cifar10 is asked of results/quickstart."""

    def run(*words):
        shown = subprocess.run([sys.executable, "-m", *words], cwd=tmp_path, capture_output=True, text=True)
        assert shown.returncode == 0, shown.stdout + shown.stderr

    run("harness.run", str(ROOT / "sweeps/quickstart.yaml"))
    assert {path.suffix for path in (tmp_path / "results/quickstart").glob("leaderboard.*")} >= {".md", ".csv", ".tex"}
    for words in (
        ["tables"],
        ["paired"],
        ["recheck", "--images", "20"],
        ["certify", "--images", "20", "--seconds", "2", "--workers", "1"],
    ):
        run(f"harness.{words[0]}", "results/quickstart", *words[1:])
    trials = sorted((tmp_path / "results/quickstart/trials").iterdir())
    run("harness.benchmark", "--only", "bounds", "--trained", str(trials[0]), "--images", "2")
