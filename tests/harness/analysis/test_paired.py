"""`python -m harness.paired`: numbers against scipy and by hand, and what is left out or refused."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from harness.analysis import paired
from harness.analysis.leaderboard import build
from harness.command_line import main
from harness.config.settings import EvaluationSettings, TrainSettings
from harness.config.trial import RECIPE_VERSION, TrialConfig
from harness.data import load
from harness.storage import files, folder, names
from harness.training import run_trial

RIGHT, WRONG = names.CERTIFIED, names.UNKNOWN
HEADING = "cifar10, eps 8/255, profile full, ibp > crown-ibp > alpha-crown, all test images"


def add(place, verdicts, *, recipe=RECIPE_VERSION, fingerprint="data", finished=True, labels=None, order=1, **config):
    """A finished trial with these verdicts, one an image."""
    base = {
        "sweep": "study",
        "dataset": "cifar10",
        "eps": "8/255",
        "seed": 0,
        "model": "cnn7",
        "method": "ibp",
        "profile": "full",
    }
    trial = folder.make_trial(TrialConfig(**(base | config)), fingerprint)
    if recipe != RECIPE_VERSION:
        trial = folder.Trial(f"{trial.key}{recipe}", recipe, fingerprint, trial.config)
    path = folder.place(place, trial.key)
    files.write_json(path / folder.TRIAL, folder.trial_json(trial))
    table = pd.DataFrame({names.INDEX: range(len(verdicts)), names.LABEL: 3, names.VERDICT: verdicts})
    table.assign(**{names.LABEL: labels or 3})[::order].to_parquet(path / folder.VERDICTS)
    wrong = 100 * float(np.mean([verdict != RIGHT for verdict in verdicts]))
    metrics = {names.STANDARD_ERROR: 0.0, names.ATTACK_ERROR: 0.0, names.CERTIFIED_ERROR: wrong}
    if finished:
        folder.write_result(path, folder.TrialResult(trial.key, metrics, {}, {}, []))
    return path


def verdicts(*counts):
    """Of each pair (row, other) of right and wrong: how many images are both right, right by row, by other, neither."""
    both, row, other, neither = counts
    mine = [RIGHT] * (both + row) + [WRONG] * (other + neither)
    return mine, [RIGHT] * both + [WRONG] * row + [RIGHT] * other + [WRONG] * neither


def compared(sweep, *counts, **changes):
    """The lines for cnn9 against cnn7, with these counts for each seed."""
    for seed, each in enumerate(counts):
        mine, theirs = verdicts(*each)
        add(sweep, mine, model="cnn9", seed=seed, **changes)
        add(sweep, theirs, seed=seed)
    lines, notes = paired.compare(build(sweep), baseline="cnn7 ibp")
    assert notes == []
    return lines.set_index("seed")


def test_the_p_value_of_one_seed_is_that_worked_out_by_hand(tmp_path):
    """5 images for one and 1 for the other: p = 2 (1 + 6) / 2^6 = 7 / 32."""
    lines = compared(tmp_path, (10, 5, 1, 4))
    assert lines.index.tolist() == ["all", 0]
    for line in lines.to_dict("records"):
        assert (line["row"], line["other"]) == ("cnn9 ibp", "cnn7 ibp")
        assert (line["images"], line["row_alone"], line["other_alone"]) == (20, 5, 1)
        assert line["difference"] == pytest.approx(-20)
        assert line["mcnemar_p"] == pytest.approx(7 / 32)
        assert np.isnan(line["t_p"]) and np.isnan(line["difference_std"])
    assert lines.loc["all", "mcnemar_holm"] == pytest.approx(7 / 32)


def test_several_seeds_give_scipy_s_p_values(tmp_path):
    lines = compared(tmp_path, (10, 5, 1, 4), (10, 3, 3, 4), (12, 6, 2, 0))
    points = [-20.0, 0.0, -20.0]
    assert lines.loc[[0, 1, 2], "difference"].tolist() == pytest.approx(points)
    assert lines.loc[[0, 1, 2], "mcnemar_p"].tolist() == pytest.approx(
        [stats.binomtest(a, a + b).pvalue for a, b in ((5, 1), (3, 3), (6, 2))]
    )
    together = lines.loc["all"]
    assert (together["images"], together["row_alone"], together["other_alone"]) == (60, 14, 6)
    assert together["difference"] == pytest.approx(np.mean(points))
    assert together["difference_std"] == pytest.approx(np.std(points, ddof=1))
    assert together["mcnemar_p"] == pytest.approx(stats.binomtest(14, 20).pvalue)
    errors = np.array([[25, 50, 10], [45, 50, 30]])
    assert together["t_p"] == pytest.approx(stats.ttest_rel(*errors).pvalue)
    assert lines.loc[[0, 1, 2], ["mcnemar_holm", "t_p", "t_holm"]].isna().all(axis=None)


def test_alike_trials_differ_by_nothing(tmp_path):
    lines = compared(tmp_path, (10, 0, 0, 10), (7, 0, 0, 13))
    assert (lines["difference"] == 0).all() and (lines["mcnemar_p"] == 1).all()
    assert lines.loc["all", ["t_p", "t_holm", "mcnemar_holm", "difference_std"]].tolist() == [1, 1, 1, 0]


def test_equal_differences_have_no_t_test(tmp_path):
    assert np.isnan(compared(tmp_path, (10, 5, 1, 4), (10, 5, 1, 4)).loc["all", "t_p"])


def test_rows_and_images_in_another_order_change_nothing_but_signs(tmp_path):
    mine, theirs = verdicts(10, 5, 1, 4)
    for sweep, order in (("a", 1), ("b", -1)):
        add(tmp_path / sweep, mine, model="cnn9", order=order)
        add(tmp_path / sweep, theirs)
    one, two = (paired.compare(build(tmp_path / sweep))[0] for sweep in ("a", "b"))
    pd.testing.assert_frame_equal(one, two)
    assert one["difference"].tolist() == [-20, -20]  # the better row first
    other, _ = paired.compare(build(tmp_path / "a"), baseline="cnn9 ibp")
    assert other["difference"].tolist() == [20, 20]
    assert other["mcnemar_p"].tolist() == one["mcnemar_p"].tolist()
    assert other["row_alone"].tolist() == one["other_alone"].tolist()


def test_seeds_of_one_side_alone_are_left_out_and_named(tmp_path):
    mine, theirs = verdicts(10, 5, 1, 4)
    for seed in (0, 1):
        add(tmp_path, mine, model="cnn9", seed=seed)
    for seed in (1, 2, 3):
        add(tmp_path, theirs, seed=seed)
    add(tmp_path, mine, model="cnn9", seed=3, finished=False)
    lines, notes = paired.compare(build(tmp_path))
    assert lines["seed"].tolist() == ["all", 1]
    assert notes == [
        "seed 2, 3 of cnn7 ibp, which cnn9 ibp lacks",
        "seed 0 of cnn9 ibp, which cnn7 ibp lacks",
    ]


def test_holm_s_correction_is_that_worked_out_by_hand():
    """0.01 * 3, 0.02 * 2, and 0.03 * 1, which may not be below the one before; what is missing is no test."""
    corrected = paired.holm(pd.Series([0.03, np.nan, 0.01, 0.02]))
    assert corrected.tolist() == pytest.approx([0.04, np.nan, 0.03, 0.04], nan_ok=True)
    assert paired.holm(pd.Series([0.6, 0.7])).tolist() == [1, 1]


def test_holm_is_over_all_comparisons_printed(tmp_path):
    mine, theirs = verdicts(10, 8, 1, 4)
    add(tmp_path, mine, model="cnn9")
    for model in ("cnn7", "cnn5"):
        add(tmp_path, theirs, model=model)
    add(tmp_path, mine, model="cnn9", profile="cpu")
    add(tmp_path, theirs, profile="cpu")
    lines, _ = paired.compare(build(tmp_path))
    together = lines[lines["seed"] == "all"]
    assert together["section"].nunique() == 2 and len(together) == 4
    p = stats.binomtest(1, 9).pvalue
    assert sorted(together["mcnemar_holm"]) == pytest.approx([4 * p, 4 * p, 4 * p, 1])


def test_each_metric_counts_its_own_errors(tmp_path):
    kinds = [names.MISCLASSIFIED, names.ATTACKED, names.UNKNOWN, names.CERTIFIED]
    add(tmp_path, [names.CERTIFIED] * 4, model="cnn9")
    add(tmp_path, kinds)
    alone = {metric: paired.compare(build(tmp_path), metric)[0]["row_alone"].iloc[0] for metric in paired.METRICS}
    assert alone == {"certified": 3, "attack": 2, "standard": 1}


def test_rows_of_other_methods_are_compared_with_a_baseline_alone(tmp_path):
    for model, method in (("cnn7", "ibp"), ("cnn9", "ibp"), ("cnn7", "crown-ibp"), ("cnn9", "crown-ibp")):
        add(tmp_path, [RIGHT, WRONG], model=model, method=method)
    lines, _ = paired.compare(build(tmp_path))
    pairs = {(line["row"], line["other"]) for line in lines.to_dict("records")}
    assert pairs == {
        ("cnn7 crown-ibp", "cnn9 crown-ibp"),
        ("cnn7 ibp", "cnn9 ibp"),
    }
    lines, _ = paired.compare(build(tmp_path), baseline="cnn7 ibp")
    assert set(lines["other"]) == {"cnn7 ibp"} and lines["row"].nunique() == 3


def test_chosen_rows_are_corrected_for_among_themselves(tmp_path, capsys):
    """Holm's correction is for what is compared: three pairs of three rows, or two with a baseline among four."""
    ranks = {
        "cnn5": [RIGHT] * 8,
        "cnn7": [RIGHT] * 5 + [WRONG] * 3,
        "cnn9": [RIGHT] + [WRONG] * 7,
        "cnn11": [WRONG] * 8,
    }
    for model, verdicts in ranks.items():
        add(tmp_path, verdicts, model=model)
    lines, _ = paired.compare(build(tmp_path), only=["cnn[57] *", "cnn9 ibp"])
    assert len(lines) == 6 and "cnn11 ibp" not in {*lines["row"], *lines["other"]}
    lines, _ = paired.compare(build(tmp_path), only=["cnn5 *", "cnn9 *"], baseline="cnn11 ibp")
    first = lines[lines["seed"] == paired.ALL]
    assert first["row"].tolist() == ["cnn5 ibp", "cnn9 ibp"] and set(first["other"]) == {"cnn11 ibp"}
    assert first["mcnemar_holm"].tolist() == [2 * first["mcnemar_p"].iloc[0], 1]
    assert main("paired", [str(tmp_path), "--only", "cnn5 *", "--only", "cnn7 *"]) == 0
    assert "cnn9" not in capsys.readouterr().out


