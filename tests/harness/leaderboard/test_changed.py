"""Leaderboards that recheck compares with the results: an older one may lack settings, a changed one is named."""

import json

import pandas as pd
import pytest
from made_networks import add, add_errors, publish, text

from harness.leaderboard.changed import changed_files
from harness.leaderboard.files import write_leaderboard


@pytest.fixture
def written(sweep):
    """A sweep with a leaderboard."""
    publish(sweep, "cifar10,8/255,CNN-7,IBP,50,64.72,Paper\n")
    for model, errors in (("cnn7", [10, 11, 12]), ("cnn9", [40, 41, 43])):
        add_errors(sweep, errors, model=model, options={"a|b": 1})
    add(sweep, failure="the loss is not finite", seed=4)
    write_leaderboard(sweep, latex=True)
    return sweep


def test_a_leaderboard_may_lack_columns_and_its_directory_may_be_renamed(written):
    assert changed_files(written) == []
    table = pd.read_csv(written / "leaderboard.csv", dtype=str, keep_default_na=False)
    table.drop(columns="train.epochs").to_csv(written / "leaderboard.csv", index=False)
    rows = [{name: row[name] for name in row if name != "train.epochs"} for row in json.loads(text(written, "json"))]
    (written / "leaderboard.json").write_text(json.dumps(rows))
    assert changed_files(written) == []
    (written / "leaderboard.tex").unlink()
    assert changed_files(written.rename(written.parent / "renamed")) == []


@pytest.mark.parametrize(
    ("kind", "said", "instead"),
    [
        ("md", "11.00", "10.00"),
        ("md", "significantly better", "much better"),
        ("tex", "11.00", "10.00"),
        ("csv", "64.72", "65.72"),
        ("json", "64.72", "65.72"),
    ],
)
def test_a_changed_file_is_named(written, kind, said, instead):
    before = text(written, kind)
    assert said in before
    (written / f"leaderboard.{kind}").write_text(before.replace(said, instead, 1))
    assert [path.suffix for path in changed_files(written)] == [f".{kind}"]


def test_a_leaderboard_without_rows_follows_from_the_results(sweep):
    add(sweep, failure="stopped")
    write_leaderboard(sweep)
    assert changed_files(sweep) == []
