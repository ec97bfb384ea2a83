"""Leaderboards that recheck compares with the results: those of earlier versions are accepted, lies in them are not."""

import shutil

import pytest
from made_trials import add, add_errors, metrics, publish, text

from harness.leaderboard.changed import changed_files
from harness.leaderboard.files import leaderboard_texts, write_leaderboard
from harness.leaderboard.summary import full_table


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A sweep whose leaderboard.md has all columns, and network, method and options in place of labels."""
    sweep = tmp_path_factory.mktemp("results") / "study"
    sweep.mkdir()
    publish(sweep, "cifar10,8/255,CNN-7,IBP,50,64.72,Paper\n")
    for model, errors in (("cnn7", [10, 11, 12]), ("cnn9", [40, 41, 43])):
        add_errors(sweep, errors, model=model, options={"a|b": 1})
    add(sweep, failure="the loss is not finite", seed=4)
    leaderboard, summaries = write_leaderboard(sweep)
    markdown, *_ = leaderboard_texts(
        leaderboard, summaries, lambda section, summary: full_table(section, summary).drop(columns="row")
    )
    (sweep / "leaderboard.md").write_text(markdown.replace("are numbers from papers.", "are published numbers."))
    return sweep


@pytest.fixture
def earlier(original, tmp_path):
    """A copy of it."""
    return shutil.copytree(original.parent, tmp_path / "copy") / "study"


def test_today_s_and_earlier_leaderboards_follow_from_the_results(earlier):
    assert "| bound width" in text(earlier, "md") and changed_files(earlier) == []
    write_leaderboard(earlier)
    assert "| bound width" not in text(earlier, "md") and changed_files(earlier) == []


def columns(text, change):
    """Change the cells of each line of the first table."""
    lines = text.splitlines(keepends=True)
    first = next(number for number, line in enumerate(lines) if line.startswith("| #"))
    for number, line in enumerate(lines[first:], first):
        if not line.startswith("| "):
            break
        lines[number] = "| " + " | ".join(change(line[2:-3].split(" | "))) + " |\n"
    return "".join(lines)


LIES = {
    "an error": lambda text: text.replace("11.00", "10.00", 1),
    "a width": lambda text: text.replace("12.3", "11.3", 1),
    "a network": lambda text: text.replace("| cnn9", "| cnn8", 1),
    "a number from a paper": lambda text: text.replace("64.72", "65.72", 1),
    "a sentence": lambda text: text.replace("significantly better", "much better"),
    "no certified errors": lambda text: columns(text, lambda cells: cells[:5] + cells[6:]),
    "no names": lambda text: columns(text, lambda cells: cells[:1] + cells[2:]),
    "another column": lambda text: columns(text, lambda cells: [*cells, cells[0]]),
    "a row less": lambda text: "".join(line for line in text.splitlines(keepends=True) if "| cnn9" not in line),
    "no failed trial": lambda text: text.replace("the loss is not finite", "stopped"),
    "a table less": lambda text: columns(text, lambda cells: []).replace("|  |\n", ""),
}


@pytest.mark.parametrize("lie", LIES)
def test_lies_in_an_earlier_leaderboard_are_found(earlier, lie):
    changed = LIES[lie](text(earlier, "md"))
    assert changed != text(earlier, "md")
    (earlier / "leaderboard.md").write_text(changed)
    assert [path.name for path in changed_files(earlier)] == ["leaderboard.md"]


def test_a_leaderboard_of_networks_trained_elsewhere_may_have_earlier_words(sweep):
    add(sweep, metrics())
    write_leaderboard(sweep)
    path = sweep / "leaderboard.md"
    path.write_text(path.read_text().replace("are numbers from papers", "are published numbers"))
    assert changed_files(sweep) == []


def test_a_leaderboard_without_rows_follows_from_the_results(sweep):
    add(sweep)
    write_leaderboard(sweep)
    assert changed_files(sweep) == []
