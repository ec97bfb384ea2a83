"""The sentence under a leaderboard: which row is best, which rows it beats, or that seeds are too few."""

import pytest
from made_networks import WRONG, add_errors, add_verdicts

from harness.leaderboard.table import build_leaderboard

EQUILIBRIUM = {"model": "cerdeq", "rho_bound": 0.9}


def summary_of(sweep):
    (section,) = build_leaderboard(sweep).sections
    return section.summary


def test_rows_are_beaten_where_seeds_agree_and_not_where_they_do_not(tmp_path):
    add_errors(tmp_path, [10, 11, 12, 10])
    add_errors(tmp_path, [40, 41, 43, 41], model="cnn9")
    add_errors(tmp_path, [9, 14, 13, 10], model="cnn5")
    add_errors(tmp_path, [70, 80], model="cnn3")
    summary = summary_of(tmp_path)
    assert summary.lines == [
        "best: cnn7 ibp, 10.8 %; significantly better than cnn9 ibp (p < .001); "
        "no significant difference from cnn5 ibp (p = .89); not ranked, with fewer than 3 seeds in common: cnn3 ibp"
    ]
    assert summary.tied == ["cnn7 ibp", "cnn5 ibp"]


@pytest.mark.parametrize(("seeds", "number"), [(1, "1 seed is"), (2, "2 seeds are")])
def test_few_seeds_rank_nothing(tmp_path, seeds, number):
    add_errors(tmp_path, [10, 12][:seeds])
    add_errors(tmp_path, [40, 43][:seeds], **EQUILIBRIUM)
    sentence = f"{number} too few to rank rows; run 5 or more (`--set seeds=[0,1,2,3,4]`)."
    summary = summary_of(tmp_path)
    assert (summary.lines, summary.tied, summary.answer) == ([sentence], [], f"Not known: {sentence}")


def test_the_best_mean_is_not_called_better_than_a_row_that_wins_on_common_seeds(tmp_path):
    add_errors(tmp_path, [60, 61, 62, 40, 41, 42])
    add_errors(tmp_path, [55, 56, 58], **EQUILIBRIUM)
    summary = summary_of(tmp_path)
    assert summary.lines == [
        "best: cnn7 ibp, 51.0 %; but significantly worse than cerdeq ibp over the seeds that both have (p = .005)"
    ]
    assert summary.answer.startswith("Yes: cerdeq ibp") and summary.tied == []


def test_a_row_of_two_seeds_leaves_the_ranking_to_rows_of_more(tmp_path):
    add_errors(tmp_path, [40, 41], model="cnn9")
    add_errors(tmp_path, [50, 51, 52, 50, 51])
    add_errors(tmp_path, [60, 62, 61, 60, 63], **EQUILIBRIUM)
    summary = summary_of(tmp_path)
    assert summary.lines == [
        "best: cnn7 ibp, 50.8 %; significantly better than cerdeq ibp (p < .001); "
        "not ranked, with fewer than 3 seeds in common: cnn9 ibp"
    ]
    assert summary.answer.startswith("No: cerdeq ibp")


def test_a_row_that_cannot_be_compared_is_named_and_the_others_are_compared(tmp_path):
    for model, errors in (("cnn7", [10, 11, 12]), ("cnn9", [40, 41, 43]), ("cnn5", [50, 51, 52])):
        add_errors(tmp_path, errors, model=model)
    broken = add_verdicts(tmp_path, [WRONG] * 100, model="cnn5", seed=3)
    (broken / "verdicts.parquet").unlink()
    add_errors(tmp_path, [10, 11, 12, 11])
    lines = summary_of(tmp_path).lines
    assert "significantly better than cnn9 ibp" in lines[0]
    assert lines[1].startswith("left out: cnn5 ibp against cnn7 ibp") and str(broken) in lines[1]


@pytest.mark.parametrize(
    ("equilibrium", "cnn5", "sentence"),
    [
        (
            [30, 29, 31],
            [50, 49, 50],
            "Yes: cerdeq ibp 30.00 %, the best network without an equilibrium cnn5 ibp 49.67 %; -19.67",
        ),
        (
            [50, 49, 50],
            [30, 29, 31],
            "No: cerdeq ibp 49.67 %, the best network without an equilibrium cnn5 ibp 30.00 %; +19.67",
        ),
        ([40, 50, 45], [50, 41, 46], "No significant difference: cerdeq ibp 45.00 %"),
        ([30, 30, 30], [50, 50, 50], "Not known: cerdeq ibp 30.00 %"),
        ([30, 29, 31], [], "Not known: no other network has a result"),
    ],
)
def test_the_answer_on_equilibria_is_as_sure_as_the_seeds_allow(tmp_path, equilibrium, cnn5, sentence):
    add_errors(tmp_path, equilibrium, **EQUILIBRIUM)
    add_errors(tmp_path, cnn5, model="cnn5")
    answer = summary_of(tmp_path).answer
    assert answer.startswith(sentence) and "nan" not in answer


def test_there_is_no_answer_where_no_network_has_an_equilibrium(tmp_path):
    for model in ("cnn5", "cnn7"):
        add_errors(tmp_path, [30, 29, 31], model=model)
    assert summary_of(tmp_path).answer == ""


def test_cerdeq_without_recurrence_is_another_network(tmp_path):
    add_errors(tmp_path, [50, 49, 50], **EQUILIBRIUM)
    add_errors(tmp_path, [30, 29, 31], model="cerdeq", options={"recurrent": False})
    answer = summary_of(tmp_path).answer
    assert answer.startswith("No: cerdeq ibp") and "without an equilibrium cerdeq ibp recurrent=False" in answer
