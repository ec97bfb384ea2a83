"""Winners, fronts and hypervolumes against their definitions."""

import numpy as np
import pytest
from search_cases import finished

from harness.search.candidates import STOPPED, Candidate
from harness.search.results import best_of, hypervolume
from harness.search.rungs import falls_behind


def candidate(number, *values):
    return finished(Candidate(0, number, {}, {}, []), *values)


def test_a_front_has_what_no_other_beats_in_both_and_the_first_of_those_alike():
    draw = np.random.default_rng(0).integers(0, 12, (40, 2)).astype(float)
    candidates = [candidate(number, *pair) for number, pair in enumerate(draw)]
    found = best_of(candidates)
    beaten = [any((other <= one).all() and (other < one).any() for other in draw) for one in draw]
    assert {tuple(one.values) for one in found} == set(map(tuple, draw[~np.array(beaten)]))
    for one in found:
        assert one.number == min(other.number for other in candidates if other.values == one.values)


def test_a_winner_is_one_that_has_finished():
    ended = Candidate(0, 3, {}, {}, [], STOPPED, rungs={1: 0.0})
    assert [one.number for one in best_of([candidate(0, 5.0), candidate(1, 4.0), candidate(2, 4.0), ended])] == [1]
    assert best_of([ended]) == []


def test_hypervolume_is_the_share_of_pairs_that_are_beaten():
    draw = np.random.default_rng(1).uniform(20, 100, (6, 2))
    grid = np.stack(np.meshgrid(np.arange(0.5, 100), np.arange(0.5, 100)), -1).reshape(-1, 1, 2)
    share = (draw <= grid).all(-1).any(-1).mean()
    assert hypervolume(draw) == pytest.approx(share, abs=0.01)
    assert hypervolume([(100, 100)]) == hypervolume([]) == 0
    assert hypervolume([(0, 0), (50, 50)]) == 1


@pytest.mark.parametrize(
    "error, others, behind",
    [(50, [], False), (50, [40], True), (50, [50], False), (50, [60, 70], False), (50, [40, 60, 70, 80, 90], False),
     (60, [40, 50, 70, 80, 90], True), (100, [100, 100, 100], False)],
)  # fmt: skip
def test_the_best_third_goes_on(error, others, behind):
    assert falls_behind(error, others, 3) is behind
