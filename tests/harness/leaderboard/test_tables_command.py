"""`python -m harness.tables` of some radii, of several studies, and in LaTeX."""

import shutil

import pytest
from made_networks import add, add_errors, metrics, publish, text

from harness.command_line import main
from harness.leaderboard.table import build_leaderboard
from harness.settings import Recipe
from harness.storage import study_tables

RADII = ("1/255", "2/255", "4/255")


@pytest.fixture
def radii(sweep):
    """A study with an evaluation at each radius, the middle one the main one, and its leaderboard."""
    for number, eps in enumerate(RADII):
        for model in ("cnn5", "cnn7"):
            more = {"eps": eps, "is_main": eps == "2/255", "train": Recipe(eps="2/255")}
            add(sweep, metrics(50.0 + number), model=model, **more)
    return sweep


def test_the_radii_that_are_asked_for_are_printed_and_nothing_is_written(radii, capsys):
    assert main("tables", [str(radii), "--eps", "1/255, 4/255"]) == 0
    printed = capsys.readouterr().out
    headings = [line for line in printed.splitlines() if line.startswith("study: ")]
    assert [heading.partition(", eps ")[2].partition(",")[0] for heading in headings] == ["1/255", "4/255"]
    assert "50.00" in printed and "52.00" in printed and "51.00" not in printed
    assert not list(radii.glob("leaderboard.*")) and "leaderboard" not in printed


def test_a_radius_that_the_results_lack_is_refused_with_those_they_have(radii, capsys):
    assert main("tables", [str(radii), "--eps", "1/255,8/255"]) == 2
    assert "--eps: found '8/255', allowed: a radius of the results: 1/255, 2/255, 4/255" in capsys.readouterr().err
    for options in (["--status"], ["--latex"]):
        assert main("tables", [str(radii), "--eps", "1/255", *options]) == 2
        assert capsys.readouterr().err.startswith("error: --eps: ")
    assert not list(radii.glob("leaderboard.*"))


def test_rows_are_compared_at_the_radii_that_are_asked_for(sweep, capsys):
    for eps in RADII:
        for model, errors in (("cnn5", [10, 12, 11]), ("cnn7", [30, 31, 35])):
            add_errors(sweep, errors, model=model, eps=eps)
    assert main("tables", [str(sweep), "--compare", "--eps", "4/255"]) == 0
    printed = capsys.readouterr().out
    assert "eps 4/255" in printed and "eps 2/255" not in printed and "eps 1/255" not in printed


@pytest.fixture
def two(sweep, tmp_path):
    """Two published studies, tables alone, of networks on the same images, and their results before that."""
    studies = [tmp_path / "results" / name for name in ("short", "long")]
    errors = {160: ([30, 32, 33], [33, 32, 36]), 200: ([20, 21, 24], [22, 20, 25])}
    for path, (epochs, (first, second)) in zip(studies, errors.items(), strict=True):
        add_errors(path, first, train=Recipe(epochs=epochs))
        add_errors(path, second, model="cnn9", train=Recipe(epochs=epochs))
        study_tables.write_study_tables(path, path)
        shutil.rmtree(path / "networks")
    return studies


def test_several_published_studies_have_their_tables_written_each(two, capsys):
    assert main("tables", [*map(str, two)]) == 0
    written = [*(path / "leaderboard.md" for path in two), two[0].parent / "index.html"]
    assert capsys.readouterr().out.split() == [*map(str, written)]
    assert all("cnn9 ibp" in text(path, "md") for path in two)


def test_several_studies_are_one_table_in_latex_with_marks_and_what_was_compared(two, capsys):
    assert main("tables", [*map(str, two), "--compare", "cnn7 *epochs=200", "--latex"]) == 0
    path = two[0] / "comparisons.tex"
    assert capsys.readouterr().out.split()[-1] == str(path) and not (two[0] / "leaderboard.tex").exists()
    errors, pairs = path.read_text().split(r"\begin{table}")[1:]
    assert r"cnn7 ibp sweep=long train.epochs=200$^{\sim}$ & \textbf{21.67 $\pm$ 2.08}" in errors
    assert errors.count("cnn") == 4 and r"\label{tab:comparison-0}" in errors
    assert (
        r"cnn7 ibp sweep=short train.epochs=160 & cnn7 ibp sweep=long train.epochs=200 & +10.00 $\pm$ 1.00 & 3" in pairs
    )
    p = [line.split(" & ")[-2:] for line in pairs.splitlines() if line.startswith("cnn")]
    assert len(p) == 3 and sum(r"\textbf{" in corrected for _, corrected in p) == 2
    assert r"\label{tab:comparison-pairs-0}" in pairs


def test_sections_of_one_study_stand_in_order_and_say_in_what_they_differ(sweep):
    """The main evaluation first, then by eps; settings that a heading lacks are added where headings would be equal."""
    publish(sweep, "")
    for seed in range(3):
        for certified, more in (
            (60.0, {"is_main": True}),
            (61.0, {"evaluation": {"attack_steps": 50}, "is_main": False}),
            (62.0, {"evaluation": {"attack_steps": 3}, "is_main": False}),
            (40.0, {"eps": "2/255", "is_main": False, "train": Recipe(eps="8/255")}),
        ):
            add(sweep, metrics(certified + seed), seed=seed, **more)
    sections = build_leaderboard(sweep).sections
    assert [section.is_main for section in sections] == [True, False, False, False]
    start, stages = "cifar10, profile full", "ibp > crown-ibp > alpha-crown, all test images"
    assert [section.heading for section in sections][:2] == [
        f"{start}, eps 8/255, {stages}, attack_steps 40",
        f"{start}, eps 2/255, {stages}",
    ]
    by_steps = {section.heading.partition(", attack_steps ")[2]: section for section in sections}
    errors = {steps: section.own["certified_error"].tolist() for steps, section in by_steps.items()}
    assert errors == {"40": [61.0], "": [41.0], "50": [62.0], "3": [63.0]}
    assert by_steps["40"].notes == by_steps["50"].notes == [] and "at most 0.5 eps" in by_steps["3"].notes[0]


def test_labels_of_entries_name_rows_in_tables_latex_and_comparisons(sweep, capsys):
    """Digests of plugins stand where rows would be equal, settings after a label that two rows have."""
    publish(sweep, "")
    plugins = {"own.methods": "e8" * 8}
    add_errors(sweep, [10, 11, 12], entry_label="Ours")
    add_errors(sweep, [20, 21, 22], entry_label="Theirs", options={"a": 1})
    add_errors(sweep, [30, 31, 32], entry_label="Theirs", options={"a": 2})
    add_errors(sweep, [40, 41, 42], model="cnn9", plugins=plugins)
    for digest in ("1" * 16, "2" * 16):
        add_errors(sweep, [50, 51, 52], model="cnn5", plugins={"own.nets": digest})
    assert main("tables", [str(sweep), "--latex"]) == 0
    (section,) = build_leaderboard(sweep).sections
    theirs = [f"Theirs: cnn7 ibp a={number}" for number in (1, 2)]
    equal = [f"cnn5 ibp plugins=own.nets@{str(digest) * 16}" for digest in (1, 2)]
    assert section.labels == ["Ours", *theirs, "cnn9 ibp", *equal]
    assert "| Ours" in text(sweep, "md") and "\nOurs" in text(sweep, "tex") and '\nOurs,"cifar10' in text(sweep, "csv")
    capsys.readouterr()
    assert main("tables", [str(sweep), "--compare", "Ours", "--only", "cnn9 ibp"]) == 0
    assert "cnn9 ibp against Ours" in capsys.readouterr().out
