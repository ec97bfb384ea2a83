"""The leaderboard's rows: what is averaged, what is shown, listed and counted; published rows beside them."""

import csv
import json

import numpy as np
import pytest
from made_networks import add, metrics, own, publish, read_json, text

from harness.common import names
from harness.config.training import RECIPE_VERSION
from harness.leaderboard.columns import THREE_DIGITS, Column
from harness.leaderboard.files import write_leaderboard
from harness.leaderboard.table import build_leaderboard
from harness.settings import Recipe
from harness.storage import files, folder, training_progress


def only_section(sweep):
    (section,) = build_leaderboard(sweep).sections
    return section


def test_a_row_has_means_and_sample_deviations_over_seeds(sweep):
    draw = np.random.default_rng(0)
    measured = [metrics(certified, bound_width=width) for certified, width in draw.uniform(50, 90, (3, 2))]
    for seed, values in enumerate(measured):
        add(sweep, values, seed=seed)
    write_leaderboard(sweep, latex=True)
    (row,) = read_json(sweep)
    for name in measured[0]:
        values = [m[name] for m in measured]
        assert row[name] == pytest.approx(np.mean(values), rel=1e-12)
        assert row[f"{name}_std"] == pytest.approx(np.std(values, ddof=1), rel=1e-9, abs=1e-12)
    assert (row["seeds"], row["seeds_started"]) == (3, 3)
    cell = f"{row['certified_error']:.2f} ± {row['certified_error_std']:.2f}"
    assert cell in text(sweep, "md") and cell.replace("±", r"$\pm$") in text(sweep, "tex")


@pytest.mark.parametrize(
    "difference",
    [
        {"options": {"margin": 0.1}},
        {"profile": "cpu"},
        {"train_images": 1000},
        {"train": Recipe(learning_rate=1e-3)},
        {"fingerprint": "other data"},
    ],
    ids=lambda difference: next(iter(difference)),
)
def test_nothing_but_seeds_is_averaged(sweep, difference):
    add(sweep, metrics(60.0), seed=0)
    add(sweep, metrics(70.0), seed=1, **difference)
    rows = [row for section in build_leaderboard(sweep).sections for row in section.rows.to_dict("records")]
    assert sorted(row[names.CERTIFIED_ERROR] for row in rows) == [60.0, 70.0]
    assert all(np.isnan(row["certified_error_std"]) and row["seeds"] == 1 for row in rows)


def test_labels_are_those_of_the_networks_where_rows_differ_in_nothing_else(sweep):
    """Options that all rows of a network share are in both, and values are written alike."""
    changes = [
        {"model": "cerdeq", "options": {"margin": 0.1}},
        {"model": "cerdeq", "options": {"margin": 0.1, "recurrent": False}},
        {"options": {"margin": 0.25, "gain": None}},
    ]
    paths = [add(sweep, metrics(60.0 + number), **change) for number, change in enumerate(changes)]
    configs = [folder.read_training(folder.network_of(path) / folder.TRAINING).config for path in paths]
    assert only_section(sweep).labels == [config.row for config in configs]


def test_settings_in_which_rows_differ_are_shown_and_label_them(sweep):
    for certified, changes in enumerate(({}, {"clip_norm": None}, {"epochs": 200}), start=60):
        add(sweep, metrics(float(certified)), train=Recipe(**changes))
    section = only_section(sweep)
    assert section.cells["train.clip_norm"].tolist() == ["10", "none", "10"]
    assert section.cells["train.epochs"].tolist() == ["160", "160", "200"]
    assert "train.learning_rate" not in section.cells
    assert section.labels[1] == "cnn7 ibp train.epochs=160 train.clip_norm=none"


def test_options_in_another_order_are_the_same_row(sweep):
    add(sweep, metrics(60.0), seed=0, options={"margin": 0.1, "groups": 2})
    add(sweep, metrics(70.0), seed=1, options={"groups": 2, "margin": 0.1})
    (row,) = own(build_leaderboard(sweep)).to_dict("records")
    assert (row["options"], row[names.CERTIFIED_ERROR]) == ("groups=2 margin=0.1", 65.0)


