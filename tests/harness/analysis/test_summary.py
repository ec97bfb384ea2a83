"""The sentences under a leaderboard: who won, by how much, and whether that is certain."""

import pandas as pd
import pytest
from test_paired import RIGHT, WRONG, add

from harness.analysis.leaderboard import build
from harness.analysis.summary import _named, summary


def _lines(sweep):
    table = build(sweep)
    (section,) = table.sections
    return summary(table, section).lines


def _add(sweep, seed, wrong, **config):
    add(sweep, [WRONG] * wrong + [RIGHT] * (100 - wrong), seed=seed, **config)


def test_rows_are_told_from_the_best_where_seeds_agree_and_not_where_they_do_not(tmp_path):
    for seed, (best, far, near) in enumerate([(10, 40, 9), (11, 41, 14), (12, 43, 13), (10, 41, 10)]):
        _add(tmp_path, seed, best)
        _add(tmp_path, seed, far, model="cnn9")
        _add(tmp_path, seed, near, model="cnn5")
    what, won, certain, open_ = _lines(tmp_path)
    assert "lower is better" in what
    assert won == "best: cnn7 ibp, 10.8 %"
    assert certain.startswith("worse for certain (paired t test over 4 seeds, p < 0.05")
    assert certain.endswith(": cnn9 ibp (+30.5 points)")
    assert open_.startswith("not told from it") and open_.endswith(": cnn5 ibp (+0.8 points)")


def test_one_seed_says_nothing_of_training_anew(tmp_path):
    _add(tmp_path, 0, 10)
    _add(tmp_path, 0, 40, model="cnn9")
    assert _lines(tmp_path)[2:] == [
        "that network on other images: 4.9 to 17.6 % (exact 95 % interval)",
        "the others against it, on the seed that both have: cnn9 ibp (+30.0 points); "
        "one seed says nothing of training anew",
    ]


def test_rows_of_another_profile_are_left_to_their_own_section(tmp_path):
    for seed, wrong in enumerate((10, 12)):
        _add(tmp_path, seed, wrong)
        _add(tmp_path, seed, wrong + 5, model="cnn9")
        _add(tmp_path, seed, wrong + 20, profile="cpu", width=0.5)
        _add(tmp_path, seed, wrong + 2, profile="cpu", width=0.5, model="cnn9")
    table = build(tmp_path)
    said = {section.rows["profile"].iloc[0]: summary(table, section).lines for section in table.sections}
    assert said["full"][1] == "best: cnn7 ibp, 11.0 %" and said["cpu"][1] == "best: cnn9 ibp, 13.0 %"
    assert [line.split(": ")[-1] for line in said["full"][2:]] == ["cnn9 ibp (+5.0 points)"]
    assert [line.split(": ")[-1] for line in said["cpu"][2:]] == ["cnn7 ibp (+18.0 points)"]


def test_of_many_rows_the_nearest_are_named():
    rows = pd.DataFrame({"row": [f"cnn{depth}" for depth in range(13)], "difference": range(13)})
    named = _named(rows)
    assert named.startswith("cnn0 (+0.0 points), cnn1 (+1.0 points)") and named.endswith(
        "cnn9 (+9.0 points) and 3 more"
    )
    assert _named(rows[:10]) == named.removesuffix(" and 3 more")


@pytest.mark.parametrize("recipe", [None, 1])
def test_nothing_is_said_of_one_row_or_of_an_older_recipe(tmp_path, recipe):
    models = ["cnn7"] if recipe is None else ["cnn7", "cnn9"]
    for model in models:
        add(tmp_path, [RIGHT, WRONG], model=model, **({} if recipe is None else {"recipe": recipe}))
    assert _lines(tmp_path) == []
