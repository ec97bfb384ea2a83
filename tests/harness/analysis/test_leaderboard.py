"""The leaderboard's rows: what is averaged and what is not, what is shown, listed and counted."""

import json
from pathlib import Path

import numpy as np
import pytest
from judged_trials import add, metrics, own, read_json, text

from harness.analysis import columns, tables
from harness.config.settings import EvaluationSettings, TrainSettings
from harness.config.trial import RECIPE_VERSION
from harness.storage import files, folder, names

PROJECT = Path(__file__).resolve().parents[3]


def test_a_row_has_means_and_sample_deviations_over_seeds(sweep):
    draw = np.random.default_rng(0)
    measured = [metrics(certified, bound_width=width) for certified, width in draw.uniform(50, 90, (3, 2))]
    for seed, values in enumerate(measured):
        add(sweep, values, seed=seed)
    (row,) = own(tables.build(sweep)).to_dict("records")
    for name in measured[0]:
        values = [m[name] for m in measured]
        assert row[name] == pytest.approx(np.mean(values), rel=1e-12)
        assert row[f"{name}_std"] == pytest.approx(np.std(values, ddof=1), rel=1e-9, abs=1e-12)
    assert (row["seeds"], row["seeds_started"]) == (3, 3)
    tables.write(sweep)
    certified = [m[names.CERTIFIED_ERROR] for m in measured]
    shown = f"{np.mean(certified):.2f} ± {np.std(certified, ddof=1):.2f}"
    assert shown in text(sweep, "md")
    assert shown.replace("±", r"$\pm$") in text(sweep, "tex")


def test_one_seed_has_no_deviation(sweep):
    add(sweep, metrics())
    tables.write(sweep)
    (row,) = read_json(sweep)
    assert row["certified_error"] == 65.0
    assert row["certified_error_std"] is None
    assert "±" not in text(sweep, "md").split("Errors in percent")[0]


@pytest.mark.parametrize(
    "difference",
    [
        {"model": "cnn5"},
        {"method": "crown-ibp"},
        {"options": {"margin": 0.1}},
        {"width": 0.5},
        {"profile": "cpu"},
        {"eps": "2/255"},
        {"dataset": "mnist"},
        {"train_images": 1000},
        {"validation_images": 500},
        {"train": TrainSettings(learning_rate=1e-3)},
        {"evaluation": EvaluationSettings(attack_restarts=1)},
        {"fingerprint": "other data"},
        {"recipe": RECIPE_VERSION + 1},
    ],
    ids=lambda difference: next(iter(difference)),
)
def test_nothing_but_seeds_is_averaged(sweep, difference):
    add(sweep, metrics(60.0), seed=0)
    add(sweep, metrics(70.0), seed=1, **difference)
    rows = [row for section in tables.build(sweep).sections for row in section.rows.to_dict("records")]
    assert sorted(row[names.CERTIFIED_ERROR] for row in rows) == [60.0, 70.0]
    assert {row["seeds"] for row in rows} == {1}


def test_the_differing_setting_is_shown(sweep):
    add(sweep, metrics(60.0))
    add(sweep, metrics(70.0), train=TrainSettings(learning_rate=1e-3))
    (section,) = tables.build(sweep).sections
    assert section.shown["train.learning_rate"].tolist() == ["0.0005", "0.001"]
    assert "train.epochs" not in section.shown


def test_a_trial_s_own_recipe_is_shown(sweep):
    for certified, changes in enumerate(({}, {"clip_norm": None}, {"epochs": 200}), start=60):
        add(sweep, metrics(float(certified)), train=TrainSettings(**changes))
    (section,) = tables.build(sweep).sections
    assert section.shown["train.clip_norm"].tolist() == ["10", "none", "10"]
    assert section.shown["train.epochs"].tolist() == ["160", "160", "200"]
    assert section.labels[1] == "cnn7 ibp train.epochs=160 train.clip_norm=none"
    tables.write(sweep)
    assert [row["train.clip_norm"] for row in read_json(sweep)] == [10.0, None, 10.0]


def test_options_in_another_order_are_the_same_row(sweep):
    add(sweep, metrics(60.0), seed=0, options={"margin": 0.1, "groups": 2})
    add(sweep, metrics(70.0), seed=1, options={"groups": 2, "margin": 0.1})
    (row,) = own(tables.build(sweep)).to_dict("records")
    assert row["options"] == "groups=2 margin=0.1"
    assert row[names.CERTIFIED_ERROR] == 65.0


def test_other_recipe_versions_stand_apart_as_stale(sweep):
    add(sweep, metrics(61.0), recipe=RECIPE_VERSION - 1)
    add(sweep, metrics(70.0))
    table, _ = tables.write(sweep)
    assert [section.stale for section in table.sections] == [False, True]
    assert f"recipe version {RECIPE_VERSION - 1}, today's is {RECIPE_VERSION}" in text(sweep, "md")
    assert [row["certified_error"] for row in read_json(sweep)] == [70.0]
    assert "61.0" not in text(sweep, "csv")


