"""Tables have what the last command in a directory asked for, as its sweep.yaml says; the rest is counted in a line."""

import pytest
from made_networks import add, metrics, read_json

from harness.command_line import main
from harness.config.yaml_text import format_yaml
from harness.leaderboard.files import write_leaderboard
from harness.leaderboard.table import NOT_ASKED, build_leaderboard
from harness.report.sweep_page import write_sweep
from harness.storage import folder
from harness.storage.sweep_file import SWEEP

LINE = "Left out: 3 evaluations of 3 networks: the last command did not ask for this. `harness.tables` with `--all`"


def ask(sweep, *evaluation_dirs, profile="full"):
    """Write a sweep.yaml that asks for the networks and evaluations of these folders."""
    networks = sorted({folder.network_of(path).name for path in evaluation_dirs})
    evaluations = sorted({path.name for path in evaluation_dirs})
    content = {"name": "study", "ran": {"profile": profile, "networks": networks, "evaluations": evaluations}}
    (sweep / SWEEP).write_text(format_yaml(content))


@pytest.fixture
def edited(sweep):
    """A study whose file had a row more, which was the best, another profile and another evaluation."""
    asked = [add(sweep, metrics(60.0), seed=seed) for seed in (0, 1)]
    add(sweep, metrics(20.0), model="cnn5")
    add(sweep, metrics(30.0), model="cnn7", profile="cpu", width=0.5)
    add(sweep, metrics(40.0), eps="1/255", is_main=False)
    ask(sweep, *asked)
    return sweep


def test_what_the_last_command_did_not_ask_for_is_no_row_and_is_counted(edited):
    (section,) = write_sweep(edited).sections
    assert section.own["label"].tolist() == ["cnn7 ibp"] and section.own["seeds"].tolist() == [2]
    for file in ("leaderboard.md", folder.REPORT):
        content = (edited / file).read_text().replace("<code>", "`").replace("</code>", "`")
        assert LINE in content and "cnn5" not in content
    assert [row["certified_error"] for row in read_json(edited)] == [60.0]


def test_all_shows_the_rest_marked_and_writes_nothing(edited, capsys):
    write_leaderboard(edited)
    before = {path: path.read_bytes() for path in edited.glob("*.*")}
    assert main("tables", [str(edited), "--all"]) == 0
    printed = capsys.readouterr().out
    assert "cnn5 ibp (see warning)" in printed and f"Warning: cnn5 ibp: {NOT_ASKED} (seed 0)" in printed
    assert "profile cpu" in printed and "eps 1/255" in printed and "Left out" not in printed
    assert "cnn7 ibp (see warning)" not in printed.partition("profile full, eps 8/255")[2].partition("profile")[0]
    assert {path: path.read_bytes() for path in edited.glob("*.*")} == before


def test_a_directory_without_the_file_shows_everything(edited):
    (edited / SWEEP).unlink()
    leaderboard = build_leaderboard(edited)
    assert len(leaderboard.sections) == 3 and leaderboard.left_out == ""


def test_a_directory_of_which_nothing_is_asked_for_shows_everything_marked(edited):
    ask(edited, profile="other")
    leaderboard = build_leaderboard(edited)
    assert len(leaderboard.sections) == 3 and all(section.warnings for section in leaderboard.sections)


def test_only_prints_these_rows(edited, capsys):
    assert main("tables", [str(edited), "--all", "--only", "cnn5*"]) == 0
    printed = capsys.readouterr().out
    assert "cnn5 ibp" in printed and "cnn7" not in printed and "profile cpu" not in printed
    assert main("tables", [str(edited), "--only", "cnn5*"]) == 2
    assert "--only: found 'cnn5*', allowed: one of\n  cnn7 ibp" in capsys.readouterr().err
