"""The time limit of each stage per image: who misses it goes on to the next stage, and is a timeout after the last."""

import math
import time
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from networks import evaluate, trained

from cerdeq.deadline import check
from harness.common import names
from harness.common.radius import Radius
from harness.evaluation import stages
from harness.evaluation.ledger import Ledger


def verdicts(name, count, **settings):
    """Return the table of verdicts of a golden network, by ibp, crown-ibp and crown after a weak attack."""
    settings = {"stages": ("ibp", "crown-ibp", "crown"), "attack": "margin", "attack_restarts": 1} | settings
    return evaluate(*trained(name, count, **settings)).verdicts


@pytest.mark.parametrize("name", ["cnn5", "cerdeq"])
def test_a_limit_that_no_image_meets_leaves_timeouts_and_one_that_all_meet_changes_nothing(name):
    missed, expected = (verdicts(name, 4, eps=Radius("1/4"), stage_seconds=limit) for limit in (1e-9, 1e3))
    decided_by = {names.CLEAN: names.MISCLASSIFIED, names.IBP: names.CERTIFIED, names.ATTACK: names.TIMEOUT}
    assert missed[names.VERDICT].tolist() == missed[names.STAGE].map(decided_by).tolist()
    assert names.TIMEOUT in set(missed[names.VERDICT])
    assert missed[names.PREDICTION].equals(expected[names.PREDICTION])
    unlimited = verdicts(name, 4, eps=Radius("1/4"))
    pd.testing.assert_frame_equal(unlimited, expected, check_exact=True)


def test_the_image_that_a_stage_does_not_finish_is_decided_by_the_next_or_a_timeout(monkeypatch):
    expected, bounds = verdicts("cnn5", 10), stages.lower_bounds

    def endless(program, region, spec, name, *arguments, **options):
        while name == names.CROWN_IBP:
            time.sleep(0.01)
            check()
        return bounds(program, region, spec, name, *arguments, **options)

    monkeypatch.setattr(stages, "lower_bounds", endless)
    table = verdicts("cnn5", 10, stage_seconds=2.0)
    asked = expected["margin_crown-ibp"].notna()
    assert asked.any() and table["margin_crown-ibp"].isna().all()
    assert (table.loc[~asked, names.VERDICT] == expected.loc[~asked, names.VERDICT]).all()
    assert (table.loc[asked, names.STAGE].isin(["crown-ibp", "crown"])).all()
    ended = table[names.VERDICT] == names.TIMEOUT
    assert (expected.loc[ended, names.VERDICT] == names.UNKNOWN).all()
    decided = asked & ~ended
    assert (table.loc[decided, names.VERDICT] == expected.loc[decided, names.VERDICT]).all()


def test_branch_and_bound_stops_where_the_seconds_of_all_images_are_used(monkeypatch):
    limits = []

    def verify(model, region, spec, seconds, branches, certificates):
        limits.append(seconds)
        time.sleep(0.1)
        lower = torch.full(spec.shape[:2], -1.0, dtype=torch.float64)
        return SimpleNamespace(
            status=["timeout"], lower=lower, counterexample=None, branches=torch.tensor([7]), certificates=[{}]
        )

    monkeypatch.setattr("cerdeq.verify", verify)
    settings = {"stages": ("ibp", "bab"), "attack_steps": 1, "bab_seconds": 0.25}
    table = verdicts("cnn5", 60, **settings)
    assert len(limits) > 5 and set(limits) == {0.25} and len(limits) == table[names.BRANCHES].notna().sum()
    limits.clear()
    limited = verdicts("cnn5", 60, **settings, bab_total_seconds=0.35)
    calls = len(limits)  # of at least a tenth of a second
    assert 1 <= calls <= 4 and limits[0] == 0.25 and limits == sorted(limits, reverse=True)
    assert limited[names.VERDICT].tolist() == table[names.VERDICT].tolist() and names.TIMEOUT in set(table["verdict"])
    assert limited[names.BRANCHES].notna().sum() == calls


def test_images_together_have_the_time_of_all_and_branch_and_bound_has_no_limit_here():
    asked = []

    def ask(examples):
        asked.append(examples.tolist())
        end = time.monotonic() + (10.0 if 2 in examples and len(examples) == 1 else 0.15 * len(examples) + 0.3)
        while time.monotonic() < end:
            time.sleep(0.01)
            check()

    ledger = Ledger(3, limit=0.5)
    answers = ledger.answers("crown", ask, torch.arange(3))
    assert asked == [[0, 1, 2]] and len(answers) == 1
    answers = ledger.answers("crown", ask, torch.tensor([2]))
    assert not answers and ledger.columns()[names.VERDICT].tolist() == ["unknown", "unknown", "timeout"]
    assert Ledger(3).limit == math.inf
    assert ledger.answers(names.BAB, ask, torch.tensor([1]))[0][0].tolist() == [1]
