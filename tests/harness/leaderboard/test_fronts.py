"""Fronts of searches: hypervolumes by counting, dominance, and which network's front is better where."""

import numpy as np
import pandas as pd
import pytest

from harness.common import names
from harness.leaderboard.fronts import FRONT, NETWORK, front_sentences, fronts_of, hypervolume


def trials_of(*winners, seeds=(0, 1, 2), spread=0.1):
    """Rows of a section: winners (searched row, network, standard error, certified error) with every seed."""
    rows = [
        {
            "label": f"winner {number}", "seed": seed, FRONT: front, NETWORK: network,
            names.STANDARD_ERROR: standard + spread * seed, names.CERTIFIED_ERROR: certified + spread * seed,
        }
        for number, (front, network, standard, certified) in enumerate(winners)
        for seed in seeds
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_the_hypervolume_is_the_part_of_the_square_that_a_point_is_no_worse_than():
    errors = np.random.default_rng(0).integers(0, 100, (6, 2)).astype(float)
    corners = np.stack(np.meshgrid(np.arange(100), np.arange(100)), -1).reshape(-1, 1, 2) + 0.5
    counted = (errors <= corners).all(2).any(1).mean() * 100
    assert hypervolume(errors) == pytest.approx(counted)
    assert hypervolume(np.array([[0.0, 0.0]])) == 100 and hypervolume(np.array([[100.0, 30.0]])) == 0


def test_fronts_are_of_searched_rows_best_first_and_know_dominated_winners():
    winners = [("cnn5 ibp", "cnn5", 40, 70), ("cnn5 ibp", "cnn5", 50, 60), ("cnn5 ibp", "cnn5", 55, 65)]
    trials = trials_of(*winners, ("cerdeq ibp", "cerdeq", 45, 55), (None, None, 1, 2))
    first, second = fronts_of(trials)
    assert (first.name, second.name) == ("cerdeq ibp", "cnn5 ibp")
    assert second.is_dominated.tolist() == [False, False, True]
    np.testing.assert_allclose(second.errors[0], [40.1, 70.1])
    low, high = (float(end) for end in second.text.partition("(")[2].strip(")").split(" to "))
    assert low < hypervolume(second.errors) < high
    assert fronts_of(trials.drop(columns=[FRONT, NETWORK])) == [] == front_sentences(trials.iloc[-3:])


def test_a_sentence_says_where_a_network_s_front_is_better_over_most_seeds():
    one = [("cnn5 ibp", "cnn5", 40, 70), ("cnn5 sabr", "cnn5", 50, 60)]
    volumes, better = front_sentences(trials_of(*one, ("cerdeq ibp", "cerdeq", 45, 65), spread=0.0))
    assert "3 seeds" in volumes and "cnn5 sabr 20.00 % (20.00 to 20.00)" in volumes
    expected = "cerdeq is better than cnn5 at standard errors of 45.0 to 49.9 %"
    assert (
        expected in better
        and "cnn5 is better than cerdeq at standard errors of 40.0 to 44.9 %, 50.0 % or more" in better
    )


def test_differences_within_the_spread_of_seeds_are_no_difference():
    generator, rows = np.random.default_rng(1), [("cnn5 ibp", "cnn5", 40, 70), ("cerdeq ibp", "cerdeq", 40, 70)]
    trials = trials_of(*rows)
    trials[names.CERTIFIED_ERROR] += generator.normal(0, 3, len(trials))
    trials[names.STANDARD_ERROR] = 40.0
    assert "neither front is better" in front_sentences(trials)[1]


def test_one_seed_has_no_interval_and_compares_nothing():
    (line,) = front_sentences(trials_of(("cnn5 ibp", "cnn5", 40, 70), ("cerdeq ibp", "cerdeq", 45, 65), seeds=[0]))
    assert "one seed, no interval" in line and "cnn5 ibp 18.00 %" in line
