"""Final metrics and warnings of a table of verdicts."""

import math
from dataclasses import replace

import pandas as pd
import pytest

from baselines import DATASETS
from harness.common import names
from harness.evaluation.metrics import final_metrics, warnings
from harness.evaluation.verdicts import EvaluationResult

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
TABLE = pd.DataFrame(10 * OUTCOMES, columns=[names.VERDICT, names.STAGE, names.WIDTH, names.PREDICTION])
TABLE = TABLE.assign(**{names.INDEX: TABLE.index, names.REASON: "", names.LABEL: [0, 1, 2, 0] * 20})
ENTRY = replace(DATASETS["digits"], classes=3, class_names=("cat", "dog", "owl"))


def evaluation(table=TABLE, clean_spread=2.5, proofs=None):
    seconds = {"clean": 0.5, "attack": 2.0, "ibp": 1.0, "crown": 4.0}
    return EvaluationResult(table, {names.layer_width("relu1"): 0.5}, 0.0, clean_spread, seconds, proofs or {})


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
        names.certified_error_after("ibp"): 62.5,
        names.certified_error_after("crown"): 50.0,
        names.BOUND_WIDTH: 5.0,
        names.BOUND_WIDTH_RELATIVE: 2.0,
        names.layer_width("relu1"): 0.5,
    }
    metrics = final_metrics(evaluation(), STAGES)
    assert {name: metrics[name] for name in expected} == pytest.approx(expected)
    assert final_metrics(evaluation(clean_spread=0.0), STAGES)[names.BOUND_WIDTH_RELATIVE] == math.inf


def test_warnings_name_collapse_failures_and_metrics_that_are_not_finite():
    assert warnings(evaluation(), {"b": 0.0}, ENTRY) == []
    table = TABLE.assign(**{names.PREDICTION: 3})
    table.loc[3, [names.VERDICT, names.STAGE, names.REASON]] = [names.FAILED, "bab", "ValueError: no"]
    assert warnings(evaluation(table), {"a": None, "b": 0.0, "c": None}, ENTRY) == [
        "collapsed: predicts class 3 for 100.0 % of the images",
        "failed in bab: 1 example, such as 3 (ValueError: no)",
        "not finite: a, c",
    ]


def test_missing_classes_are_named_and_only_some_of_many():
    table = TABLE.assign(**{names.LABEL: [0, 0, 1, 1] * 20})
    assert warnings(evaluation(table), {}, ENTRY) == ["evaluated images: 1 of 3 classes are missing in 80 images: owl"]
    many = replace(ENTRY, classes=200, class_names=())
    assert warnings(evaluation(), {}, many) == [
        "evaluated images: 197 of 200 classes are missing in 80 images: 3, 4, 5, 6, 7, ..."
    ]
