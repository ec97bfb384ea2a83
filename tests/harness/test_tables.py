"""The leaderboard: what is averaged, what is not, and what the four files say."""

import csv
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from baselines.datasets import DATASETS
from harness import folder, names, tables
from harness.settings import RECIPE_VERSION, EvaluationSettings, TrainSettings, TrialConfig, parse_eps

PROJECT = Path(__file__).resolve().parents[2]
PUBLISHED_HEADER = "dataset,eps,model,method,standard_error,certified_error,source\n"


@pytest.fixture
def sweep(tmp_path):
    """results/study with a published.csv of its own beside it, which says nothing."""
    (tmp_path / "results/study").mkdir(parents=True)
    publish(tmp_path / "results/study", "")
    return tmp_path / "results/study"


def publish(sweep, lines):
    (sweep.parent / "published.csv").write_text(PUBLISHED_HEADER + lines)


def metrics(certified=65.0, **others):
    """All metrics of a finished trial, the three errors in order."""
    errors = {names.STANDARD_ERROR: certified - 14, names.ATTACK_ERROR: certified - 3, names.CERTIFIED_ERROR: certified}
    widths = {names.BOUND_WIDTH: 12.3456, names.BOUND_WIDTH_RELATIVE: 3.2}
    return errors | widths | {names.PARAMETERS: 17190602, names.TRAIN_SECONDS: 90.0} | others


def add(sweep, measured=None, *, fingerprint="data", recipe=None, failure=None, warnings=(), key=None, **config):
    """One trial folder: finished with `measured`, else failed with `failure`, else unfinished."""
    base = {"dataset": "cifar10", "eps": "8/255", "seed": 0, "model": "cnn7", "method": "ibp", "profile": "full"}
    trial = folder.make_trial(TrialConfig(sweep="study", **(base | config)), fingerprint)
    if recipe is not None:
        trial = replace(trial, recipe_version=recipe, key=f"{trial.key}{recipe}")
    path = sweep / "trials" / (key or trial.key)
    folder.write_json(path / folder.TRIAL, folder.trial_json(trial))
    if measured is not None:
        result = {"key": trial.key, "metrics": measured, "environment": {}, "data": {}, "warnings": list(warnings)}
        folder.write_json(path / folder.RESULT, result)
    if failure is not None:
        folder.write_json(path / folder.FAILURE, failure)
    return path


def own(table):
    return table.rows[table.rows["source"].isna()]


def read_json(sweep):
    return json.loads((sweep / "leaderboard.json").read_text())


def text(sweep, kind):
    return (sweep / f"leaderboard.{kind}").read_text(encoding="utf-8")


def test_means_and_sample_deviations_over_seeds(sweep):
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
    assert all(shown in text(sweep, kind) for kind in ("md", "html"))


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
    assert section.labels[1] == "cnn7 ibp width=1 train.epochs=160 train.clip_norm=none"
    tables.write(sweep)
    assert [row["train.clip_norm"] for row in read_json(sweep)] == [10.0, None, 10.0]


def test_options_in_another_order_are_the_same_row(sweep):
    add(sweep, metrics(60.0), seed=0, options={"margin": 0.1, "groups": 2})
    add(sweep, metrics(70.0), seed=1, options={"groups": 2, "margin": 0.1})
    (row,) = own(tables.build(sweep)).to_dict("records")
    assert row["options"] == "groups=2 margin=0.1"
    assert row[names.CERTIFIED_ERROR] == 65.0


def test_other_recipe_versions_stand_apart_as_stale(sweep):
    add(sweep, metrics(60.0), recipe=RECIPE_VERSION - 1)
    add(sweep, metrics(70.0))
    table = tables.write(sweep)
    assert [section.stale for section in table.sections] == [False, True]
    assert f"recipe version {RECIPE_VERSION - 1}, today's is {RECIPE_VERSION}" in text(sweep, "md")
    assert [row["certified_error"] for row in read_json(sweep)] == [70.0]
    assert "60.0" not in text(sweep, "csv")


def test_best_certified_error_first_and_unknown_last(sweep):
    for model, certified in (("b", 70.0), ("a", 60.0), ("c", None)):
        add(sweep, metrics(certified_error=certified, attack_error=55.0), model=model)
    assert own(tables.build(sweep))["model"].tolist() == ["a", "b", "c"]


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


