"""Fronts of searches: hypervolumes by counting, dominance, and the seeds that intervals are over."""

import numpy as np
import pandas as pd
import pytest

from harness.common import names
from harness.leaderboard.fronts import FRONTS, front_of, front_sentences, fronts_of, hypervolume
from harness.storage.records import Chosen


def trials_of(*winners, seeds=(0, 1, 2), spread=0.1, search="s"):
    """Rows of a section: winners (searched row, network, standard error, certified error) with every seed."""
    rows = [
        {
            "label": f"winner {number}", "seed": seed,
            FRONTS: [Chosen(text="", search=search, front=front, network=network or "")] if front else [],
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


def test_fronts_are_of_searched_rows_best_first_with_dominated_winners():
    winners = [("cnn5 ibp", "cnn5", 40, 70), ("cnn5 ibp", "cnn5", 50, 60), ("cnn5 ibp", "cnn5", 55, 65)]
    trials = trials_of(*winners, ("cerdeq ibp", "cerdeq", 45, 55), (None, None, 1, 2))
    first, second = fronts_of(trials)
    assert (first.name, second.name) == ("cerdeq ibp", "cnn5 ibp")
    assert front_of(second.errors).tolist() == [0, 1]
    np.testing.assert_allclose(second.errors[0], [40.1, 70.1])
    low, high = (float(end) for end in second.text.partition("(")[2].strip(")").split(" to "))
    assert low < hypervolume(second.errors) < high
    assert fronts_of(trials.drop(columns=FRONTS)) == [] == front_sentences(trials.iloc[-3:])


def test_the_front_has_the_points_that_no_other_beats_in_both():
    draw = np.random.default_rng(0).integers(0, 12, (40, 2)).astype(float)
    front = [tuple(point) for point in draw[front_of(draw)]]
    beaten = {(a, b) for a, b in draw if any((c <= a and d <= b) and (c, d) != (a, b) for c, d in draw)}
    assert front == sorted({tuple(point) for point in draw} - beaten)


@pytest.mark.parametrize(
    ("seeds", "said"), [(4, "lowest and highest of 4 seeds"), (5, "95 % interval, 1000 resamples")]
)
def test_few_seeds_have_a_range_and_five_an_interval_inside_it(seeds, said):
    (sentence,) = front_sentences(trials_of(("cnn5 ibp", "cnn5", 40, 70), seeds=range(seeds), spread=1.0))
    low, high = (float(end) for end in sentence.rpartition("(")[2].strip(")").split(" to "))
    of_last_seed = round((61 - seeds) * (31 - seeds) / 100, 2)
    assert said in sentence and ((low, high) == (of_last_seed, 18) if seeds == 4 else of_last_seed < low < high < 18)


def test_a_winner_of_two_searches_is_on_the_front_of_each():
    trials = trials_of(("cnn5 ibp by s", "cnn5", 40, 70), ("cnn5 ibp by s", "cnn5", 50, 60))
    other = Chosen(text="", search="t", front="cnn5 ibp by t", network="cnn5")
    trials[FRONTS] = [
        [*own, other] if label == "winner 0" else own for own, label in trials[["fronts", "label"]].values
    ]
    assert {front.name: len(front.errors) for front in fronts_of(trials)} == {"cnn5 ibp by s": 2, "cnn5 ibp by t": 1}


def test_a_sentence_says_where_the_front_of_one_network_is_lower_with_every_seed():
    winners = [("cnn5 ibp", "cnn5", 40, 70), ("cnn5 sabr", "cnn5", 50, 60), ("cerdeq ibp", "cerdeq", 45, 65)]
    _, sentence = front_sentences(trials_of(*winners, spread=0.1))
    expected = "cnn5 lower than cerdeq with each of 3 seeds for s from 50.2 % on, higher for s from 45.2 to 50.0 %"
    assert sentence == f"lowest certified error, by any method, at a standard error of at most s: {expected}"


def test_a_front_is_not_lower_where_a_seed_says_otherwise():
    certified = {"cnn5": [60, 61, 62], "cerdeq": [61, 59, 62.5]}
    rows = [
        trials_of((f"{name} ibp", name, 40, value), seeds=[seed]).assign(label=name)
        for name, values in certified.items()
        for seed, value in enumerate(values)
    ]
    _, sentence = front_sentences(pd.concat(rows))
    assert sentence.endswith("cnn5 lower than cerdeq with each of 3 seeds for no s, higher for no s")


def test_winners_without_all_seeds_are_counted_and_nothing_is_compared():
    rows = [trials_of(("cnn5 ibp", "cnn5", 40, 70)), trials_of(("cerdeq ibp", "cerdeq", 45, 60), seeds=[0, 1])]
    trials = pd.concat([rows[0], rows[1].assign(label="winner 1")])
    _, sentence = front_sentences(trials)
    assert sentence == "left out of fronts, without a seed that others have: 1 winner"


@pytest.mark.parametrize("network", ["cerdeq", None])
def test_networks_of_two_searches_and_without_names_are_not_compared(network):
    other = trials_of(("cerdeq ibp", network, 45, 60), search="s" if network is None else "another")
    trials = pd.concat([trials_of(("cnn5 ibp", "cnn5", 40, 70)), other.assign(label="winner 1")])
    assert len(front_sentences(trials)) == 1