def test_a_pattern_of_no_row_is_refused_beside_others_too(tmp_path, capsys):
    for model in ("cnn5", "cnn7"):
        add(tmp_path, [RIGHT], model=model)
    message = refused(tmp_path, capsys, "--only", "cnn*", "--only", "cnn8 *")
    assert "--only" in message and "'cnn8 *'" in message and "cnn5 ibp; cnn7 ibp" in message


def test_rows_that_differ_in_the_recipe_or_options_are_compared(tmp_path):
    add(tmp_path, [RIGHT, RIGHT], model="cerdeq")
    add(tmp_path, [RIGHT, WRONG], model="cerdeq", options={"gain": None})
    add(tmp_path, [WRONG, WRONG], model="cerdeq", train=TrainSettings(clip_norm=None))
    lines, _ = paired.compare(build(tmp_path), baseline="cerdeq ibp gain=None train.clip_norm=10")
    assert lines[lines["seed"] == "all"]["difference"].tolist() == [-50, 50]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"evaluation": EvaluationSettings(attack_steps=50)}, "evaluation.attack_steps 40 and 50"),
        ({"fingerprint": "other"}, "fingerprint data and other"),
    ],
)
def test_rows_that_are_not_judged_alike_are_left_out_and_said(tmp_path, change, said):
    add(tmp_path, [RIGHT, RIGHT], model="cnn9")
    add(tmp_path, [RIGHT, WRONG])
    add(tmp_path, [WRONG, WRONG], model="cnn11", **change)
    lines, notes = paired.compare(build(tmp_path))
    assert len(lines) == 2 and len(notes) == 2
    assert all("not judged alike" in note and said in note for note in notes)


