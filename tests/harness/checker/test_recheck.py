"""`python -m harness.recheck` on trials that are true, and on the same ones with faults planted."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import searched_slopes
import torch
from safetensors.numpy import load_file as load_arrays
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import load_file, save_file

from harness.checker.proofs import CERTIFICATE
from harness.command_line import BAD_INPUT, FAILED, OK, main
from harness.config.trial import from_dict, trial_key
from harness.recheck import recheck
from harness.storage import certification, folder, names

GOLDEN = Path(__file__).parents[1] / "golden"
PROOFS = {
    "cnn5": {("ibp", "ibp"): 38, ("crown-ibp", "linear"): 6, ("alpha-crown", "certificate"): 3},
    "cerdeq": {
        ("ibp", "ibp"): 42,
        ("crown-ibp", "linear"): 7,
        ("crown", "linear"): 1,
        ("alpha-crown", "certificate"): 1,
    },
}


@pytest.fixture(scope="session")
def certified(tmp_path_factory):
    """Copies of the golden trials, by name, with certificates of what alpha-CROWN certified."""
    sweep = tmp_path_factory.mktemp("golden") / "trials"
    for name in PROOFS:
        shutil.copytree(GOLDEN / name, sweep / name)
        searched_slopes.write(sweep / name)
    return sweep


@pytest.fixture
def trial_dir(request, tmp_path, certified):
    """A copy of such a trial in a sweep's directory."""
    return Path(shutil.copytree(certified / request.param, tmp_path / "golden/trials" / request.param))


of_both = pytest.mark.parametrize("trial_dir", ["cnn5", "cerdeq"], indirect=True)


def change_verdicts(trial_dir, change, keep_errors=False):
    """Change the table of verdicts, and make the result's errors follow from it unless they are to be kept."""
    table = pd.read_parquet(trial_dir / folder.VERDICTS)
    change(table)
    table.to_parquet(trial_dir / folder.VERDICTS)
    if keep_errors:
        return
    errors, wrong = {}, pd.Series(False, table.index)
    for name, kind in zip(
        (names.STANDARD_ERROR, names.ATTACK_ERROR, names.CERTIFIED_ERROR),
        (names.MISCLASSIFIED, names.FALSIFIED, names.UNKNOWN),
        strict=True,
    ):
        wrong |= table[names.VERDICT] == kind
        errors[name] = 100 * float(wrong.mean())
    for number, stage in enumerate(stages := ("ibp", "crown-ibp", "crown", "alpha-crown"), start=1):
        by = (table[names.VERDICT] == names.CERTIFIED) & table[names.STAGE].isin(stages[:number])
        errors[names.certified_by(stage)] = 100 * float((~by).mean())
    shares = {kind: 100 * float((table[names.VERDICT] == kind).mean()) for kind in names.UNDECIDED}
    errors |= {names.UNDECIDED_ERROR: sum(shares.values())} | {names.share_of(kind): shares[kind] for kind in shares}
    content = json.loads((trial_dir / folder.RESULT).read_text())
    content["metrics"] |= errors
    (trial_dir / folder.RESULT).write_text(json.dumps(content))


def change_weights(trial_dir, change):
    state = load_file(trial_dir / folder.WEIGHTS)
    change(state)
    save_file(state, trial_dir / folder.WEIGHTS)


@of_both
def test_a_true_table_is_confirmed(trial_dir, capsys):
    result = recheck(trial_dir)
    assert result.is_confirmed and result.images == 60 and result.confirmed < 50
    assert result.confirmed == pytest.approx(result.recorded)
    assert result.proofs == PROOFS[trial_dir.name]
    assert main("recheck", [str(trial_dir.parents[1])]) == OK
    output = capsys.readouterr().out
    assert "every verdict is confirmed" in output
    for (stage, by), count in PROOFS[trial_dir.name].items():
        assert f"of {count} certified by {stage}, confirmed: {count} by {by}\n" in output