def test_the_best_certified_error_stands_first_and_an_unknown_one_last(sweep):
    for model, certified in (("b", 70.0), ("a", 60.0), ("c", None)):
        add(sweep, metrics(certified_error=certified, attack_error=55.0), model=model)
    assert own(tables.build(sweep))["model"].tolist() == ["a", "b", "c"]


def test_a_row_of_one_seed_stands_after_those_of_more(sweep):
    for seed in range(2):
        add(sweep, metrics(70.0), model="a", seed=seed)
    add(sweep, metrics(60.0), model="b")
    section = tables.build(sweep).sections[0]
    assert section.own["model"].tolist() == ["a", "b"]
    assert section.comparable["model"].tolist() == ["a"]


def test_a_row_without_certified_error_stands_after_those_of_one_seed(sweep):
    for seed in range(2):
        add(sweep, metrics(certified_error=None), model="a", seed=seed)
    add(sweep, metrics(60.0), model="b")
    (section,) = tables.build(sweep).sections
    assert section.own["model"].tolist() == ["b", "a"]
    assert section.comparable["model"].tolist() == ["b"]
    for seed in range(2):
        add(sweep, metrics(70.0), model="c", seed=seed)
    (section,) = tables.build(sweep).sections
    assert section.own["model"].tolist() == ["c", "b", "a"]
    assert section.comparable["model"].tolist() == ["c"]


@pytest.mark.parametrize("broken", [{"certified_error": None}, "absent", {"certified_error": float("nan")}])
def test_a_missing_metric_is_blank_and_said(sweep, broken):
    lacking = metrics(70.0, **(broken if isinstance(broken, dict) else {}))
    if broken == "absent":
        del lacking[names.CERTIFIED_ERROR]
    add(sweep, metrics(60.0), seed=0)
    path = add(sweep, metrics(), seed=1)
    content = json.loads((path / folder.RESULT).read_text()) | {"metrics": lacking}
    (path / folder.RESULT).write_text(json.dumps(content))
    tables.write(sweep)
    (row,) = read_json(sweep)
    assert row["certified_error"] is None
    assert row["certified_error_std"] is None
    assert row["standard_error"] == pytest.approx((46 + 56) / 2)
    assert row["warnings"] == "certified_error is missing or not finite (seed 1)"
    assert row["warnings"] in text(sweep, "md")
    assert "nan" not in text(sweep, "md").lower()


def test_equilibrium_columns_are_there_only_where_some_trial_has_them(sweep):
    add(sweep, metrics(60.0))
    assert not any("equilibrium" in column for column in tables.build(sweep).rows)
    add(sweep, metrics(50.0, **{names.GAIN: 0.25, names.RHO_BOUND: None}), model="deqlate")
    table, _ = tables.write(sweep)
    equilibrium, explicit = read_json(sweep)
    assert (equilibrium[names.GAIN], explicit[names.GAIN]) == (0.25, None)
    assert names.ITERATIONS not in equilibrium
    assert table.sections[0].shown["gain"].tolist() == ["0.250", ""]
    assert equilibrium["warnings"] == f"{names.RHO_BOUND} is missing or not finite (seed 0)"
    assert explicit["warnings"] == ""


def test_a_column_of_its_own_function_stands_where_it_has_a_value_and_is_not_missed_elsewhere(sweep, monkeypatch):
    def hours(result):
        on_gpu = result.environment.get("device", "CPU").startswith("NVIDIA")
        return result.metrics[names.TRAIN_SECONDS] / 3600 if on_gpu else None

    known = (*columns.COLUMNS, columns.Column("gpu_hours", "GPU hours", columns.digits, "cost", of=hours))
    for module in ("columns", "leaderboard", "section", "trials"):
        monkeypatch.setattr(f"harness.analysis.{module}.COLUMNS", known)
    add(sweep, metrics(60.0, train_seconds=5400.0), environment={"device": "CPU x86_64"})
    (section,) = tables.build(sweep).sections
    assert "GPU hours" not in section.shown and "gpu_hours" not in section.rows and section.warnings == []
    for seed, seconds in enumerate((5400.0, 9000.0)):
        device = {"device": "NVIDIA H200"}
        add(sweep, metrics(50.0, train_seconds=seconds), environment=device, model="resnet9", seed=seed)
    (section,) = tables.write(sweep)[0].sections
    assert section.shown["GPU hours"].tolist() == ["2.00 ± 0.707", ""] and section.warnings == []
    on_gpu, on_cpu = read_json(sweep)
    assert (on_gpu["gpu_hours"], on_cpu["gpu_hours"]) == (2.0, None)
    assert "GPU hours" in text(sweep, "md")


