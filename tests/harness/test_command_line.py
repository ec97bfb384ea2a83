"""`python -m harness`: every command is listed, is a module of its name, and ends in one of five ways."""

import io
import pwd
import re
import signal
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import harness
from harness import __main__ as entry
from harness import command_line
from harness.common.errors import InputError, SettingError, Stopped
from harness.common.patterns import select_by_pattern

HARNESS = Path(harness.__file__).parent


def test_every_command_is_a_module_that_runs_itself():
    modules = {path.stem: path.read_text() for path in HARNESS.glob("*.py")}
    assert {name for name, text in modules.items() if "raise SystemExit(" in text} == set(command_line.COMMANDS)
    for name in command_line.COMMANDS:
        assert f'command_line.main("{name}")' in modules[name]


@pytest.mark.parametrize("name", command_line.COMMANDS)
def test_help_says_what_a_command_does_and_takes(name, capsys):
    with pytest.raises(SystemExit) as stop:
        command_line.main(name, ["--help"])
    printed = capsys.readouterr().out
    assert stop.value.code == 0
    assert f"usage: python -m harness.{name}" in printed
    assert import_module(f"harness.{name}").__doc__.splitlines()[0] in printed


@pytest.mark.parametrize("text", ["± 0.1 ≤ Grüße", "a file's name \udcff"])
def test_nothing_that_is_only_shown_ends_a_command(text, monkeypatch):
    streams = [io.TextIOWrapper(io.BytesIO(), "ascii") for _ in range(2)]
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])
    with pytest.raises(SystemExit):
        command_line.main("tables", [])
    print(text)
    print(text, file=sys.stderr, flush=True)
    assert [stream.errors for stream in streams] == ["readable"] * 2
    expected = "+- 0.1 ? Gr??e\n" if "±" in text else "a file's name ?\n"
    assert streams[1].buffer.getvalue().decode("ascii").endswith(expected)


def test_without_a_command_all_are_listed(capsys):
    assert entry.main([]) == 0
    listed = capsys.readouterr().out
    assert all(f"  {name} " in listed and summary in listed for name, summary in command_line.COMMANDS.items())


def test_an_unknown_command_is_refused_with_the_list(capsys):
    assert entry.main(["rnu"]) == 2
    assert "'rnu'" in (printed := capsys.readouterr()).err
    assert "run" in printed.out