@of_both
def test_what_needs_a_certificate_is_not_confirmed_without(trial_dir, capsys):
    (trial_dir / folder.CERTIFICATES).unlink()
    result, missing = recheck(trial_dir), PROOFS[trial_dir.name]["alpha-crown", CERTIFICATE]
    assert len(result.problems) == missing == result.proofs["alpha-crown", ""]
    assert all("certified by alpha-crown, not confirmed, found a least margin of -" in line for line in result.problems)
    assert result.confirmed == pytest.approx(result.recorded + 100 * missing / 60)
    assert main("recheck", [str(trial_dir.parents[1])]) == FAILED
    assert f"of {missing} certified by alpha-crown, confirmed: none" in capsys.readouterr().out


def change_certificates(trial_dir, change):
    tensors = load_arrays(trial_dir / folder.CERTIFICATES)
    save_arrays(change(tensors), trial_dir / folder.CERTIFICATES)


@pytest.mark.parametrize("trial_dir", ["cnn5"], indirect=True)
def test_a_certificate_of_another_example_proves_nothing(trial_dir):
    pairs = {"10": "16", "16": "10", "17": "17"}

    def change(tensors):
        split = [(*name.split("/", 1), tensor) for name, tensor in tensors.items()]
        return {f"{pairs[index]}/{rest}": tensor for index, rest, tensor in split}

    change_certificates(trial_dir, change)
    result = recheck(trial_dir)
    assert result.proofs["alpha-crown", ""] >= 1 and any("image 10: certified" in line for line in result.problems)


@of_both
def test_slopes_at_random_are_sound_and_prove_less(trial_dir):
    random = np.random.default_rng(0)

    def change(tensors):
        for name, tensor in tensors.items():
            if name.endswith("/slopes"):
                tensors[name] = random.integers(0, 256, tensor.shape, dtype=np.uint8)
        return tensors

    change_certificates(trial_dir, change)
    assert recheck(trial_dir).proofs["alpha-crown", ""] >= 1


@of_both
def test_a_malformed_certificate_is_reported(trial_dir):
    def change(tensors):
        name = next(name for name in tensors if name.endswith("/multipliers"))
        tensors[name][4, 2] = -1e-3
        return tensors

    change_certificates(trial_dir, change)
    (problem,) = recheck(trial_dir).problems
    assert "certificate refused" in problem and "a multiplier is below 0" in problem


@of_both
def test_a_malformed_file_of_certificates_is_refused(trial_dir, capsys):
    (trial_dir / folder.CERTIFICATES).write_bytes(b"no tensors at all")
    assert main("recheck", [str(trial_dir.parents[1])]) == BAD_INPUT
    assert "certificates.safetensors cannot be read" in capsys.readouterr().err


@of_both
def test_the_first_images_alone(trial_dir, capsys):
    result = recheck(trial_dir, limit=10)
    assert result.is_confirmed and (result.images, result.of) == (10, 60)
    assert main("recheck", [str(trial_dir.parents[1]), "--images", "10"]) == OK
    output = capsys.readouterr().out
    assert "10 of 60" in output and "every verdict of the images looked at is confirmed" in output


def first(table, verdict):
    return table.index[table[names.VERDICT] == verdict][0]


def flipped_to_certified(table):
    table.loc[first(table, names.UNKNOWN), [names.VERDICT, names.STAGE]] = [names.CERTIFIED, "ibp"]


def flipped_to_certified_by_crown_ibp(table):
    table.loc[first(table, names.UNKNOWN), [names.VERDICT, names.STAGE]] = [names.CERTIFIED, "crown-ibp"]


def broken_yet_certified(table):
    table.loc[first(table, names.FALSIFIED), [names.VERDICT, names.STAGE]] = [names.CERTIFIED, "alpha-crown"]


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
    "flipped to certified by crown-ibp": (
        flipped_to_certified_by_crown_ibp,
        "by crown-ibp, not confirmed, found a least",
    ),
    "broken, yet certified": (broken_yet_certified, "by alpha-crown, not confirmed, found a least margin of -"),
    "a wrong prediction called right": (called_right, "recorded as right"),
    "a right prediction called wrong": (called_wrong, "though its prediction is its label"),
    "labels swapped": (swapped_labels, "another label is recorded"),
    "margins": (better_margin, "margin is recorded as"),
}