def test_equilibrium_columns_only_where_some_trial_has_them(sweep):
    add(sweep, metrics(60.0))
    assert not any("equilibrium" in column for column in tables.build(sweep).rows)
    add(sweep, metrics(50.0, **{names.GAIN: 0.25, names.RHO_BOUND: None}), model="deqlate")
    table = tables.write(sweep)
    equilibrium, explicit = read_json(sweep)
    assert (equilibrium[names.GAIN], explicit[names.GAIN]) == (0.25, None)
    assert names.ITERATIONS not in equilibrium
    assert table.sections[0].shown["gain"].tolist() == ["0.250", ""]
    assert equilibrium["warnings"] == f"{names.RHO_BOUND} is missing or not finite (seed 0)"
    assert explicit["warnings"] == ""


def test_failed_and_unfinished_trials_are_listed_and_counted(sweep):
    add(sweep, metrics(), seed=0)
    add(sweep, metrics(), seed=1)
    add(sweep, failure={"error": "the loss is not finite", "epoch": 12}, seed=2)
    for place, epochs in ((add(sweep, method="sabr"), 2), (add(sweep, method="mtl"), 1)):
        for epoch in range(epochs):
            folder.write_epoch(place, {names.EPOCH: epoch})
    table = tables.write(sweep)
    (row,) = read_json(sweep)
    assert (row["seeds"], row["seeds_started"]) == (2, 3)
    assert "| 2 of 3 |" in text(sweep, "md")
    failures = {(f["method"], f["seed"]): f["problem"] for f in table.failures.to_dict("records")}
    assert failures == {
        ("ibp", "2"): "failed: the loss is not finite",
        ("sabr", "0"): "unfinished: 1 of 160 epochs",
        ("mtl", "0"): "unfinished: 0 of 160 epochs",
    }
    assert all(problem in text(sweep, kind) for problem in failures.values() for kind in ("md", "html"))


def test_a_sweep_without_a_finished_trial(sweep):
    add(sweep)
    table = tables.write(sweep)
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
    folder.write_json(foreign / folder.RESULT, json.loads((foreign / folder.RESULT).read_text()) | {"key": "else"})
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


