"""`python -m harness.recheck` on trials that are true, and on the same ones with faults planted."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from harness.checker.recheck import recheck
from harness.command_line import BAD_INPUT, FAILED, OK, main
from harness.config.trial import from_dict, trial_key
from harness.storage import folder, names

GOLDEN = Path(__file__).parents[1] / "golden"
both = pytest.mark.parametrize("name", ["cnn5", "cerdeq"])


@pytest.fixture
def place(request, tmp_path):
    """A copy of a golden trial in a sweep's directory, without what stages after IBP certified."""
    copy = tmp_path / "golden/trials" / request.param
    shutil.copytree(GOLDEN / request.param, copy)

    def without_later_stages(table):
        later = (table[names.VERDICT] == names.CERTIFIED) & (table[names.STAGE] != "ibp")
        table.loc[later, [names.VERDICT, names.STAGE]] = [names.UNKNOWN, "none"]

    change_verdicts(copy, without_later_stages)
    return copy


of_both = pytest.mark.parametrize("place", ["cnn5", "cerdeq"], indirect=True)


def change_verdicts(place, change, keep_errors=False):
    """Change the table of verdicts, and make the result's errors follow from it unless they are to be kept."""
    table = pd.read_parquet(place / folder.VERDICTS)
    change(table)
    table.to_parquet(place / folder.VERDICTS)
    if keep_errors:
        return
    errors, wrong = {}, pd.Series(False, table.index)
    for name, kind in zip(
        (names.STANDARD_ERROR, names.ATTACK_ERROR, names.CERTIFIED_ERROR),
        (names.MISCLASSIFIED, names.ATTACKED, names.UNKNOWN),
        strict=True,
    ):
        wrong |= table[names.VERDICT] == kind
        errors[name] = 100 * float(wrong.mean())
    content = json.loads((place / folder.RESULT).read_text())
    content["metrics"] |= errors
    (place / folder.RESULT).write_text(json.dumps(content))


def change_weights(place, change):
    state = load_file(place / folder.WEIGHTS)
    change(state)
    save_file(state, place / folder.WEIGHTS)


@of_both
def test_a_true_table_is_confirmed(place, capsys):
    found = recheck(place)
    assert found.agrees and found.images == 60 and found.confirmed < 50
    assert found.confirmed == pytest.approx(found.recorded)
    assert main("recheck", [str(place.parents[1])]) == OK
    assert "every verdict is confirmed" in capsys.readouterr().out


@both
def test_what_later_stages_certified_is_not_confirmed(name, tmp_path, capsys):
    shutil.copytree(GOLDEN / name, tmp_path / "trials" / name)
    found = recheck(tmp_path / "trials" / name)
    assert found.by_later_stages > 0 and not found.problems
    assert found.confirmed == pytest.approx(found.recorded + 100 * found.by_later_stages / 60)
    assert main("recheck", [str(tmp_path)]) == FAILED
    assert "no certificates to check" in capsys.readouterr().out


@of_both
def test_the_first_images_alone(place):
    found = recheck(place, most=10)
    assert found.agrees and found.images == 10


def first(table, verdict):
    return table.index[table[names.VERDICT] == verdict][0]


def flipped_to_certified(table):
    table.loc[first(table, names.UNKNOWN), [names.VERDICT, names.STAGE]] = [names.CERTIFIED, "ibp"]


def called_right(table):
    row = first(table, names.MISCLASSIFIED)
    table.loc[row, [names.VERDICT, names.STAGE]] = [names.CERTIFIED, "ibp"]
    table.loc[row, names.PREDICTION] = table.loc[row, names.LABEL]


def called_wrong(table):
    table.loc[first(table, names.CERTIFIED), [names.VERDICT, names.STAGE]] = [names.MISCLASSIFIED, "clean"]


def swapped_labels(table):
    table.loc[[0, 1], names.LABEL] = table.loc[[1, 0], names.LABEL].to_numpy()


def better_margin(table):
    table["margin_ibp"] += 1e-2


VERDICTS = {
    "flipped to certified": (flipped_to_certified, "certified by ibp, found a least margin"),
    "a wrong prediction called right": (called_right, "recorded as right"),
    "a right prediction called wrong": (called_wrong, "though its prediction is its label"),
    "labels swapped": (swapped_labels, "another label is recorded"),
    "margins": (better_margin, "margin is recorded as"),
}


@of_both
@pytest.mark.parametrize("fault", VERDICTS)
def test_verdicts_that_are_not_true_are_told(place, fault):
    change, told = VERDICTS[fault]
    change_verdicts(place, change)
    found = recheck(place)
    assert found.problems and told in found.problems[0]
    assert found.confirmed >= recheck_of_the_true(place)


def recheck_of_the_true(place):
    return recheck(GOLDEN / place.name).confirmed


@of_both
def test_errors_that_do_not_follow_from_the_verdicts_are_told(place):
    change_verdicts(place, flipped_to_certified, keep_errors=True)
    found = recheck(place)
    assert "certified_error is recorded as" in found.problems[0] and found.confirmed == 100


@of_both
def test_examples_left_out_are_told(place):
    table = pd.read_parquet(place / folder.VERDICTS)
    table[:50].to_parquet(place / folder.VERDICTS)
    assert "verdicts of 50 examples; there are 60" in recheck(place).problems


@of_both
def test_a_weight_changed_by_a_thousandth_is_told(place):
    def change(state):
        state["classifier.weight"][0] += 1e-3

    change_weights(place, change)
    assert recheck(place).problems


@of_both
def test_another_eps_is_told(place):
    """Off by 1/255, with the key of the trial that would be."""
    content = json.loads((place / folder.TRIAL).read_text())
    content["config"]["eps"] = "89/1020"  # 1/12 + 1/255
    content["key"] = trial_key(from_dict(content["config"]), content["fingerprint"])
    (place / folder.TRIAL).write_text(json.dumps(content))
    assert any("certified by ibp, found" in problem for problem in recheck(place).problems)


@pytest.mark.parametrize("place", ["cerdeq"], indirect=True)
def test_a_w_that_does_not_contract_proves_nothing(place):
    def change(state):
        weight = state["equilibrium.recurrence.weight"]
        weight *= 1.01 / float(torch.linalg.eigvals(weight.abs().flatten(2).sum(2).double()).abs().max())

    change_weights(place, change)
    assert recheck(place).confirmed == 100


@of_both
def test_weights_that_lack_running_statistics_are_refused(place, capsys):
    def change(state):
        del state[next(key for key in state if key.endswith("running_var"))]

    change_weights(place, change)
    assert main("recheck", [str(place.parents[1])]) == BAD_INPUT
    assert "running_var" in capsys.readouterr().err


def test_a_directory_without_finished_trials_is_refused(tmp_path, capsys):
    assert main("recheck", [str(tmp_path)]) == BAD_INPUT
    assert "no finished trial" in capsys.readouterr().err
