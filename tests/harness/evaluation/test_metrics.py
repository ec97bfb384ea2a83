"""Final metrics and warnings, of verdicts made by hand."""

import dataclasses
import math

import pandas as pd
import pytest

from harness.evaluation.metrics import final_metrics, warnings
from harness.evaluation.verdicts import Evaluation
from harness.storage import names

STAGES = ("ibp", "crown")
OUTCOMES = [  # verdict, stage that decided, width, prediction
    ("misclassified", "clean", 1.0, 7),
    ("misclassified", "clean", 2.0, 3),
    ("falsified", "attack", 3.0, 3),
    ("unknown", "none", 4.0, 3),
    ("certified", "ibp", 5.0, 3),
    ("certified", "ibp", 6.0, 3),
    ("certified", "ibp", 7.0, 3),
    ("certified", "crown", 12.0, 3),
]


def evaluation(**changes):
    """Of ten times these examples; fields that no metric here reads are left None."""
    columns = [names.VERDICT, names.STAGE, names.WIDTH, names.PREDICTION]
    made = {field.name: None for field in dataclasses.fields(Evaluation)}
    made |= {"verdicts": pd.DataFrame(10 * OUTCOMES, columns=columns), "clean_spread": 2.5}
    made["layers"] = {names.layer_width("relu1"): 0.5}
    made["seconds"] = {"clean": 0.5, "attack": 2.0, "ibp": 1.0, "crown": 4.0}
    return Evaluation(**made | changes)


def test_final_metrics_are_those_of_the_verdicts():
    expected = {
        names.STANDARD_ERROR: 25.0,
        names.ATTACK_ERROR: 37.5,
        names.CERTIFIED_ERROR: 50.0,
        names.UNDECIDED_ERROR: 12.5,
        names.share_of(names.UNKNOWN): 12.5,
        names.share_of(names.OUT_OF_MEMORY): 0.0,
        names.examples_at("clean"): 80,
        names.examples_at("attack"): 60,
        names.decided_by("attack"): 10,
        names.examples_at("crown"): 20,
        names.decided_by("crown"): 10,
        names.seconds_of("crown"): 4.0,
        names.certified_by("ibp"): 62.5,
        names.certified_by("crown"): 50.0,
        names.BOUND_WIDTH: 5.0,
        names.BOUND_WIDTH_RELATIVE: 2.0,
        names.layer_width("relu1"): 0.5,
    }
    measured = final_metrics(evaluation(), STAGES)
    assert {name: measured[name] for name in expected} == pytest.approx(expected)


def test_a_stage_after_those_asked_for_counts_for_none_of_them():
    assert final_metrics(evaluation(), ("ibp",))[names.certified_by("ibp")] == 62.5


def test_clean_margins_that_are_all_alike_leave_an_infinite_relative_width():
    assert final_metrics(evaluation(clean_spread=0.0), STAGES)[names.BOUND_WIDTH_RELATIVE] == math.inf


def test_a_network_that_predicts_one_class_is_said_to():
    alike = evaluation().verdicts.assign(**{names.PREDICTION: 3})
    assert warnings(evaluation(verdicts=alike), {}) == ["collapsed: predicts class 3 for 100.0 % of the images"]
    assert warnings(evaluation(), {}) == []


def test_metrics_that_are_not_finite_are_named():
    assert warnings(evaluation(), {"a": None, "b": 0.0, "c": None}) == ["not finite: a, c"]


def test_errors_out_of_order_are_refused(monkeypatch):
    """As no verdicts give them, unless two were one."""
    monkeypatch.setattr(names, "CERTIFIED", names.FALSIFIED)
    broken = evaluation().verdicts.assign(**{names.VERDICT: names.FALSIFIED})
    with pytest.raises(AssertionError, match="errors out of order"):
        final_metrics(evaluation(verdicts=broken), STAGES)