def test_rows_of_several_sweeps_are_compared(tmp_path, capsys):
    short, long = tmp_path / "short", tmp_path / "long"
    for seed, right in enumerate(([RIGHT, WRONG, WRONG], [WRONG, WRONG, RIGHT])):
        add(short, [WRONG, WRONG, WRONG], seed=seed, sweep="short")
        add(long, right, seed=seed, sweep="long", train=TrainSettings(epochs=200))
    add(long, [RIGHT, RIGHT, RIGHT], sweep="long", model="cnn9")
    settings = "sweep=long train.epochs=200", "sweep=short train.epochs=160"
    assert main("paired", [str(long), str(short), "--only", "cnn7 *"]) == 0
    printed = capsys.readouterr().out
    assert "cnn7 ibp {} against cnn7 ibp {}".format(*settings) in printed and "cnn9" not in printed
    lines = pd.read_csv(long / paired.FILE)
    assert lines["difference"].tolist() == pytest.approx([-100 / 3] * 3) and not (short / paired.FILE).exists()


@pytest.mark.parametrize("what", ["the same trial", "itself", "unfinished", "damaged"])
def test_a_second_sweep_that_adds_nothing_is_refused(tmp_path, capsys, what):
    here, there = tmp_path / "here", tmp_path / "there"
    add(here, [RIGHT])
    add(here, [WRONG], model="cnn9")
    if what == "the same trial":
        add(there, [WRONG])
    elif what == "unfinished":
        add(there, [WRONG], model="cnn5", finished=False)
    elif what == "damaged":
        (add(there, [WRONG], model="cnn5") / folder.TRIAL).write_text("[]")
    assert main("paired", [str(here), str(here if what == "itself" else there)]) == 2
    told = "another folder holds" if what in ("the same trial", "itself") else "no trial has finished"
    message = capsys.readouterr().err
    assert told in message and (what == "itself" or str(there) in message)


