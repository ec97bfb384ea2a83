"""Winners, fronts and hypervolumes against their definitions."""

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState, create_trial

from harness.tune.search.results import best_candidates, hypervolume


def study_of(*values, failed=()):
    study = optuna.create_study(directions=["minimize"] * len(values[0]))
    for number, pair in enumerate(values):
        study.add_trial(
            create_trial(
                values=list(pair), user_attrs={"settings": {}} | ({"failure": True} if number in failed else {})
            )
        )
    return study


def test_a_front_has_the_first_candidate_of_each_pair_that_no_other_beats():
    draw = np.random.default_rng(0).integers(0, 12, (40, 2)).astype(float)
    study = study_of(*draw)
    beaten = [any((other <= one).all() and (other < one).any() for other in draw) for one in draw]
    front = best_candidates(study)
    assert {tuple(one.values) for one in front} == set(map(tuple, draw[~np.array(beaten)]))
    for one in front:
        assert one.number == min(other.number for other in study.trials if other.values == one.values)


def test_a_winner_has_finished():
    study = study_of((5.0,), (4.0,), (4.0,))
    study.add_trial(create_trial(state=TrialState.PRUNED, value=0.0, intermediate_values={1: 0.0}))
    assert [one.number for one in best_candidates(study)] == [1]
    assert best_candidates(study_of((100.0,), failed=[0])) == []
    assert [one.number for one in best_candidates(study_of((60.0,), (75.0,), (70.0,), failed=[0]))] == [2]
    front = best_candidates(study_of((9.0, 9.0), (9.0, 20.0), (20.0, 10.0), failed=[0]))
    assert [one.number for one in front] == [1, 2]


def test_hypervolume_is_the_share_of_pairs_that_are_beaten():
    draw = np.random.default_rng(1).uniform(20, 100, (6, 2))
    grid = np.stack(np.meshgrid(np.arange(0.5, 100), np.arange(0.5, 100)), -1).reshape(-1, 1, 2)
    assert hypervolume(draw) == pytest.approx((draw <= grid).all(-1).any(-1).mean(), abs=0.01)
    assert hypervolume([(100, 100)]) == hypervolume([]) == 0
    assert hypervolume([(0, 0), (50, 50)]) == 1
