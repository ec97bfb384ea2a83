"""`python -m harness.recheck` on correct trials, and on the same ones with one thing changed."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import load_file as load_arrays
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import load_file, save_file

import cerdeq
from harness.checker.proofs import CERTIFICATE
from harness.checker.verdicts import recheck
from harness.command_line import BAD_INPUT, FAILED, OK, main
from harness.config.trial import from_dict, trial_key
from harness.data import load
from harness.evaluation.metrics import final_metrics, finite_or_none
from harness.evaluation.network import load_network
from harness.evaluation.verdicts import Evaluation
from harness.storage import certification, folder, names

GOLDEN = Path(__file__).parents[1] / "golden"
PROOFS = {
    "cnn5": {("ibp", "ibp"): 38, ("crown-ibp", "linear"): 6, ("alpha-crown", CERTIFICATE): 3},
    "cerdeq": {
        ("ibp", "ibp"): 42,
        ("crown-ibp", "linear"): 7,
        ("crown", "linear"): 1,
        ("alpha-crown", CERTIFICATE): 1,
    },
}


def write_certificates(trial_dir):
    """Write certificates of the images that alpha-CROWN certified."""
    config, table = folder.read_trial(trial_dir / folder.TRIAL).config, pd.read_parquet(trial_dir / folder.VERDICTS)
    model, test, tensors = load_network(config, trial_dir / folder.WEIGHTS), load(config.dataset).test_images(60), {}
    for index in table.index[table[names.STAGE] == "alpha-crown"]:
        image, label = test.images[index : index + 1].double() / 255, test.labels[index : index + 1]
        region, spec = cerdeq.LinfBall(image, config.eps), cerdeq.margin_spec(label, 10).double()
        (certificate,) = cerdeq.verify(model, region, spec, None, 20, certificates=True).certificates
        tensors |= {f"{index}/{name}": tensor for name, tensor in certificate.items()}
    save_file(tensors, trial_dir / folder.CERTIFICATES)


@pytest.fixture(scope="session")
def golden_trials(tmp_path_factory):
    """Copies of the golden trials, with certificates."""
    trials = tmp_path_factory.mktemp("golden") / "trials"
    for name in PROOFS:
        write_certificates(Path(shutil.copytree(GOLDEN / name, trials / name)))
    return trials


@pytest.fixture
def trial_dir(request, tmp_path, golden_trials):
    """A copy of one of them in a sweep's directory."""
    name = getattr(request, "param", "cnn5")
    return Path(shutil.copytree(golden_trials / name, tmp_path / "golden/trials" / name))


@pytest.mark.parametrize("trial_dir", PROOFS, indirect=True)
def test_correct_verdicts_are_confirmed(trial_dir, capsys):
    result = recheck(trial_dir)
    assert result.is_confirmed and result.images == 60 and result.confirmed < 50
    assert result.confirmed == pytest.approx(result.recorded)
    assert result.proofs == PROOFS[trial_dir.name]
    assert main("recheck", [str(trial_dir.parents[1])]) == OK
    output = capsys.readouterr().out
    assert "every verdict is confirmed" in output
    for (stage, by), count in PROOFS[trial_dir.name].items():
        assert f"of {count} certified by {stage}, confirmed: {count} by {by}\n" in output


def change_json(name, change):
    def damage(trial_dir):
        content = json.loads((trial_dir / name).read_text())
        change(content)
        if name == folder.TRIAL:
            content["key"] = trial_key(from_dict(content["config"]), content["fingerprint"])
        (trial_dir / name).write_text(json.dumps(content))

    return damage


def raise_metric(name):
    return change_json(folder.RESULT, lambda content: content["metrics"].update({name: content["metrics"][name] + 1}))


def change_verdicts(change):
    """Change the table of verdicts, and make the result's errors follow from it."""

    def damage(trial_dir):
        table = change(pd.read_parquet(trial_dir / folder.VERDICTS))
        table.to_parquet(trial_dir / folder.VERDICTS)
        stages = "ibp", "crown-ibp", "crown", "alpha-crown"
        errors = finite_or_none(final_metrics(Evaluation(table, {}, 0.0, 1.0, {}, {}), stages))
        change_json(folder.RESULT, lambda content: content["metrics"].update(errors))(trial_dir)

    return damage


def change_first(current, **values):
    """Change columns of the first image with this verdict."""

    def change(table):
        row = table.index[table[names.VERDICT] == current][0]
        table.loc[row, list(values)] = list(values.values())
        if current == names.MISCLASSIFIED:
            table.loc[row, names.PREDICTION] = table.loc[row, names.LABEL]
        return table

    return change_verdicts(change)


