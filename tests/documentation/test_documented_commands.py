"""Commands of README, docs and results/*.md: each is parsed and names what exists; cheap ones are run.

Sweep files load: tests/harness/config/test_sweep_to_study.py.
"""

import functools
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from pages import ROOT, blocks, inline
from project_sweeps import SWEEPS, why_not_loadable

from harness import tables
from harness.command_line import COMMANDS, main, parser_of
from harness.common.patterns import select_by_pattern
from harness.config.expansion import expand_file
from harness.config.file import read, read_file
from harness.leaderboard import comparisons
from harness.report.figures import catalogue
from harness.storage import folder
from harness.storage.study_tables import read_stored_states
from harness.storage.sweep_file import SWEEP

GROUPS = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
GOLDEN = ROOT / "tests/harness/golden"
CHEAP = ("tables",)
PATTERNS = {"run": "only", "recheck": "only", "publish": "weights"}
NEEDS_MORE = {"--compare", "results/search-cifar10/search/SAMPLER-HASH", "results/*"}
"""Arguments of cheap commands that need other results than `studies` has, or minutes."""


def commands():
    """(where, words) of every command in a `sh` block or in backticks, without `uv run`."""
    lines = [(where, text) for where, text in inline() if re.match(r"(uv run|python|pytest) ", text)]
    lines += [(where, f"python -m {text}") for where, text in inline() if re.match(r"harness\.\w+ ", text)]
    for block in blocks("sh"):
        own, _, _ = block.text.partition("git worktree add ")  # what follows is of another commit
        lines += [(str(block), line) for line in own.replace("\\\n", "").splitlines()]
    for where, line in lines:
        words = shlex.split(line, comments=True)
        if words[:2] == ["uv", "run"]:
            words = words[2:]
        while words[:1] == ["--group"]:
            assert words[1] in GROUPS
            words = words[2:]
        if words:
            yield where, words


ALL = list(commands())
OURS = [(words[2].removeprefix("harness."), words[3:]) for _, words in ALL if words[:2] == ["python", "-m"]]
PUBLISHED = "results/published/"
OWN = "own"
"""The sweep of a user's own file."""
RUN_HERE = {
    shlex.join([name, *arguments])
    for name, arguments in OURS
    if name in CHEAP and (not NEEDS_MORE & {*arguments} or arguments[0].startswith(PUBLISHED))
    if arguments[1:] or not arguments[0].startswith(PUBLISHED)  # those without: tests/results
}


def sweep_of(name):
    """The project's sweep file of this name, None without one."""
    return next((path for path in SWEEPS if path.stem == name), None)


@functools.cache
def labels_of(path):
    """The names of a sweep's networks: of its file, or of published results."""
    if str(path).startswith(PUBLISHED) and path.suffix != ".yaml":
        configs = [state.training.config for state in read_stored_states(ROOT / path).values()]
    else:
        file = sweep_of(path.stem)
        if reason := why_not_loadable(file):
            pytest.skip(reason)
        configs = expand_file(read_file(file, "full", lambda: True)).trainings
    return {config.key(""): config.names(config.key("")) for config in configs}


def check_harness_command(name, arguments):
    """Raise an error where there is no such command, argument, sweep file, profile, result, row or network."""
    assert name in COMMANDS
    if arguments == ["--help"]:
        return
    options = parser_of(name).parse_args(arguments)
    if name in PATTERNS and (patterns := getattr(options, PATTERNS[name])):
        directory = options.files[0] if name == "run" else options.directory
        directory = directory.parent if directory.name == SWEEP else directory
        assert select_by_pattern("--only", patterns, labels_of(directory))
    values = [item for value in vars(options).values() for item in (value if isinstance(value, list) else [value])]
    for path in [value for value in values if isinstance(value, Path)]:
        if path.suffix == ".yaml" and path.parts[0] in ("sweeps", "results") and path.name != SWEEP:
            assert options.profile in (None, "full", *read(ROOT / path)[0].get("profiles", {}))
        if path.parts[:2] == ("results", "published"):
            assert (ROOT / path).exists()
        elif path.parts[0] == "results" and path.parts[1:] not in ((), ("*",)):
            file = sweep_of(path.parts[1])
            assert file or path.parts[1] == OWN
            if baseline := getattr(options, "compare", None):
                study = expand_file(read_file(file, "full", lambda: True))
                assert baseline in [training.row for training in study.trainings]


@pytest.mark.parametrize("words", [pytest.param(words, id=f"{where} {shlex.join(words)}") for where, words in ALL])
def test_a_documented_command_can_be_given(words):
    tool, *arguments = words
    if tool == "python" and arguments[0] == "-m":
        module, *arguments = arguments[1:]
        assert module.partition(".")[0] == "harness"
        if module != "harness":
            check_harness_command(module.removeprefix("harness."), arguments)
    elif tool == "ray":
        from ray.scripts.scripts import cli  # of Ray's, which takes a second

        cli.commands[arguments[0]].make_context(arguments[0], arguments[1:])  # parses, and does nothing
    else:
        for path in [word for word in words if "/" in word and "_build" not in word]:
            assert (ROOT / path).exists(), path


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A directory with results: those published, and of each sweep that a command names two small networks."""
    directory = tmp_path_factory.mktemp("work")
    for study in {word for command in RUN_HERE for word in command.split() if word.startswith("results/")}:
        if study.startswith(PUBLISHED):
            shutil.copytree(ROOT / study, directory / study)
        else:
            for network in ("cnn5", "cerdeq"):
                shutil.copytree(GOLDEN / network, directory / study / folder.NETWORKS / network)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(catalogue, "FIGURES", [])  # drawn in tests/harness/report
        patch.setattr(tables, "build_leaderboard", functools.cache(tables.build_leaderboard))
        patch.setattr(comparisons, "_read_right", functools.cache(comparisons._read_right))
        yield directory


@pytest.mark.parametrize("command", sorted(RUN_HERE))
def test_a_cheap_command_runs(command, directory, monkeypatch):
    monkeypatch.chdir(directory)
    name, *arguments = shlex.split(command)
    assert main(name, arguments) == 0


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_quickstart_and_what_follows_it(tmp_path):
    """As users do, in a new directory: what the docs ask of results/cifar10 is asked of results/quickstart."""

    def run(*words):
        shown = subprocess.run([sys.executable, "-m", *words], cwd=tmp_path, capture_output=True, text=True)
        assert shown.returncode == 0, shown.stdout + shown.stderr

    run("harness.run", str(ROOT / "sweeps/quickstart.yaml"))
    assert {path.suffix for path in (tmp_path / "results/quickstart").glob("leaderboard.*")} >= {".md", ".csv", ".json"}
    for words in (["tables"], ["tables", "--compare"], ["recheck", "--images", "20"]):
        run(f"harness.{words[0]}", "results/quickstart", *words[1:])
    change = "evaluation={stages: [ibp, crown-ibp, bab], test_images: 20, bab_seconds: 2}"
    run("harness.run", "results/quickstart/sweep.yaml", "--set", change)
    network_dirs = folder.network_folders(tmp_path / "results/quickstart")
    run("harness.benchmark", "--only", "bounds", "--trained", str(network_dirs[0]), "--images", "2")