def refused(sweep, capsys, *options):
    assert main("paired", [str(sweep), *options]) == 2
    assert not (sweep / paired.FILE).exists()
    return capsys.readouterr().err


def test_an_unknown_baseline_is_told_with_those_there_are(tmp_path, capsys):
    add(tmp_path, [RIGHT])
    add(tmp_path, [RIGHT], model="cnn9")
    message = refused(tmp_path, capsys, "--baseline", "cnn8")
    for part in ("--baseline", "'cnn8'", "cnn7 ibp; cnn9 ibp"):
        assert part in message


def test_a_sweep_with_nothing_finished_or_nothing_to_compare_is_refused(tmp_path, capsys):
    assert "not a directory" in refused(tmp_path / "nowhere", capsys)
    add(tmp_path, [RIGHT], finished=False)
    assert "no trial has finished" in refused(tmp_path, capsys)
    add(tmp_path, [RIGHT], recipe=RECIPE_VERSION - 1)
    assert "no trial has finished" in refused(tmp_path, capsys)
    add(tmp_path, [RIGHT])
    add(tmp_path, [RIGHT], method="crown-ibp")
    message = refused(tmp_path, capsys)
    for part in ("nothing to compare", "training method", "cnn7 crown-ibp; cnn7 ibp"):
        assert part in message


def test_rows_without_a_seed_in_common_are_refused(tmp_path, capsys):
    add(tmp_path, [RIGHT], seed=1)
    add(tmp_path, [RIGHT], model="cnn9")
    message = refused(tmp_path, capsys)
    assert "nothing to compare" in message and "seed 1 of cnn7 ibp, which cnn9 ibp lacks" in message


@pytest.mark.parametrize("other", [{"verdicts": [RIGHT] * 3}, {"verdicts": [RIGHT] * 2, "labels": [3, 4]}])
def test_other_images_are_refused(tmp_path, capsys, other):
    places = [add(tmp_path, [RIGHT, WRONG]), add(tmp_path, model="cnn9", **other)]
    message = refused(tmp_path, capsys)
    assert "different images" in message and all(str(place) in message for place in places)


def test_verdicts_that_cannot_be_read_are_named(tmp_path, capsys):
    add(tmp_path, [RIGHT])
    path = add(tmp_path, [RIGHT], model="cnn9") / folder.VERDICTS
    for break_it in (lambda: path.write_text("{"), path.unlink):
        break_it()
        assert f"{path} cannot be read" in refused(tmp_path, capsys)


def test_verdicts_are_read_once_however_many_pairs_there_are(tmp_path, monkeypatch):
    places = [
        add(tmp_path, [RIGHT, WRONG], model=model, seed=seed) for model in ("cnn5", "cnn7", "cnn9") for seed in (0, 1)
    ]
    read, verdicts_of = [], paired.verdicts_of
    monkeypatch.setattr(paired, "verdicts_of", lambda trial: read.append(trial) or verdicts_of(trial))
    paired.compare(build(tmp_path))
    assert sorted(read) == sorted(places)


def test_the_command_prints_what_it_writes(tmp_path, capsys):
    lines = compared(tmp_path, (10, 5, 1, 4), (10, 3, 3, 4), (12, 6, 2, 0))
    main("paired", [str(tmp_path), "--metric", "certified"])
    printed = capsys.readouterr().out
    for part in (f"{HEADING}: certified error", "-13.33 ± 11.55", "seed 2", "too small", str(tmp_path / paired.FILE)):
        assert part in printed, part
    assert f"{lines.loc['all', 't_p']:.2g}" in printed
    written = pd.read_csv(tmp_path / paired.FILE)
    assert written["seed"].tolist() == ["all", "0", "1", "2"]
    assert written["difference"].tolist() == pytest.approx(lines["difference"].tolist())
    assert written["t_holm"].notna().tolist() == [True, False, False, False]


def test_real_trials_differ_as_their_leaderboard_does(tiny_trial, tmp_path):
    for model in ("cnn5", "cnn6"):
        config = tiny_trial(model, width=0.05)
        run_trial(config, folder.place(tmp_path, folder.make_trial(config, load("digits").fingerprint).key))
    table = build(tmp_path)
    for metric, name in (
        ("certified", names.CERTIFIED_ERROR),
        ("attack", names.ATTACK_ERROR),
        ("standard", names.STANDARD_ERROR),
    ):
        best, other = table.sections[0].rows[name][:2]
        assert paired.compare(build(tmp_path), metric)[0]["difference"].tolist() == pytest.approx([best - other] * 2)
