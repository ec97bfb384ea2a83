"""`python -m harness.tables`: what the files and the terminal show."""

import json

import pytest
from made_networks import add, add_errors, metrics, text

from harness.command_line import main
from harness.common import names
from harness.leaderboard.files import write_leaderboard
from harness.leaderboard.table import build_leaderboard
from harness.storage import files, folder


@pytest.fixture
def printed(sweep, capsys):
    """A function to what `harness.tables` prints of the sweep."""

    def show():
        assert main("tables", [str(sweep), "--latex"]) == 0
        return capsys.readouterr().out

    return show


@pytest.mark.parametrize(
    ("attack", "notes"),
    [
        (
            (10, 0.25),
            [
                "The attack moves a pixel by at most 1.38 eps, and crossing the ball takes 2 eps: attack errors "
                "may be too low (raise evaluation.attack_step)."
            ],
        ),
        ((3, 1.0), []),
    ],
)
def test_a_note_says_that_an_attack_cannot_cross_the_ball(sweep, attack, notes):
    """Crossing takes 2 eps; the sizes of the steps fall linearly from `attack_step` to 0."""
    add(sweep, metrics(), evaluation={"attack_steps": attack[0], "attack_step": attack[1]})
    assert build_leaderboard(sweep).sections[0].notes == notes


def test_numbers_are_written_in_their_column_s_format(sweep):
    add(sweep, metrics(bound_width=0.0123456))
    (section,) = build_leaderboard(sweep).sections
    cells = section.cells.iloc[0]
    assert list(cells[["bound width", "relative width", "parameters"]]) == ["0.0123", "3.20", "17,190,602"]


def test_latex_has_the_page_s_warnings_and_no_network_is_best_for_having_decided_all(sweep):
    """A network that predicts one class for all images leaves none undecided."""
    collapsed = {"standard_error": 90.0, "attack_error": 90.0, "undecided": 0.0}
    add(sweep, metrics(60.0, undecided=3.0), model="cnn5", profile="cpu", warnings=["50% of the bounds are loose"])
    add(sweep, metrics(90.0, **collapsed), model="cnn7", profile="cpu")
    write_leaderboard(sweep, latex=True)
    page = text(sweep, "tex")
    assert r"cnn5 ibp (see warning) & \textbf{60.00} & \textbf{57.00} & \textbf{46.00} & 3.00 & 1 \\" in page
    assert r"cnn7 ibp & 90.00 & 90.00 & 90.00 & 0.00 & 1 \\" in page
    below = page.partition(r"\end{tabular}}")[2].partition(r"\end{table}")[0]
    assert "Warning: cnn5 ibp: 50\\% of the bounds are loose" in below and "not comparable with published" in below


def test_rows_without_a_significant_difference_from_the_best_are_marked(sweep, printed):
    for model, errors in (("cnn7", [10, 11, 12, 10]), ("cnn9", [40, 41, 43, 41]), ("cnn5", [9, 14, 13, 10])):
        add_errors(sweep, errors, model=model)
    shown = printed()
    cells = [
        [cell.strip() for cell in line.split("|")[1:3]] for line in text(sweep, "md").splitlines() if "| cnn" in line
    ]
    assert cells[:3] == [["1 ~", "cnn7 ibp"], ["2 ~", "cnn5 ibp"], ["3", "cnn9 ibp"]]
    assert [line.split()[:3] for line in shown.splitlines() if line[:1].isdigit()] == [
        ["1", "~", "cnn7"],
        ["2", "~", "cnn5"],
        ["3", "cnn9", "ibp"],
    ]
    sentence = "best: cnn7 ibp, 10.8 %; significantly better than cnn9 ibp (p "
    assert sentence in shown and sentence in text(sweep, "md")
    assert r"cnn5 ibp$^{\sim}$" in text(sweep, "tex")


def test_what_stages_decided_stands_below_the_rows_that_have_it(sweep):
    counts = {names.examples_at("ibp"): 90, names.seconds_of("ibp"): 1234.5}
    for seed, decided in enumerate((60, 40)):
        add(sweep, metrics(60.0, **counts | {names.decided_by("ibp"): decided}), seed=seed)
    add(sweep, metrics(70.0), model="cnn5")
    add(sweep, metrics(80.0, **{names.examples_at("ibp"): 0, names.decided_by("ibp"): 0}), model="cnn9")
    write_leaderboard(sweep)
    assert "\n| cnn7 ibp | 50 of 90, 1,234 s |" in text(sweep, "md")
    assert "\n| cnn9 ibp | 0 of 0            |" in text(sweep, "md")
    assert "\n| cnn5 ibp |" not in text(sweep, "md")


def test_seconds_are_said_to_lack_those_of_answers_that_other_evaluations_gave(sweep):
    counts = {names.examples_at("ibp"): 90, names.seconds_of("ibp"): 1234.5, names.decided_by("ibp"): 60}
    path = add(sweep, metrics(60.0, **counts)) / folder.RESULT
    write_leaderboard(sweep)
    assert "other evaluations" not in text(sweep, "md")
    files.write_json(path, json.loads(path.read_text()) | {"taken_over": {"0fdc3d43": 6, "1a2b3c4d": 1}})
    write_leaderboard(sweep)
    assert "Seconds are without those of 7 answers that other evaluations of these networks gave." in text(sweep, "md")


@pytest.mark.parametrize("what", ["is not a directory", "holds no networks", "holds no network that can be read"])
def test_a_directory_without_readable_networks_is_refused_in_a_line(tmp_path, capsys, what):
    directory = tmp_path / "study"
    if what != "is not a directory":
        directory.mkdir()
    if what == "holds no network that can be read":
        files.write_json(directory / "networks/x" / folder.TRAINING, [])
    assert main("tables", [str(directory)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {directory} {what}") and len(error.splitlines()) == 1
    assert not list(tmp_path.rglob("leaderboard.*"))
