"""`python -m harness.tables --compare`: numbers against scipy and by hand, and what is left out or refused."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_networks import RIGHT, WRONG, add_verdicts
from scipy import stats

from harness import tables
from harness.command_line import main
from harness.common import names
from harness.config.training import RECIPE_VERSION
from harness.leaderboard.comparisons import METRICS, compare, holm
from harness.leaderboard.table import build_leaderboard
from harness.settings import Recipe
from harness.storage import folder


def compare_rows(sweep, *arguments, **options):
    return compare(build_leaderboard(sweep).sections, *arguments, **options)


def compare_two(sweep, *counts):
    """The lines for cnn9 against cnn7 by seed: for each seed, how many images both, one, the other or none is right."""
    for seed, (both, row, other, neither) in enumerate(counts):
        add_verdicts(sweep, [RIGHT] * (both + row) + [WRONG] * (other + neither), model="cnn9", seed=seed)
        second = [RIGHT] * both + [WRONG] * row + [RIGHT] * other + [WRONG] * neither
        add_verdicts(sweep, second, seed=seed)
    lines, *left_out = compare_rows(sweep, baseline="cnn7 ibp")
    assert left_out == [[], []]
    return lines.set_index("seed")


def test_the_p_value_of_one_seed_is_that_worked_out_by_hand(tmp_path):
    """5 images for one and 1 for the other: p = 2 (1 + 6) / 2^6 = 7 / 32."""
    lines = compare_two(tmp_path, (10, 5, 1, 4))
    assert lines.index.tolist() == ["all", 0]
    for line in lines.to_dict("records"):
        assert (line["row"], line["other"]) == ("cnn9 ibp", "cnn7 ibp")
        assert (line["images"], line["row_alone"], line["other_alone"]) == (20, 5, 1)
        assert line["difference"] == pytest.approx(-20)
        assert np.isnan(line["t_p"]) and np.isnan(line["difference_std"])
    assert lines.loc[0, ["mcnemar_p", "mcnemar_holm"]].tolist() == pytest.approx([7 / 32, 7 / 32])


def test_several_seeds_give_scipy_s_p_values(tmp_path):
    lines = compare_two(tmp_path, (10, 5, 1, 4), (10, 3, 3, 4), (12, 6, 2, 0))
    points = [-20.0, 0.0, -20.0]
    assert lines.loc[[0, 1, 2], "difference"].tolist() == pytest.approx(points)
    assert lines.loc[[0, 1, 2], "mcnemar_p"].tolist() == pytest.approx(
        [stats.binomtest(a, a + b).pvalue for a, b in ((5, 1), (3, 3), (6, 2))]
    )
    together = lines.loc["all"]
    assert (together["images"], together["row_alone"], together["other_alone"]) == (60, 14, 6)
    assert together["difference"] == pytest.approx(np.mean(points))
    assert together["difference_std"] == pytest.approx(np.std(points, ddof=1))
    assert np.isnan(together["mcnemar_p"]) and np.isnan(together["mcnemar_holm"])
    assert together["t_p"] == pytest.approx(stats.ttest_rel([25, 50, 10], [45, 50, 30]).pvalue)
    assert lines.loc[[0, 1, 2], ["t_p", "t_holm"]].isna().all(axis=None)
    assert lines.loc[0, "mcnemar_holm"] == pytest.approx(3 * lines.loc[0, "mcnemar_p"])


def test_no_difference_has_p_1_and_equal_differences_have_no_t_test(tmp_path):
    lines = compare_two(tmp_path / "a", (10, 0, 0, 10), (7, 0, 0, 13), (8, 0, 0, 12))
    assert lines.loc["all", ["t_p", "t_holm", "difference_std"]].tolist() == [1, 1, 0]
    assert np.isnan(compare_two(tmp_path / "b", *[(10, 5, 1, 4)] * 3).loc["all", "t_p"])


def test_two_seeds_have_no_t_test_there_as_on_the_board(tmp_path, capsys):
    lines = compare_two(tmp_path, (10, 5, 1, 4), (11, 5, 0, 4))
    assert lines[["t_p", "t_holm"]].isna().all(axis=None)
    assert main("tables", [str(tmp_path), "--compare"]) == 0
    sentence = "2 seeds are too few to rank rows; run 5 or more"
    assert f"no t test: {sentence}" in capsys.readouterr().out
    leaderboard = build_leaderboard(tmp_path)
    assert sentence in leaderboard.sections[0].summary.lines[0]


def test_seeds_of_one_side_alone_are_left_out_and_named(tmp_path):
    for seed in (0, 1):
        add_verdicts(tmp_path, [RIGHT, WRONG], model="cnn9", seed=seed)
        add_verdicts(tmp_path, [WRONG, WRONG], seed=seed + 1)
    lines, _, notes = compare_rows(tmp_path)
    assert lines["seed"].tolist() == ["all", 1]
    assert notes == ["seed 2 of cnn7 ibp, which cnn9 ibp lacks", "seed 0 of cnn9 ibp, which cnn7 ibp lacks"]


def test_only_the_selected_seeds_are_compared(tmp_path):
    for seed in (0, 1, 2):
        add_verdicts(tmp_path, [RIGHT] * seed + [WRONG] * (4 - seed), model="cnn9", seed=seed)
        add_verdicts(tmp_path, [WRONG] * 4, seed=seed)
    lines, _, notes = compare_rows(tmp_path, seeds=[1, 2])
    assert lines["seed"].tolist() == ["all", 1, 2] and notes == []
    assert lines["difference"].tolist() == pytest.approx([-37.5, -25, -50])


def test_seeds_are_integers_where_other_rows_have_none_in_common(tmp_path):
    for seed, model in ((0, "cnn7"), (0, "cnn5"), (5, "cnn3")):
        add_verdicts(tmp_path, [RIGHT, WRONG], model=model, seed=seed)
    lines, *_ = compare_rows(tmp_path)
    assert lines["seed"].map(str).tolist() == ["all", "0"] and lines["row_alone"].dtype == int


def test_a_sweep_has_the_name_of_its_directory_also_from_within(tmp_path, monkeypatch):
    add_verdicts(tmp_path / "here", [RIGHT])
    monkeypatch.chdir(tmp_path / "here")
    assert build_leaderboard(Path()).rows["sweep"].iloc[0] == "here"


def test_a_seed_that_no_network_has_is_refused(tmp_path, capsys):
    for model in ("cnn9", "cnn7"):
        add_verdicts(tmp_path, [RIGHT], model=model)
    assert main("tables", [str(tmp_path), "--compare", "--seeds", "0", "7"]) == 2
    assert "--seeds: found 7, allowed: some of 0" in capsys.readouterr().err


def test_holm_s_correction_is_that_worked_out_by_hand():
    """0.01 * 3, 0.02 * 2, and 0.03 * 1, which may not be below the one before; what is missing is no test."""
    corrected = holm(pd.Series([0.03, np.nan, 0.01, 0.02]))
    assert corrected.tolist() == pytest.approx([0.04, np.nan, 0.03, 0.04], nan_ok=True)
    assert holm(pd.Series([0.6, 0.7])).tolist() == [1, 1]


def test_each_metric_counts_its_own_errors(tmp_path):
    add_verdicts(tmp_path, [names.CERTIFIED] * 4, model="cnn9")
    add_verdicts(tmp_path, [names.MISCLASSIFIED, names.FALSIFIED, names.UNKNOWN, names.CERTIFIED])
    alone = {metric: compare_rows(tmp_path, metric)[0]["row_alone"].iloc[0] for metric in METRICS}
    assert alone == {"certified": 3, "attack": 2, "standard": 1}


def test_rows_of_other_methods_are_compared_with_a_baseline_alone(tmp_path):
    for model, method in (("cnn7", "ibp"), ("cnn9", "ibp"), ("cnn7", "crown-ibp"), ("cnn9", "crown-ibp")):
        add_verdicts(tmp_path, [RIGHT, WRONG], model=model, method=method)
    add_verdicts(tmp_path, [RIGHT, WRONG], profile="cpu")
    lines, *_ = compare_rows(tmp_path)
    assert set(zip(lines["row"], lines["other"], strict=True)) == {
        ("cnn7 crown-ibp", "cnn9 crown-ibp"),
        ("cnn7 ibp", "cnn9 ibp"),
    }
    lines, *_ = compare_rows(tmp_path, baseline="cnn7 ibp")
    assert set(lines["other"]) == {"cnn7 ibp"} and lines["row"].nunique() == 3


def test_a_baseline_may_be_a_pattern_of_one_row(tmp_path, capsys):
    for model, epochs in (("cnn7", 160), ("cnn7", 320), ("cnn9", 320)):
        add_verdicts(tmp_path, [RIGHT, WRONG], model=model, train=Recipe(epochs=epochs))
    lines, *_ = compare_rows(tmp_path, baseline="cnn7 *epochs=320", only=["cnn9 *"])
    assert set(lines["row"]) == {"cnn9 ibp train.epochs=320"} and set(lines["other"]) == {"cnn7 ibp train.epochs=320"}
    message = refusal(tmp_path, capsys, "--compare", "cnn7 *")
    assert "--compare: found 'cnn7 *', allowed: one row; it matches: cnn7 ibp train.epochs=" in message


def test_holm_s_correction_is_for_the_rows_that_are_compared(tmp_path):
    """Three pairs of three rows, or two with a baseline among four."""
    for model, right in (("cnn5", 8), ("cnn7", 5), ("cnn9", 1), ("cnn11", 0)):
        add_verdicts(tmp_path, [RIGHT] * right + [WRONG] * (8 - right), model=model)
    lines, *_ = compare_rows(tmp_path, only=["cnn[57] *", "cnn9 ibp"])
    assert len(lines) == 6 and "cnn11 ibp" not in {*lines["row"], *lines["other"]}
    lines, *_ = compare_rows(tmp_path, only=["cnn5 *", "cnn9 *"], baseline="cnn11 ibp")
    first = lines[lines["seed"] == 0]
    assert first["row"].tolist() == ["cnn5 ibp", "cnn9 ibp"] and set(first["other"]) == {"cnn11 ibp"}
    assert first["mcnemar_holm"].tolist() == [2 * first["mcnemar_p"].iloc[0], 1]


def test_rows_that_differ_in_the_recipe_are_compared_those_on_other_data_are_left_out(tmp_path):
    add_verdicts(tmp_path, [RIGHT, RIGHT])
    add_verdicts(tmp_path, [RIGHT, WRONG], train=Recipe(clip_norm=None))
    add_verdicts(tmp_path, [WRONG, WRONG], model="cnn9", evaluation={"attack_steps": 50})
    add_verdicts(tmp_path, [WRONG, WRONG], model="cnn11", fingerprint="other")
    lines, (note,), _ = compare_rows(tmp_path, baseline="cnn7 ibp train.clip_norm=10 *")
    assert lines[lines["seed"] == "all"]["difference"].tolist() == [50]
    assert note.endswith(" are evaluated on other data: fingerprint other and data")


def test_rows_of_several_sweeps_are_compared_and_copied_networks_left_out(tmp_path, capsys):
    short, long = tmp_path / "short", tmp_path / "long"
    for seed, verdicts in enumerate(([RIGHT, WRONG, WRONG], [WRONG, WRONG, RIGHT])):
        add_verdicts(short, [WRONG, WRONG, WRONG], seed=seed)
        add_verdicts(long, verdicts, seed=seed, train=Recipe(epochs=200))
    copy = add_verdicts(short, verdicts, seed=1, train=Recipe(epochs=200))
    assert main("tables", [str(long), str(short), "--compare", "--only", "cnn7 *"]) == 0
    printed = capsys.readouterr().out
    rows = "cnn7 ibp sweep=long train.epochs=200 against cnn7 ibp sweep=short train.epochs=160"
    assert rows in printed and "-33.33 ± 0.00" in printed and "seed 1" in printed
    assert f"left out: {copy}: not counted: another folder has the same network" in printed
    lines = pd.read_csv(long / tables.COMPARISONS)
    assert lines["difference"].tolist() == pytest.approx([-100 / 3] * 3) and not (short / tables.COMPARISONS).exists()


def refusal(sweep, capsys, *options):
    assert main("tables", [str(sweep), *(options or ["--compare"])]) == 2
    assert not (sweep / tables.COMPARISONS).exists()
    return capsys.readouterr().err


def test_what_cannot_be_compared_is_refused(tmp_path, capsys):
    add_verdicts(tmp_path, [RIGHT], recipe=RECIPE_VERSION - 1)
    assert "no evaluation has finished" in refusal(tmp_path, capsys)
    add_verdicts(tmp_path, [RIGHT])
    assert "there is only one row: cnn7 ibp" in refusal(tmp_path, capsys)
    add_verdicts(tmp_path, [RIGHT], method="crown-ibp")
    assert "no two of these rows have one training method" in refusal(tmp_path, capsys)
    for options in (["--compare", "cnn8"], ["--compare", "--only", "cnn8"]):
        message = refusal(tmp_path, capsys, *options)
        assert options[-2] in message and "'cnn8'" in message and "\n  cnn7 crown-ibp\n  cnn7 ibp\n" in message


def test_rows_without_common_seeds_or_images_are_refused(tmp_path, capsys):
    add_verdicts(tmp_path / "seeds", [RIGHT], seed=1)
    add_verdicts(tmp_path / "seeds", [RIGHT], model="cnn9")
    assert "seed 1 of cnn7 ibp, which cnn9 ibp lacks" in refusal(tmp_path / "seeds", capsys)
    paths = [add_verdicts(tmp_path / "images", [RIGHT]), add_verdicts(tmp_path / "images", [RIGHT], model="a", label=4)]
    message = refusal(tmp_path / "images", capsys)
    assert "different images" in message and all(str(path) in message for path in paths)
    (paths[0] / folder.VERDICTS).write_text("{")
    assert f"{paths[0] / folder.VERDICTS} cannot be read" in refusal(tmp_path / "images", capsys)