def swap_labels(table):
    table.loc[[0, 1], names.LABEL] = table.loc[[1, 0], names.LABEL].to_numpy()
    return table


def change_arrays(name, change):
    def damage(trial_dir):
        tensors = {key: tensor.copy() for key, tensor in load_arrays(trial_dir / name).items()}
        save_arrays(change(tensors) or tensors, trial_dir / name)

    return damage


def change_point(change):
    """Change the first counterexample."""
    return change_arrays(folder.COUNTEREXAMPLES, lambda points: change(points, min(points, key=int)))


def randomise_slopes(tensors):
    random = np.random.default_rng(0)
    for name in [name for name in tensors if name.endswith("/slopes")]:
        tensors[name] = random.integers(0, 256, tensors[name].shape, dtype=np.uint8)


def swap_examples(tensors):
    other = {"10": "16", "16": "10", "17": "17"}
    return {f"{other[name.partition('/')[0]]}/{name.partition('/')[2]}": t for name, t in tensors.items()}


NOT_CONFIRMED = "certified by alpha-crown, not confirmed: "
DAMAGES = {
    "unknown called ibp": (
        change_first(names.UNKNOWN, verdict=names.CERTIFIED, stage="ibp"),
        "certified by ibp, but the smallest margin is bounded by -",
    ),
    "unknown called crown-ibp": (
        change_first(names.UNKNOWN, verdict=names.CERTIFIED, stage="crown-ibp"),
        "certified by crown-ibp, not confirmed: the smallest margin",
    ),
    "falsified called alpha-crown": (
        change_first(names.FALSIFIED, verdict=names.CERTIFIED, stage="alpha-crown"),
        NOT_CONFIRMED + "the smallest margin is bounded by -",
    ),
    "wrong called correct": (
        change_first(names.MISCLASSIFIED, verdict=names.CERTIFIED, stage="ibp"),
        "recorded as correct",
    ),
    "correct called wrong": (
        change_first(names.CERTIFIED, verdict=names.MISCLASSIFIED, stage="clean"),
        "though its prediction is its label",
    ),
    "correct called another class": (
        change_first(names.CERTIFIED, verdict=names.MISCLASSIFIED, stage="clean", prediction=-1),
        "recorded as wrong",
    ),
    "no verdict": (change_first(names.FALSIFIED, verdict="robust"), "'robust' is no verdict"),
    "another stage": (
        change_first(names.CERTIFIED, stage="milp"),
        "certified by 'milp', which is no stage of this trial",
    ),
    "labels swapped": (change_verdicts(swap_labels), "another label is recorded"),
    "margins": (change_verdicts(lambda table: table.assign(margin_ibp=table.margin_ibp + 1e-2)), "is recorded as"),
    "images left out": (change_verdicts(lambda table: table[:50]), "verdicts of 50 examples; there are 60"),
    "certified error": (raise_metric(names.CERTIFIED_ERROR), "certified_error is recorded as"),
    "error by a stage": (raise_metric("certified_error/crown-ibp"), "certified_error/crown-ibp is recorded as"),
    "another eps": (
        change_json(folder.TRIAL, lambda content: content["config"].update(eps="89/1020")),  # 1/12 + 1/255
        "ibp's margin is recorded as",
    ),
    "held-out images": (
        change_json(folder.TRIAL, lambda content: content["config"].update(validation_images=40)),
        "verdicts of 60 examples; there are 40",
    ),
    "no counterexample": (change_point(lambda points, index: points.__delitem__(index)), "there is no counterexample"),
    "the image itself": (change_point(lambda points, index: points[index].fill(0)), "no margin is proved"),
    "beyond the ball": (change_point(lambda points, index: points[index].fill(-32768)), "outside of the ball"),
    "another type": (
        change_point(lambda points, index: points.update({index: points[index].astype(np.int32)})),
        "expected int16",
    ),
    "no certificates": (lambda trial_dir: (trial_dir / folder.CERTIFICATES).unlink(), NOT_CONFIRMED + "the smallest"),
    "certificates swapped": (change_arrays(folder.CERTIFICATES, swap_examples), NOT_CONFIRMED),
    "slopes at random": (change_arrays(folder.CERTIFICATES, randomise_slopes), NOT_CONFIRMED),
    "a negative multiplier": (
        change_arrays(folder.CERTIFICATES, lambda tensors: tensors["10/relu1/multipliers"].fill(-1)),
        NOT_CONFIRMED + "certificate refused: relu1: a multiplier is below 0",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_what_is_not_true_is_reported(trial_dir, name):
    damage, problem = DAMAGES[name]
    damage(trial_dir)
    result = recheck(trial_dir)
    assert problem in result.problems[0]
    assert result.confirmed >= 100 * (1 - sum(PROOFS["cnn5"].values()) / 60) - 1e-9


def change_weights(trial_dir, change):
    state = load_file(trial_dir / folder.WEIGHTS)
    change(state)
    save_file(state, trial_dir / folder.WEIGHTS)


def test_a_weight_changed_by_a_thousandth_is_reported(trial_dir):
    change_weights(trial_dir, lambda state: state["classifier.weight"][0].add_(1e-3))
    assert recheck(trial_dir).problems


@pytest.mark.parametrize("trial_dir", ["cerdeq"], indirect=True)
def test_a_w_that_does_not_contract_proves_nothing(trial_dir):
    def change(state):
        weight = state["equilibrium.recurrence.weight"]
        weight *= 1.01 / float(torch.linalg.eigvals(weight.abs().flatten(2).sum(2).double()).abs().max())

    change_weights(trial_dir, change)
    assert recheck(trial_dir).confirmed == 100


REFUSED = {
    "running_var": lambda trial_dir: change_weights(trial_dir, lambda state: state.pop("norm1.running_var")),
    "not finite": lambda trial_dir: change_weights(
        trial_dir, lambda state: state["classifier.weight"].fill_(torch.nan)
    ),
    "certificates.safetensors cannot be read": lambda trial_dir: (trial_dir / folder.CERTIFICATES).write_bytes(b"none"),
    "the trial's data": change_json(folder.TRIAL, lambda content: content.update(fingerprint="another")),
    "no finished trial": lambda trial_dir: (trial_dir / folder.RESULT).unlink(),
}


@pytest.mark.parametrize("message", REFUSED)
def test_bad_files_are_refused(trial_dir, message, capsys):
    REFUSED[message](trial_dir)
    assert main("recheck", [str(trial_dir.parents[1])]) == BAD_INPUT
    assert message in capsys.readouterr().err


def test_trials_without_weights_are_not_confirmed_and_can_be_left_out(trial_dir, capsys):
    other = shutil.copytree(trial_dir, trial_dir.with_name("other"))
    (trial_dir / folder.WEIGHTS).unlink()
    command = [str(trial_dir.parents[1]), "--images", "10"]
    assert main("recheck", command) == FAILED
    output = capsys.readouterr().out
    assert f"{folder.WEIGHTS} is not stored here" in output and "not confirmed: 1 of 2, 1 for lack of weights" in output
    assert main("recheck", [*command, "--only", other.name]) == OK
    output = capsys.readouterr().out
    assert "10 of 60" in output and "every verdict of the checked images is confirmed" in output
    assert main("recheck", [*command, "--only", "vgg*"]) == BAD_INPUT
    assert "--only" in capsys.readouterr().err


def test_what_branch_and_bound_certified_is_confirmed_leaf_by_leaf(tmp_path):
    """By harness.certify as users call it, not if a leaf is missing, and not for another trial."""
    trial_dir = Path(shutil.copytree(GOLDEN / "cerdeq", tmp_path / "golden/trials/cerdeq"))
    stages = ["--stages", "ibp,crown-ibp,bab", "--branches", "60", "--certificates", "--workers", "1"]
    assert main("certify", [str(trial_dir), *stages, "--images", "25"]) == OK
    (certified,) = certification.folders(trial_dir)
    assert main("recheck", [str(tmp_path / "golden")]) == FAILED  # the trial itself has no certificates
    result = recheck(certified)
    by_leaves = result.proofs["bab", CERTIFICATE]
    assert result.is_confirmed and result.confirmed == pytest.approx(result.recorded) and by_leaves > 0
    drop = change_arrays(
        folder.CERTIFICATES,
        lambda tensors: {name: t if name.endswith("/neurons") else t[1:].copy() for name, t in tensors.items()},
    )
    drop(certified)
    assert len(recheck(certified).problems) == by_leaves  # a leaf is missing from each tree
    change_json(certification.CERTIFICATION, lambda content: content["config"].update(seed=5))(certified)
    assert recheck(certified).problems == ["certification.json describes another trial than the one that it belongs to"]