@of_both
@pytest.mark.parametrize("fault", VERDICTS)
def test_verdicts_that_are_not_true_are_reported(trial_dir, fault):
    change, output = VERDICTS[fault]
    change_verdicts(trial_dir, change)
    result = recheck(trial_dir)
    assert result.problems and output in result.problems[0]
    assert result.confirmed >= 100 * (1 - sum(PROOFS[trial_dir.name].values()) / 60) - 1e-9


@of_both
def test_errors_that_do_not_follow_from_the_verdicts_are_reported(trial_dir):
    change_verdicts(trial_dir, flipped_to_certified, keep_errors=True)
    result = recheck(trial_dir)
    assert "certified_error is recorded as" in result.problems[0] and result.confirmed == 100


@of_both
def test_examples_left_out_are_reported(trial_dir):
    table = pd.read_parquet(trial_dir / folder.VERDICTS)
    table[:50].to_parquet(trial_dir / folder.VERDICTS)
    assert "verdicts of 50 examples; there are 60" in recheck(trial_dir).problems


@of_both
def test_a_weight_changed_by_a_thousandth_is_reported(trial_dir):
    def change(state):
        state["classifier.weight"][0] += 1e-3

    change_weights(trial_dir, change)
    assert recheck(trial_dir).problems


@of_both
def test_another_eps_is_reported(trial_dir):
    """Off by 1/255, with the key of the trial that would be."""
    content = json.loads((trial_dir / folder.TRIAL).read_text())
    content["config"]["eps"] = "89/1020"  # 1/12 + 1/255
    content["key"] = trial_key(from_dict(content["config"]), content["fingerprint"])
    (trial_dir / folder.TRIAL).write_text(json.dumps(content))
    assert any("certified by ibp, found" in problem for problem in recheck(trial_dir).problems)


@pytest.mark.parametrize("trial_dir", ["cerdeq"], indirect=True)
def test_a_w_that_does_not_contract_proves_nothing(trial_dir):
    def change(state):
        weight = state["equilibrium.recurrence.weight"]
        weight *= 1.01 / float(torch.linalg.eigvals(weight.abs().flatten(2).sum(2).double()).abs().max())

    change_weights(trial_dir, change)
    assert recheck(trial_dir).confirmed == 100


@of_both
def test_weights_that_lack_running_statistics_are_refused(trial_dir, capsys):
    def change(state):
        del state[next(key for key in state if key.endswith("running_var"))]

    change_weights(trial_dir, change)
    assert main("recheck", [str(trial_dir.parents[1])]) == BAD_INPUT
    assert "running_var" in capsys.readouterr().err


@of_both
def test_trials_without_weights_are_not_confirmed_and_can_be_left_out(trial_dir, capsys):
    other = shutil.copytree(trial_dir, trial_dir.with_name("other"))
    (trial_dir / folder.WEIGHTS).unlink()
    assert main("recheck", [str(trial_dir.parents[1]), "--images", "2"]) == FAILED
    output = capsys.readouterr().out
    assert f"{folder.WEIGHTS} is not stored here" in output and "with weights here, every verdict" in output
    assert "have no weights here" in output and "some verdicts" not in output
    change_verdicts(trial_dir, lambda table: table.__setitem__(names.VERDICT, names.CERTIFIED), keep_errors=True)
    assert main("recheck", [str(trial_dir.parents[1]), "--images", "2"]) == FAILED
    assert "some verdicts are not confirmed" in capsys.readouterr().out
    assert main("recheck", [str(trial_dir.parents[1]), "--images", "2", "--only", other.name]) == OK
    assert main("recheck", [str(trial_dir.parents[1]), "--only", "vgg*"]) == BAD_INPUT
    assert "--only" in capsys.readouterr().err


def test_a_directory_without_finished_trials_is_refused(tmp_path, capsys):
    assert main("recheck", [str(tmp_path)]) == BAD_INPUT
    assert "no finished trial" in capsys.readouterr().err


