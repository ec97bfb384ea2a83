"""`python -m harness.depth`: means by hand, what is kept apart, and trials without a result."""

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from harness.analysis import depth
from harness.command_line import main
from harness.config.settings import TrainSettings
from harness.config.trial import RECIPE_VERSION, TrialConfig
from harness.data import load
from harness.storage import files, folder, names
from harness.training import run_trial


def widths(margins, *layers, relative=1.0):
    """Metrics of these widths, the layers in order; None is one that is not finite."""
    by_layer = {names.layer_width(f"relu{number}"): width for number, width in enumerate(layers, start=1)}
    return {names.BOUND_WIDTH: margins, names.BOUND_WIDTH_RELATIVE: relative, **by_layer}


def add(sweep, initial=None, final=None, certified=60.0, *, failure=None, key=None, recipe=None, **config):
    """A trial with these widths before training and after; failed with `failure`, unfinished without final ones."""
    base = {"dataset": "cifar10", "eps": "8/255", "seed": 0, "method": "ibp", "profile": "full"}
    start, network = config.pop("initialisation", "ibp"), config.pop("model", "cnn7")
    family = network.rstrip("0123456789")
    if family in depth.FAMILIES:
        config["options"] = {"depth": int(network.removeprefix(family))} | config.get("options", {})
    config["model"] = family if family in depth.FAMILIES else network
    base["train"] = TrainSettings(initialisation=start)
    trial = folder.make_trial(TrialConfig(sweep="study", **(base | config)), "data")
    if recipe is not None:
        trial = dataclasses.replace(trial, recipe_version=recipe)
    path = sweep / "trials" / (key or trial.key)
    files.write_json(path / folder.TRIAL, folder.trial_json(trial))
    if initial is not None:
        row = {names.in_training(name): value for name, value in initial.items()}
        folder.write_epoch(path, {names.EPOCH: 0, names.TRAIN_EPS: 0.0, **row})
        folder.write_epoch(path, {names.EPOCH: 1, **dict.fromkeys(row, 1e9)})
    if final is not None:
        errors = {names.STANDARD_ERROR: 1.0, names.ATTACK_ERROR: 2.0, names.CERTIFIED_ERROR: certified}
        folder.write_result(path, folder.TrialResult(trial.key, {**errors, **final}, {}, {}, []))
    if failure is not None:
        files.write_json(path / folder.FAILURE, {"error": failure})
    return path


def rows(sweep):
    return depth.depth_table(sweep).to_dict("records")


def test_means_and_standard_errors_are_those_worked_out_by_hand(tmp_path):
    """Of widths 1, 2, 9 the growth is 3; certified errors 60, 63, 66 have the standard error 3 / sqrt(3)."""
    for seed, (first, last, certified) in enumerate([(8.0, 0.5, 60.0), (10.0, 1.0, 63.0), (12.0, 3.0, 66.0)]):
        initial, final = widths(first, 1, 2, 9, relative=4 + seed), widths(last, 16, 4, 1, relative=seed)
        add(tmp_path, initial, final, certified, seed=seed)
    (row,) = rows(tmp_path)
    assert (row["family"], row["depth"], row["initialisation"]) == ("cnn", 7, "ibp")
    assert (row["initial_width"], row["initial_width_relative"], row["initial_growth"]) == pytest.approx((10, 5, 3))
    assert (row["final_width"], row["final_width_relative"], row["final_growth"]) == pytest.approx((1.5, 1, 0.25))
    assert row[names.CERTIFIED_ERROR] == pytest.approx(63)
    assert row[depth.SEM] == pytest.approx(3 / math.sqrt(3))
    assert (row["seeds"], row["seeds_started"], row["problem"]) == (3, 3, "")


@pytest.mark.parametrize(
    ("by_layer", "expected"),
    [([2, 8], 4), ([1, 5, 9], 3), ([9, 3, 1], 1 / 3), ([1, 7, None], math.inf), ([1, 0], 0)],
)
def test_growth_is_the_mean_factor_from_layer_to_layer(by_layer, expected):
    assert depth.growth(by_layer) == pytest.approx(expected)


