"""`python -m harness.tables`: what the four files and the terminal say."""

import subprocess
import sys
from pathlib import Path

import pytest
from judged_trials import add, metrics, text
from rich.console import Console
from test_paired import RIGHT, WRONG
from test_paired import add as judged

from harness.analysis import tables
from harness.command_line import main
from harness.config.settings import EvaluationSettings, TrainSettings
from harness.storage import files, folder

PROJECT = Path(__file__).resolve().parents[3]


def test_the_first_lines_say_what_the_numbers_are(sweep):
    small = {"width": 0.25, "train_images": 10000, "train": TrainSettings(10, decay_epochs=(), ramp_epochs=5)}
    tested = {"validation_images": 500, "evaluation": EvaluationSettings(test_images=300)}
    add(sweep, metrics(), profile="cpu", **small, **tested)
    tables.write(sweep)
    page = text(sweep, "md")
    for said in (
        "Leaderboard of the sweep study",
        "cifar10, eps 8/255, profile cpu",
        "profile cpu (width 0.25, train images 10,000, epochs 10) and are not comparable with published ones",
        "All errors are measured on 500 validation images",
    ):
        assert said in page
        assert page.index(said) < page.index("certified error")
    assert "of the test images" not in page


def test_a_share_of_the_test_images_is_told(sweep):
    add(sweep, metrics(), evaluation=EvaluationSettings(test_images=300))
    tables.write(sweep)
    assert "Errors are measured on 300 of the test images" in text(sweep, "md")


def test_the_full_profile_has_no_caveats(sweep):
    add(sweep, metrics())
    (section,) = tables.build(sweep).sections
    assert section.notes == []


def test_the_markdown_table_is_aligned_and_formatted(sweep):
    add(sweep, metrics(bound_width=0.0123456), options={"a|b": "*x*"})
    tables.write(sweep)
    lines = [line for line in text(sweep, "md").splitlines() if line.startswith("|")]
    assert len({len(line) for line in lines}) == 1
    assert "a\\|b=\\*x\\*" in lines[2]
    for cell in ("65.00", "0.0123", "3.20", "17,190,602"):
        assert f"| {cell} " in lines[2]


def test_what_configs_and_results_say_is_never_markup(sweep):
    attack = "<script>alert('x')</script>"
    add(sweep, metrics(), model=attack, options={attack: attack}, profile=attack, warnings=[attack])
    add(sweep, failure={"error": attack}, model=attack, method=attack)
    tables.write(sweep)
    assert "<script" not in text(sweep, "md")


def test_latex_escapes_everything_and_marks_the_best(sweep):
    attack = r"\input{x} $5 & 50% #1 a_b ^ ~"
    add(sweep, metrics(60.0), model="cnn5", warnings=[attack])
    add(sweep, metrics(70.0), model=attack, profile="full")
    tables.write(sweep)
    lines = text(sweep, "tex").splitlines()
    assert any(line.startswith(r"cnn5 ibp & \textbf{60.00} & ") for line in lines)
    (told,) = [line for line in lines if "input" in line and "70.00" in line]
    assert told.startswith(
        r"\textbackslash{}input\{x\} \$5 \& 50\% \#1 a\_b \textasciicircum{} \textasciitilde{} ibp & 70.00"
    )


def test_rebuilding_gives_identical_files(sweep):
    for seed in (2, 0, 1):
        add(sweep, metrics(60 + seed), seed=seed, warnings=["collapsed"])
    add(sweep, failure={"error": "x"}, seed=3)
    first = [path.read_bytes() for path in tables.write(sweep)[0].files]
    assert [path.read_bytes() for path in tables.write(sweep)[0].files] == first
    assert sorted(path.name for path in sweep.iterdir()) == [
        *("leaderboard.csv", "leaderboard.json", "leaderboard.md", "leaderboard.tex"),
        "trials",
    ]
    assert "collapsed (seed 0, 1, 2)" in first[0].decode()


@pytest.mark.parametrize("width", [80, 160])
def test_the_terminal_shows_numbers_notes_failures_and_files(sweep, width):
    add(sweep, metrics(), options={"markup": "[red]"}, profile="cpu")
    add(sweep, metrics(70.0), profile="cpu")
    add(sweep, failure={"error": "no [memory]"}, model="big", profile="cpu")
    console = Console(width=width)
    with console.capture() as capture:
        tables.show(*tables.write(sweep), console)
    printed = capture.get()
    assert all(said in printed for said in ("65.00", "[red]", "not comparable", "big ibp seed 0: failed: no [memory]"))
    assert all(str(path) in printed for path in (sweep / "leaderboard.md", sweep / "leaderboard.tex"))


def test_the_command_prints_the_table_and_where_it_was_written(sweep, capsys):
    add(sweep, metrics())
    main("tables", [str(sweep)])
    printed = capsys.readouterr().out
    assert "65.00" in printed
    assert str(sweep / "leaderboard.json") in printed


@pytest.mark.parametrize("what", ["is not a directory", "holds no trials", "holds no trial that can be read"])
def test_a_directory_without_readable_trials_is_refused_in_a_line(tmp_path, capsys, what):
    directory = tmp_path / "study"
    if what != "is not a directory":
        directory.mkdir()
    if what == "holds no trial that can be read":
        files.write_json(directory / "trials/x" / folder.TRIAL, [])
    assert main("tables", [str(directory)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {directory} {what}")
    assert len(error.splitlines()) == 1
    assert not list(tmp_path.rglob("leaderboard.*"))


WITHOUT_PACKAGES = """
import runpy, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("ray", "mlflow", "pydantic", "torch"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
runpy.run_module("harness.tables", run_name="__main__", alter_sys=True)
"""


def test_the_command_runs_without_ray_mlflow_pydantic_and_torch(sweep):
    add(sweep, metrics())
    command = [sys.executable, "-c", WITHOUT_PACKAGES, str(sweep)]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "65.00" in done.stdout


def test_rows_that_the_paired_test_does_not_tell_from_the_best_are_marked(sweep):
    for seed, (best, far, near) in enumerate([(10, 40, 9), (11, 41, 14), (12, 43, 13), (10, 41, 10)]):
        for model, wrong in (("cnn7", best), ("cnn9", far), ("cnn5", near)):
            judged(sweep, [WRONG] * wrong + [RIGHT] * (100 - wrong), seed=seed, model=model)
    console = Console(width=100)
    with console.capture() as capture:
        tables.show(*tables.write(sweep), console)
    lines = [line.split("|") for line in text(sweep, "md").splitlines() if "| cnn" in line]
    assert [(line[1].strip(), line[2].strip()) for line in lines[:3]] == [
        ("1 ~", "cnn7"),
        ("2 ~", "cnn5"),
        ("3", "cnn9"),
    ]
    assert all(f"~ {model} ibp" in capture.get() for model in ("cnn7", "cnn5"))
    assert "~ cnn9" not in capture.get()