def test_rows_stand_by_certified_error_then_those_of_few_seeds_then_those_without(sweep):
    add(sweep, metrics(60.0), model="one")
    assert only_section(sweep).comparable["model"].tolist() == ["one"]
    for seed in range(2):
        add(sweep, metrics(certified_error=None), model="none", seed=seed)
        add(sweep, metrics(80.0), model="worse", seed=seed)
        add(sweep, metrics(70.0), model="better", seed=seed)
    section = only_section(sweep)
    assert section.own["model"].tolist() == ["one", "better", "worse", "none"]
    assert section.comparable["model"].tolist() == ["one", "better", "worse"]
    for seed in range(3):
        add(sweep, metrics(90.0), model="three", seed=seed)
    for seed in range(4):
        add(sweep, metrics(95.0), model="four", seed=seed)
    section = only_section(sweep)
    assert section.own["model"].tolist() == ["three", "four", "one", "better", "worse", "none"]
    assert section.comparable["model"].tolist() == ["three", "four"]


def test_held_out_errors_are_not_ranked_with_published_ones(sweep):
    publish(sweep, "cifar10,8/255,CNN-7,IBP,50,64.72,Paper\n")
    add(sweep, metrics(61.0), validation_images=500)
    section = only_section(sweep)
    assert not section.is_full_size and section.rows["source"].notna().tolist() == [False, True]
    assert any("not comparable with published numbers" in note for note in section.notes)


@pytest.mark.parametrize("value", [None, "absent"])
def test_a_missing_metric_is_blank_with_a_warning(sweep, value):
    measured = metrics(70.0, certified_error=value)
    if value == "absent":
        del measured[names.CERTIFIED_ERROR]
    add(sweep, metrics(60.0), seed=0, warnings=["collapsed"])
    path = add(sweep, metrics(), seed=1, warnings=["collapsed"])
    content = json.loads((path / folder.RESULT).read_text()) | {"metrics": measured}
    (path / folder.RESULT).write_text(json.dumps(content))
    write_leaderboard(sweep)
    (row,) = read_json(sweep)
    assert row["certified_error"] is row["certified_error_std"] is None
    assert row["standard_error"] == pytest.approx((46 + 56) / 2)
    warnings = ["certified_error is missing or not finite (seed 1)", "collapsed (seed 0, 1)"]
    assert row["warnings"] == "; ".join(warnings)
    assert all(warning in text(sweep, "md") for warning in warnings) and "nan" not in text(sweep, "md").lower()


def test_columns_of_equilibria_and_open_examples_stand_where_some_network_has_them(sweep):
    add(sweep, metrics(60.0))
    assert not {"equilibrium gain", "undecided"} & set(only_section(sweep).cells)
    add(sweep, metrics(50.0, **{names.GAIN: 0.25, names.RHO_BOUND: None, names.UNDECIDED_ERROR: 3.0}), model="deqlate")
    cells = only_section(sweep).cells
    assert cells["equilibrium gain"].tolist() == ["0.250", ""] and cells["undecided"].tolist() == ["3.00", ""]
    assert cells.columns.tolist().index("undecided") == cells.columns.tolist().index("standard error") + 1
    assert only_section(sweep).warnings == [f"deqlate ibp: {names.RHO_BOUND} is missing or not finite (seed 0)"]


def test_failed_and_unfinished_networks_are_listed_and_counted(sweep):
    for seed in range(2):
        add(sweep, metrics(), seed=seed)
    add(sweep, failure="the loss is not finite", seed=2)
    training_progress.write_epoch(folder.network_of(add(sweep, method="sabr")), {names.EPOCH: 1})
    add(sweep, method="sabr", seed=1)
    leaderboard = write_leaderboard(sweep)
    assert "| 2 of 3 |" in text(sweep, "md")
    failures = leaderboard.uncounted[["method", "seed", "problem"]].to_numpy().tolist()
    assert failures == [
        ["ibp", "2", "failed: the loss is not finite"],
        ["sabr", "0", "unfinished: epoch 0 of 160"],
        ["sabr", "1", "not begun"],
    ]
    assert all(problem in text(sweep, "md") for _, _, problem in failures)


def test_results_that_cannot_be_right_or_are_of_another_recipe_are_not_counted(sweep):
    add(sweep, metrics(60.0) | {names.ATTACK_ERROR: 60.0 + 1e-13})  # within rounding
    add(sweep, metrics() | {names.ATTACK_ERROR: 80.0}, model="unordered")
    add(sweep, metrics(90.0), key="a-copy")
    add(sweep, metrics(), model="old", recipe=RECIPE_VERSION - 1)
    (add(sweep, metrics(), model="unreadable") / folder.RESULT).write_text("{")
    files.write_json(sweep / "networks/no-network" / folder.TRAINING, {"key": "no-network"})
    leaderboard = build_leaderboard(sweep)
    assert own(leaderboard)["model"].tolist() == ["cnn7"]
    problems = dict(leaderboard.uncounted[["model", "problem"]].to_numpy())
    assert set(problems) == {"unordered", "cnn7", "old", "unreadable", "no-network"}
    assert all(problem.startswith("not counted: ") for problem in problems.values())
    assert "attack <= certified" in problems["unordered"] and "another folder" in problems["cnn7"]
    assert f"of recipe version {RECIPE_VERSION - 1}, today's is {RECIPE_VERSION}" in problems["old"]