def test_published_rows_of_the_same_data_and_exact_eps_only(sweep):
    publish(
        sweep,
        "cifar10,16/510,CNN-7,IBP,51.06,65.03,Shi et al. 2021\n"
        "cifar10,8/255,CerDEQ,,,64.72,abstract\n"
        "cifar10,2/255,CNN-7,IBP,33.16,47.15,wrong eps\n"
        "cifar10,0.0313725,CNN-7,IBP,33.16,47.15,not exact\n"
        "mnist,8/255,CNN-7,IBP,33.16,47.15,wrong data\n",
    )
    for seed in (0, 1):
        add(sweep, metrics(64.9), seed=seed)
    tables.write(sweep)
    objects = read_json(sweep)
    assert [o.get("source") for o in objects] == ["abstract", None, "Shi et al. 2021"]
    assert [o["certified_error"] for o in objects] == [64.72, 64.9, 65.03]
    assert "source" not in objects[1]
    assert objects[0]["standard_error"] is None
    assert "*Shi et al. 2021*" in text(sweep, "md")
    assert text(sweep, "html").count('class="published"') == 2
    with (sweep / "leaderboard.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [set(o) - set(rows[0]) for o in objects] == [set()] * 3
    assert [row["source"] for row in rows] == ["abstract", "", "Shi et al. 2021"]


def test_published_rows_appear_once_though_two_profiles_show_them(sweep):
    publish(sweep, "cifar10,8/255,CerDEQ,,,64.72,abstract\n")
    add(sweep, metrics())
    add(sweep, metrics(), profile="cpu")
    table = tables.build(sweep)
    assert [section.published.count(True) for section in table.sections] == [1, 1]
    assert table.rows["source"].notna().sum() == 1


def test_the_projects_own_published_numbers_are_the_fallback(tmp_path):
    add(tmp_path / "study", metrics())
    sources = tables.build(tmp_path / "study").rows["source"].dropna()
    assert len(sources) == 10
    assert "Shi et al. 2021" in set(sources)


def test_published_csv_of_the_project():
    with (PROJECT / "results/published.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len({tuple(row.items()) for row in rows}) == 22
    for row in rows:
        assert row["dataset"] in DATASETS
        assert parse_eps(row["eps"])
        assert row["source"]
        assert float(row["standard_error"] or 0) < float(row["certified_error"])


def test_first_lines_say_what_the_numbers_are(sweep):
    small = {"width": 0.25, "train_images": 10000, "train": TrainSettings(10, decay_epochs=(), ramp_epochs=5)}
    tested = {"validation_images": 500, "evaluation": EvaluationSettings(test_images=300)}
    add(sweep, metrics(), profile="cpu", **small, **tested)
    tables.write(sweep)
    for kind in ("md", "html"):
        page = text(sweep, kind)
        for said in (
            "Leaderboard of the sweep study",
            "cifar10, eps 8/255, profile cpu",
            "profile cpu (width 0.25, train images 10,000, epochs 10) and are not comparable with published ones",
            "Errors are measured on 300 of the test images",
            "All errors are measured on 500 validation images",
        ):
            assert said in page
            assert page.index(said) < page.index("certified error")


def test_the_full_profile_has_no_caveats(sweep):
    add(sweep, metrics())
    (section,) = tables.build(sweep).sections
    assert section.notes == []


def test_markdown_table_is_aligned_and_formatted(sweep):
    add(sweep, metrics(bound_width=0.0123456), options={"a|b": "*x*"})
    tables.write(sweep)
    lines = [line for line in text(sweep, "md").splitlines() if line.startswith("|")]
    assert len({len(line) for line in lines}) == 1
    assert "a\\|b=\\*x\\*" in lines[2]
    for cell in ("65.00", "0.0123", "3.20", "17,190,602"):
        assert f"| {cell} " in lines[2]


def test_html_escapes_everything_from_configs_and_results(sweep):
    attack = "<script>alert('x')</script>"
    add(sweep, metrics(), model=attack, options={attack: attack}, profile=attack, warnings=[attack])
    add(sweep, failure={"error": attack}, model=attack, method=attack)
    tables.write(sweep)
    page = text(sweep, "html")
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 6
    assert "<script" not in text(sweep, "md")


def test_rebuilding_gives_identical_files(sweep):
    for seed in (2, 0, 1):
        add(sweep, metrics(60 + seed), seed=seed, warnings=["collapsed"])
    add(sweep, failure={"error": "x"}, seed=3)
    first = [path.read_bytes() for path in tables.write(sweep).files]
    assert [path.read_bytes() for path in tables.write(sweep).files] == first
    assert sorted(path.name for path in sweep.iterdir()) == [
        *("leaderboard.csv", "leaderboard.html", "leaderboard.json", "leaderboard.md"),
        "trials",
    ]
    assert "collapsed (seed 0, 1, 2)" in first[0].decode()


@pytest.mark.parametrize("width", [80, 160])
def test_the_terminal_shows_numbers_notes_failures_and_files(sweep, width):
    add(sweep, metrics(), options={"markup": "[red]"}, profile="cpu")
    add(sweep, failure={"error": "no [memory]"}, model="big", profile="cpu")
    console = Console(width=width)
    with console.capture() as capture:
        tables.show(tables.write(sweep), console)
    printed = capture.get()
    assert all(said in printed for said in ("65.00", "[red]", "not comparable", "big ibp seed 0: failed: no [memory]"))
    assert all(str(path) in printed for path in (sweep / "leaderboard.md", sweep / "leaderboard.html"))


def test_command_line(sweep, capsys):
    add(sweep, metrics())
    tables.main([str(sweep)])
    printed = capsys.readouterr().out
    assert "65.00" in printed
    assert str(sweep / "leaderboard.json") in printed


@pytest.mark.parametrize("what", ["is not a directory", "holds no trials", "holds no trial that can be read"])
def test_command_line_errors(tmp_path, capsys, what):
    directory = tmp_path / "study"
    if what != "is not a directory":
        directory.mkdir()
    if what == "holds no trial that can be read":
        folder.write_json(directory / "trials/x" / folder.TRIAL, [])
    with pytest.raises(SystemExit) as stop:
        tables.main([str(directory)])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"{directory} {what}")
    assert len(error.splitlines()) == 1
    assert not list(tmp_path.rglob("leaderboard.*"))


def test_a_faulty_published_csv_is_named(sweep):
    add(sweep, metrics())
    (sweep.parent / "published.csv").write_text("dataset,eps\n")
    with pytest.raises(ValueError, match=r"published\.csv: there is no column model"):
        tables.build(sweep)
    publish(sweep, "cifar10,about 8,CNN-7,IBP,1,2,x\n")
    with pytest.raises(ValueError, match=r"published\.csv: eps: found 'about 8'"):
        tables.build(sweep)


def test_runs_without_ray_mlflow_pydantic_and_torch(sweep):
    add(sweep, metrics())
    blocked = "import sys; sys.modules |= dict.fromkeys(['ray', 'mlflow', 'pydantic', 'torch'])"
    run = "import runpy; runpy.run_module('harness.tables', run_name='__main__', alter_sys=True)"
    command = [sys.executable, "-c", f"{blocked}; {run}", str(sweep)]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "65.00" in done.stdout