@pytest.mark.parametrize("by_layer", [[], [3], [0, 1]])
def test_what_cannot_grow_has_no_growth(by_layer):
    assert math.isnan(depth.growth(by_layer))


def test_rows_stand_by_family_initialisation_and_depth(tmp_path):
    models = ["cerdeq", "tied25", "cnn25", "cnn7", "wideresnet8", "tied7", "resnet9"]
    for model in models:
        for start in ("ibp", "default"):
            add(tmp_path, widths(1, 1, 1), widths(1, 1, 1), model=model, initialisation=start)
    order = [
        (row["family"], row["initialisation"], None if pd.isna(row["depth"]) else row["depth"])
        for row in rows(tmp_path)
    ]
    assert order == [
        (family, start, number)
        for family, numbers in (
            ("cnn", (7, 25)), ("resnet", (9,)), ("tied", (7, 25)), ("cerdeq", (None,)), ("wideresnet8", (None,)),
        )
        for start in ("default", "ibp")
        for number in numbers
    ]  # fmt: skip


@pytest.mark.parametrize(
    "difference",
    [
        {"options": {"pool": True}},
        {"width": 0.5},
        {"profile": "cpu"},
        {"method": "crown-ibp"},
        {"train": TrainSettings(learning_rate=1e-3)},
        {"initialisation": "default"},
    ],
)
def test_what_differs_is_never_averaged_and_can_be_told_apart(tmp_path, difference):
    add(tmp_path, widths(1, 1, 1), widths(1, 1, 1))
    add(tmp_path, widths(3, 1, 1), widths(3, 1, 1), seed=1, **difference)
    assert sorted(row["initial_width"] for row in rows(tmp_path)) == [1, 3]
    parts = depth.shown(depth.depth_table(tmp_path))
    numbers = ["seeds", *depth.INITIAL.values(), *depth.FINAL.values(), "certified error"]
    labels = {(heading, *row) for heading, part in parts.items() for row in part.drop(columns=numbers).to_numpy()}
    assert len({tuple(map(str, label)) for label in labels}) == 2


def test_trials_without_a_result_are_told(tmp_path):
    """What they were before training counts; what is not finite makes a mean infinite."""
    add(tmp_path, widths(2, 1, 4), widths(1, 1, 1), 50.0, seed=0)
    add(tmp_path, widths(4, 1, 4), failure="NonFiniteLossError: diverged; step: 3", seed=1)
    add(tmp_path, widths(None, 1, None, relative=None), failure="NonFiniteLossError: diverged; at: once", model="cnn9")
    add(tmp_path, model="cnn11")
    seven, nine, eleven = rows(tmp_path)
    assert (seven["initial_width"], seven["initial_growth"], seven["final_width"]) == (3, 4, 1)
    assert (seven["seeds"], seven["seeds_started"], seven[names.CERTIFIED_ERROR]) == (1, 2, 50)
    assert seven["problem"] == "seed 1: failed: NonFiniteLossError: diverged; step: 3"
    assert [nine[name] for name in depth.INITIAL] == [math.inf] * 3
    assert np.isnan(nine[names.CERTIFIED_ERROR]) and np.isnan(eleven["initial_width"])
    shown = depth.shown(depth.depth_table(tmp_path)).popitem()[1]
    assert shown["certified error"].tolist() == ["50.00", "failed", "unfinished"]
    assert shown["seeds"].tolist() == ["1 of 2", "0 of 1", "0 of 1"]
    assert shown["initial width"].tolist() == ["3", "inf", ""]