POINTS = {
    "missing": (lambda points, index: points.pop(index), "there is no counterexample"),
    "not broken": (lambda points, index: points[index].fill(0), "no margin is proved to be below 0"),
    "out of the ball": (lambda points, index: points[index].fill(-32768), "outside of the ball"),
    "of another type": (lambda points, index: points.update({index: points[index].astype(np.int32)}), "expected int16"),
}


@of_both
@pytest.mark.parametrize("fault", POINTS)
def test_counterexamples_that_prove_nothing_are_reported(trial_dir, fault):
    change, output = POINTS[fault]
    table = pd.read_parquet(trial_dir / folder.VERDICTS)
    index = table.index[table[names.VERDICT] == names.FALSIFIED][0]
    points = {name: k.copy() for name, k in load_arrays(trial_dir / folder.COUNTEREXAMPLES).items()}
    change(points, str(index))
    save_arrays(points, trial_dir / folder.COUNTEREXAMPLES)
    (problem,) = recheck(trial_dir).problems
    assert problem.startswith(f"image {index}: falsified, not confirmed") and output in problem


@pytest.mark.parametrize("name", [pytest.param("cnn5", marks=pytest.mark.slow), "cerdeq"])
def test_what_branch_and_bound_certified_is_confirmed_leaf_by_leaf(tmp_path, name, capsys):
    """By harness.certify as users call it; and where a leaf of it is changed it is not."""
    trial_dir = Path(shutil.copytree(GOLDEN / name, tmp_path / "golden/trials" / name))
    stages = ["--stages", "ibp,crown-ibp,bab", "--branches", "60", "--certificates", "--workers", "1"]
    assert main("certify", [str(trial_dir), *stages, "--images", "25"]) == OK
    (further,) = certification.folders(trial_dir)
    assert main("recheck", [str(tmp_path / "golden")]) == FAILED  # the trial itself has no certificates
    result = recheck(further)
    by_leaves = sum(count for (stage, by), count in result.proofs.items() if (stage, by) == ("bab", CERTIFICATE))
    assert result.is_confirmed and result.confirmed == pytest.approx(result.recorded) and by_leaves > 0
    kept = load_arrays(further / folder.CERTIFICATES)
    shorter = {key: tensor if key.endswith("/neurons") else tensor[1:].copy() for key, tensor in kept.items()}
    save_arrays(shorter, further / folder.CERTIFICATES)
    assert len(recheck(further).problems) == by_leaves  # a leaf is missing from each tree


@of_both
def test_an_unknown_verdict_is_reported(trial_dir):
    def unheard_of(table):
        table.loc[first(table, names.FALSIFIED), names.VERDICT] = "robust"

    change_verdicts(trial_dir, unheard_of)
    assert any("'robust' is no verdict" in problem for problem in recheck(trial_dir).problems)


@of_both
@pytest.mark.parametrize("error", ["certified_error/crown-ibp", "undecided", "undecided/unknown"])
def test_an_error_that_is_not_that_of_its_verdicts_is_reported(trial_dir, error):
    change_verdicts(trial_dir, lambda table: None)
    content = json.loads((trial_dir / folder.RESULT).read_text())
    content["metrics"][error] += 1
    (trial_dir / folder.RESULT).write_text(json.dumps(content))
    (problem,) = recheck(trial_dir).problems
    assert problem.startswith(f"{error} is recorded as")


def test_a_trial_is_evaluated_on_all_held_out_images(tmp_path):
    trial_dir = Path(shutil.copytree(GOLDEN / "cnn5", tmp_path / "golden/trials/cnn5"))
    content = json.loads((trial_dir / folder.TRIAL).read_text())
    content["config"]["validation_images"] = 40
    content["config"]["evaluation"]["test_images"] = 20
    content["key"] = trial_key(from_dict(content["config"]), content["fingerprint"])
    (trial_dir / folder.TRIAL).write_text(json.dumps(content))
    assert recheck(trial_dir).problems == ["verdicts of 60 examples; there are 40"]