BAB, HELD_OUT = ("ibp", "bab"), {"split": "validation"}


@pytest.mark.parametrize(
    ("change", "stages"),
    [
        (
            {"evaluation": {"stages": BAB, "bab_seconds": None, "bab_branches": 2000, "test_images": 1000}},
            "ibp > bab (2,000 branches), first 1,000 test images",
        ),
        ({"evaluation": HELD_OUT, "validation_images": 500}, "ibp > crown-ibp > alpha-crown, 500 held-out images"),
    ],
)
def test_rows_evaluated_by_other_stages_or_on_other_images_never_share_a_section(sweep, change, stages):
    add(sweep, metrics(60.0))
    add(sweep, metrics(55.0), model="cnn5", **change)
    sections = {section.heading: section.own["model"].tolist() for section in build_leaderboard(sweep).sections}
    default = "ibp > crown-ibp > alpha-crown, all test images"
    assert sections == {
        f"cifar10, profile full, eps 8/255, {default}": ["cnn7"],
        f"cifar10, profile full, eps 8/255, {stages}": ["cnn5"],
    }


def test_networks_that_hold_out_other_images_share_no_section(sweep):
    for count in (500, 1000):
        add(sweep, metrics(60.0), validation_images=count, evaluation=HELD_OUT)
    headings = [section.heading for section in build_leaderboard(sweep).sections]
    assert sorted(heading.rpartition(", ")[2] for heading in headings) == [
        "1,000 held-out images",
        "500 held-out images",
    ]


def test_only_published_rows_of_the_same_data_and_exact_eps_are_shown(sweep):
    publish(
        sweep,
        "cifar10,16/510,CNN-7,IBP,51.06,65.03,Shi et al. 2021\n"
        "cifar10,8/255,CerDEQ,,,64.72,abstract\n"
        "cifar10,0.0313725,CNN-7,IBP,33.16,47.15,not exact\n"
        "mnist,8/255,CNN-7,IBP,33.16,47.15,wrong data\n",
    )
    add(sweep, metrics(64.9))
    add(sweep, metrics(60.0), profile="cpu", width=0.5)
    leaderboard = write_leaderboard(sweep)
    full, reduced = leaderboard.sections
    assert full.cells["source"].tolist() == ["abstract", "", "Shi et al. 2021"]  # by rank
    assert reduced.cells["source"].tolist() == ["", "abstract", "Shi et al. 2021"]  # after all own rows
    rows = read_json(sweep)
    assert [row.get("source") for row in rows] == ["abstract", None, "Shi et al. 2021", None]  # each once
    assert "source" not in rows[1] and rows[0]["standard_error"] is None
    assert "*CNN-7 IBP Shi et al. 2021*" in text(sweep, "md")
    with (sweep / "leaderboard.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [row["source"] for row in lines] == ["abstract", "", "Shi et al. 2021", ""]
    assert [row["is_paper"] for row in lines] == ["True", "False", "True", "False"]
    assert [row["section"] for row in lines] == [full.heading] * 3 + [reduced.heading]
    assert [row["row"] for row in lines] == [*full.labels, reduced.labels[0]]
    assert [row["eps"] for row in lines] == ["8/255", "8/255", "16/510", "8/255"]
    assert {float(row["eps_value"]) for row in lines} == {8 / 255}, "numbers group, texts of one radius do not"


@pytest.mark.parametrize(
    ("mean", "deviation", "text"),
    [
        (4.0912, 0.0572, "4.09 ± 0.06"),
        (0.04091, 0.0572, "0.0409 ± 0.0572"),
        (409.12, 5.72, "409 ± 6"),
        (40912.0, 572.0, "4.09e+04 ± 0.06e+04"),
    ],
)
def test_a_mean_and_its_deviation_have_the_same_digits(mean, deviation, text):
    assert Column("bound_width", "bound width", THREE_DIGITS).pair(mean, deviation) == text