def test_damaged_files_and_doubles_are_told(tmp_path):
    add(tmp_path, widths(2, 1, 4), widths(1, 1, 1), seed=0)
    add(tmp_path, widths(8, 1, 4), widths(8, 1, 1), seed=0, key="zz-again")
    epochs = add(tmp_path, widths(2, 1, 4), widths(1, 1, 1), seed=1, model="cnn9")
    (epochs / folder.EPOCHS).write_text("{")
    (add(tmp_path, model="cnn11") / folder.TRIAL).write_text("{")
    by_network = {row["family"] + str(row["depth"]): row for row in rows(tmp_path)}
    seven, nine = by_network.pop("cnn7"), by_network.pop("cnn9")
    assert seven["initial_width"] == 2 and "another folder holds the same trial" in seven["problem"]
    assert nine["seeds"] == 0 and folder.EPOCHS in nine["problem"]
    (unreadable,) = by_network.values()
    assert "cannot be read" in unreadable["problem"]


def test_older_recipes_are_left_out(tmp_path):
    add(tmp_path, widths(2, 1, 4), widths(1, 1, 1), recipe=RECIPE_VERSION - 1, key="old", model="cnn9")
    with pytest.raises(ValueError, match=f"recipe version, {RECIPE_VERSION}"):
        depth.depth_table(tmp_path)
    add(tmp_path, widths(2, 1, 4), widths(1, 1, 1))
    assert [row["depth"] for row in rows(tmp_path)] == [7]


def test_the_command_prints_what_it_writes(tmp_path, capsys):
    for seed in range(3):
        add(tmp_path, widths(1234.5 + seed, 1, 9), widths(0.125, 2, 2), 60.0 + 3 * seed, seed=seed)
    add(tmp_path, widths(2, 1, 4), failure="boom", model="cnn25", initialisation="default")
    depth.show(depth.depth_table(tmp_path), Console(width=80))
    narrow = capsys.readouterr().out
    for part in ("cnn initialisation=default 25", "1.24e+03", "63.00 ± 1.73", "3 of 3", "failed: boom", "method ibp"):
        assert part in narrow, part
    assert "…" not in narrow
    main("depth", [str(tmp_path)])
    printed = capsys.readouterr().out
    markdown = (tmp_path / "depth.md").read_text()
    for part in ("cifar10, eps 8/255, profile full, method ibp", "1.24e+03", "63.00 ± 1.73", "3 of 3", "failed: boom"):
        assert part in printed and part in markdown, part
    assert str(tmp_path / "depth.csv") in printed
    written = pd.read_csv(tmp_path / "depth.csv")
    assert written["depth"].tolist() == [25, 7]
    assert "states" not in written
    assert written["initial_width"].tolist() == [2, 1235.5]
    assert written["problem"].fillna("").tolist() == ["seed 0: failed: boom", ""]
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("name", ["", "missing"])
def test_a_folder_without_trials_is_refused(tmp_path, capsys, name):
    assert main("depth", [str(tmp_path / name)]) == 2
    assert "error: " in capsys.readouterr().err


def test_the_widths_of_a_real_trial_are_those_in_its_folder(tiny_trial, tmp_path):
    config = tiny_trial("tied", options={"depth": 8}, width=0.05, train={"epochs": 1, "ramp_epochs": 1})
    place = folder.place(tmp_path, folder.make_trial(config, load("digits").fingerprint).key)
    result = run_trial(config, place)
    (row,) = rows(tmp_path)
    untrained = folder.read_epochs(place)[0]
    assert row["initial_width"] == untrained["train/bound_width"]
    relus = ("relu1", "relu2", "relu3", "unrolled.relu", "unrolled.relu.2", "unrolled.relu.3", "relu_linear")
    before = [untrained[names.in_training(names.layer_width(name))] for name in relus]
    after = [result.metrics[names.layer_width(name)] for name in relus]
    assert row["initial_growth"] == pytest.approx(np.exp(np.diff(np.log(before)).mean()))
    assert row["final_growth"] == pytest.approx(np.exp(np.diff(np.log(after)).mean()))
    assert row["final_width"] == result.metrics[names.BOUND_WIDTH]