def test_failed_and_unfinished_trials_are_listed_and_counted(sweep):
    add(sweep, metrics(), seed=0)
    add(sweep, metrics(), seed=1)
    add(sweep, failure={"error": "the loss is not finite", "epoch": 12}, seed=2)
    for place, epochs in ((add(sweep, method="sabr"), 2), (add(sweep, method="mtl"), 1)):
        for epoch in range(epochs):
            folder.write_epoch(place, {names.EPOCH: epoch})
    table, _ = tables.write(sweep)
    (row,) = read_json(sweep)
    assert (row["seeds"], row["seeds_started"]) == (2, 3)
    assert "| 2 of 3 |" in text(sweep, "md")
    failures = {(f["method"], f["seed"]): f["problem"] for f in table.failures.to_dict("records")}
    assert failures == {
        ("ibp", "2"): "failed: the loss is not finite",
        ("sabr", "0"): "unfinished: 1 of 160 epochs",
        ("mtl", "0"): "unfinished: 0 of 160 epochs",
    }
    assert all(problem in text(sweep, "md") for problem in failures.values())


def test_a_sweep_without_a_finished_trial_has_a_table_that_says_so(sweep):
    add(sweep)
    table, _ = tables.write(sweep)
    assert "No trial has finished yet." in text(sweep, "md")
    assert len(table.failures) == 1
    assert read_json(sweep) == []


def test_results_that_cannot_be_right_are_not_counted(sweep):
    add(sweep, metrics(60.0))
    add(sweep, metrics() | {names.ATTACK_ERROR: 80.0}, model="unordered")
    add(sweep, metrics(90.0), key="a-copy")
    broken = add(sweep, metrics(), model="unreadable")
    (broken / folder.RESULT).write_text("{")
    foreign = add(sweep, metrics(), model="foreign")
    files.write_json(foreign / folder.RESULT, json.loads((foreign / folder.RESULT).read_text()) | {"key": "else"})
    (sweep / "trials/old").mkdir()
    (sweep / "trials/old" / folder.TRIAL).write_text('{"key": "old"}')
    table = tables.build(sweep)
    assert own(table)["model"].tolist() == ["cnn7"]
    problems = dict(table.failures[["model", "problem"]].to_numpy())
    assert set(problems) == {"unordered", "cnn7", "unreadable", "foreign", "old"}
    assert all(problem.startswith("not counted: ") for problem in problems.values())
    assert "attack <= certified" in problems["unordered"]
    assert "another folder" in problems["cnn7"]


def test_errors_equal_up_to_rounding_are_in_order(sweep):
    add(sweep, metrics() | {names.ATTACK_ERROR: 65.0 + 1e-13})
    assert len(own(tables.build(sweep))) == 1


@pytest.mark.parametrize(
    ("change", "judged"),
    [
        ({"evaluation": EvaluationSettings(("ibp",))}, "ibp, all test images"),
        ({"evaluation": EvaluationSettings(("ibp", "bab"))}, "ibp > bab (60 s), all test images"),
        ({"evaluation": EvaluationSettings(("ibp", "bab"), bab_seconds=5.0)}, "ibp > bab (5 s), all test images"),
        (
            {"evaluation": EvaluationSettings(("ibp", "bab"), bab_seconds=None, bab_branches=2000)},
            "ibp > bab (2,000 branches), all test images",
        ),
        (
            {"evaluation": EvaluationSettings(test_images=1000)},
            "ibp > crown-ibp > alpha-crown, first 1,000 test images",
        ),
        ({"validation_images": 500}, "ibp > crown-ibp > alpha-crown, 500 held-out images"),
    ],
)
def test_rows_judged_by_other_stages_or_on_other_images_never_share_a_section(sweep, change, judged):
    add(sweep, metrics(60.0))
    add(sweep, metrics(55.0), model="cnn5", **change)
    sections = tables.build(sweep).sections
    assert {section.heading for section in sections} == {
        f"cifar10, eps 8/255, profile full, {text}"
        for text in ("ibp > crown-ibp > alpha-crown, all test images", judged)
    }
    assert [own(section)["model"].tolist() for section in sections] in ([["cnn7"], ["cnn5"]], [["cnn5"], ["cnn7"]])


def test_what_stages_decided_stands_below_the_rows_that_have_it(sweep):
    counts = {names.examples_at("ibp"): 90, names.decided_by("ibp"): 60, names.seconds_of("ibp"): 1234.5}
    for seed, decided in enumerate((60, 40)):
        add(sweep, metrics(60.0, **counts | {names.decided_by("ibp"): decided}), seed=seed)
    add(sweep, metrics(70.0), model="cnn5")
    tables.write(sweep)
    assert "| cnn7 ibp | 50 of 90, 1,234 s |" in text(sweep, "md")
    assert "cnn7 ibp & 50 of 90, 1,234 s" in text(sweep, "tex")
    assert "| cnn5 ibp |" not in text(sweep, "md")


def test_open_examples_are_told_beside_the_errors_that_they_lie_between(sweep):
    add(sweep, metrics(60.0, **{names.OPEN_ERROR: 3.0}))
    (section,) = tables.write(sweep)[0].sections
    columns_shown = section.shown.columns.tolist()
    assert columns_shown.index("open") == columns_shown.index("standard error") + 1
    assert section.shown["open"].tolist() == ["3.00"]