@pytest.mark.parametrize("name", command_line.REMOVED)
@pytest.mark.parametrize("joint", [".", " "])
def test_a_removed_command_is_refused_in_a_line_that_names_what_replaces_it(name, joint):
    command = [sys.executable, "-m", *f"harness{joint}{name}".split(), "something", "--else"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: harness.{name} is gone: {command_line.REMOVED[name]}\n"


@pytest.mark.parametrize("option", ["--status", "--compare=cnn5"])
def test_of_an_option_of_another_command_that_one_is_named(option, capsys):
    with pytest.raises(SystemExit) as stop:
        entry.main(["run", "sweep.yaml", option])
    assert stop.value.code == 2
    expected = f"unrecognized arguments: {option}; python -m harness.tables has such an option\n"
    assert capsys.readouterr().err.endswith(expected)


def test_a_command_whose_output_nobody_reads_ends_quietly(tmp_path):
    sweep = tmp_path / "sweep"
    (sweep / "networks/0").mkdir(parents=True)
    (sweep / "networks/0/training.json").touch()
    command = [sys.executable, "-m", "harness.tables", str(sweep), "--status"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        assert (process.stderr.read(), process.wait()) == ("", 1)


def test_a_user_without_a_home_gets_one(monkeypatch, tmp_path, capsys):
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", lambda user: {}[user])
    with pytest.raises(RuntimeError, match="home"):
        Path.home()
    assert entry.main(["tables", str(tmp_path)]) == 2
    assert "holds no networks" in capsys.readouterr().err and Path.home() == Path("/")


@pytest.mark.parametrize(
    ("outcome", "status", "message"),
    [
        (1, 1, ""),
        (InputError("no such thing"), 2, "error: no such thing"),
        (Stopped(signal.SIGTERM), 143, "stopped by SIGTERM"),
        (KeyboardInterrupt(), 130, "stopped"),
    ],
)
def test_commands_end_alike(monkeypatch, capsys, outcome, status, message):
    def run(options):
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    monkeypatch.setattr("harness.tables.main", run)
    assert command_line.main("tables", ["somewhere"]) == status
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [("run", "sweep.yaml", "--results-dir"), ("tables",)])
def test_an_address_is_no_directory_of_results(capsys, arguments):
    name, *rest = arguments
    assert command_line.main(name, [*rest, "s3://bucket/prefix"]) == 2
    assert re.fullmatch(r"error: s3:/bucket/prefix is an address: give a directory.*\n", capsys.readouterr().err)


def imports_of(code):
    """What a process that runs this code has imported of the packages that take long, and its standard error."""
    code += "\nprint([name for name in ('torch', 'ray', 'mlflow', 'matplotlib') if name in sys.modules])\n"
    done = subprocess.run([sys.executable, "-c", f"import sys\n{code}"], capture_output=True, text=True, timeout=300)
    return done.stdout.splitlines()[-1], done.stderr


def test_help_imports_nothing_that_takes_long():
    code = (
        "import contextlib\n"
        "from harness import __main__\n"
        "for name in [*__main__.command_line.COMMANDS, '']:\n"
        "    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(None):\n"
        "        __main__.main([*([name] if name else []), '--help'])"
    )
    assert imports_of(code)[0] == "[]"


REFUSED_EARLY = """
name: study
dataset: {dataset}
eps: 8/0
seeds: [0]
train: {{epochs: 0}}
evaluation: {{stages: [ibp, crwon], test_image: 3}}
trials:
- {{model: cnn77, method: [ibp, ibbp], options: {{depth: [5, 7]}}}}
- {{model: [cnn5, cerdek], method: ibp, train: {{kapa: 1}}, zip: [model, options.depth]}}
profiles: {{cpu: {{width: 0.1}}}}
"""


@pytest.mark.parametrize("dataset", ["digitss", "{folder: images, nme: x}"])
def test_what_needs_no_torch_is_refused_without_it_and_all_of_it_at_once(tmp_path, dataset):
    path = tmp_path / "study.yaml"
    path.write_text(REFUSED_EARLY.format(dataset=dataset))
    imports, message = imports_of(f"from harness import command_line\ncommand_line.main('run', [{str(path)!r}])")
    lines = [line.removeprefix("error: ").removeprefix(f"{path}: ") for line in message.splitlines()]
    keys = [line.partition(": ")[0] for line in lines]
    assert sorted(keys) == sorted([
        "dataset" if dataset == "digitss" else "dataset.nme", "eps", "train.epochs", "evaluation.stages",
        "evaluation.test_image", "trials.0.model", "trials.0.method", "trials.1.model", "trials.1.train.kapa",
    ])  # fmt: skip
    assert imports == "[]"


@pytest.mark.parametrize("options", [["--set", "widht=1"], ["--profile", "cpuu"], ["--set", "trials=[{model: cnn5}]"]])
def test_a_wrong_profile_or_change_of_a_file_is_refused_without_torch(options):
    arguments = [str(HARNESS.parent / "sweeps/quickstart.yaml"), *options]
    imports, message = imports_of(f"from harness import command_line\ncommand_line.main('run', {arguments})")
    assert message.startswith("error: ") and imports == "[]"


def test_names_that_are_listed_for_a_start_without_torch_are_those_that_are_registered():
    code = (
        "from baselines import registry\nfrom harness.common import method_names\nimport harness.methods\n"
        "registry.import_networks()\n"
        "assert list(registry._BUILDERS) == list(registry._NAMES)\n"
        "assert list(method_names.METHODS) == list(method_names._NAMES)"
    )
    assert imports_of(code)[1] == ""


def test_the_documentation_has_every_exit_status_and_what_it_means():
    page = (HARNESS.parent / "docs/commands.md").read_text()
    documented = dict(re.findall(r"^\| (\d+) \| ([^|]+) \|", page, re.MULTILINE))
    assert documented == {str(status): meaning for status, meaning in command_line.STATUSES.items()}


def test_patterns_mean_by_any_name_and_each_must_mean_something():
    named = {1: ("cnn5 ibp seed 0", "a0"), 2: ("cerdeq ibp groups=[2] seed 0", "b1"), 3: ("cnn7 ibp seed 0", "b2")}
    assert select_by_pattern("--only", ["b*"], named) == [2, 3]
    assert select_by_pattern("--only", ["a0", "cnn*"], named) == [1, 3]
    itself = "cerdeq ibp groups=[2] seed 0"  # which reads as a pattern of something else
    assert select_by_pattern("--only", [itself], named) == [2]
    named[4] = ("cerdeq ibp groups=2 seed 0", "b3")  # which that, as a pattern, would match
    assert select_by_pattern("--only", [itself], named) == [2]
    assert select_by_pattern("--only", [], named) == []
    with pytest.raises(SettingError, match=r"--only.*'cnn9\*'.*\n  cnn5 ibp seed 0  a0\n  cerdeq"):
        select_by_pattern("--only", ["cnn5*", "cnn9*"], named)


def test_run_without_a_file_lists_the_sweep_files_with_their_questions(tmp_path, monkeypatch, capsys):
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps/one.yaml").write_text("# Does it help?\nname: one\n")
    monkeypatch.chdir(tmp_path)
    assert command_line.main("run", []) == 0
    assert capsys.readouterr().out == "sweeps/one.yaml: Does it help?\n"
    monkeypatch.chdir(tmp_path / "sweeps")
    assert command_line.main("run", []) == 2
    assert "there is no sweeps/ here to list" in capsys.readouterr().err
