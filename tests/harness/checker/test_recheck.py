"""`python -m harness.recheck` on correct trials: what it confirms, selects and imports."""

import importlib
import shutil
import sys
from pathlib import Path

import pandas as pd
import pytest
from safetensors.torch import save_file

import cerdeq
from baselines import registry
from harness.checker.proofs.example import CERTIFICATE
from harness.checker.verdicts import recheck
from harness.command_line import BAD_INPUT, FAILED, OK, main
from harness.common import names
from harness.common.errors import InputError
from harness.config import plugins
from harness.data import load
from harness.evaluation.network import load_network
from harness.storage import certification, folder
from harness.training import train_and_certify

GOLDEN = Path(__file__).parents[1] / "golden"
PROOFS = {
    "cnn5": {("ibp", "ibp"): 38, ("crown-ibp", "linear"): 6, ("alpha-crown", CERTIFICATE): 3},
    "cerdeq": {("ibp", "ibp"): 42, ("crown-ibp", "linear"): 7, ("crown", "linear"): 1, ("alpha-crown", CERTIFICATE): 1},
}
PLUGIN = """
from torch import nn
from baselines import register

@register("trusted")
def trusted(shape, classes, width=1.0):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, classes))
"""


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


def copy_golden(name, sweep_dir):
    key = folder.read_trial(GOLDEN / name / folder.TRIAL).key
    return Path(shutil.copytree(GOLDEN / name, folder.trial_dir(sweep_dir, key)))


@pytest.fixture
def trial_dir(request, tmp_path):
    """A copy of a golden trial in a sweep's directory; as a parameter, by its name, with certificates."""
    trial_dir = copy_golden(getattr(request, "param", "cnn5"), tmp_path / "golden")
    if hasattr(request, "param"):
        write_certificates(trial_dir)
    return trial_dir


@pytest.mark.parametrize(("trial_dir", "proofs"), PROOFS.items(), indirect=["trial_dir"])
def test_correct_verdicts_are_confirmed(trial_dir, proofs, capsys):
    result = recheck(trial_dir)
    assert result.is_confirmed and result.images == 60 and result.confirmed < 50
    assert result.confirmed == pytest.approx(result.recorded)
    assert result.proofs == proofs
    assert main("recheck", [str(trial_dir.parents[1])]) == OK
    output = capsys.readouterr().out
    assert "every verdict is confirmed" in output
    for (stage, by), count in proofs.items():
        assert f"of {count} certified by {stage}, confirmed: {count} by {by}\n" in output


def test_trials_without_weights_are_not_confirmed_and_can_be_left_out(trial_dir, capsys):
    other = copy_golden("cerdeq", trial_dir.parents[1])
    (trial_dir / folder.WEIGHTS).unlink()
    command = [str(trial_dir.parents[1]), "--images", "10"]
    assert main("recheck", command) == FAILED
    output = capsys.readouterr().out
    assert f"{folder.WEIGHTS} is not stored here" in output
    assert "not confirmed: 1 of 2 trials and certifications (1 without weights)" in output
    assert main("recheck", [*command, "--only", other.name]) == OK
    output = capsys.readouterr().out
    assert "10 of 60" in output and "every verdict of the checked images of the selected trials is confirmed" in output
    assert main("recheck", [*command, "--only", "vgg*"]) == BAD_INPUT
    assert "--only" in capsys.readouterr().err


def test_nothing_to_check_is_bad_input(trial_dir, tmp_path, monkeypatch, capsys):
    for directory in (tmp_path, tmp_path / "nowhere"):
        assert main("recheck", [str(directory)]) == BAD_INPUT
        assert "holds no trials" in capsys.readouterr().err

    def missing(name, data_dir):
        raise InputError(f"{name} was not found")

    monkeypatch.setattr("harness.checker.verdicts.load_hashed", missing)
    assert main("recheck", [str(trial_dir.parents[1])]) == BAD_INPUT
    assert "digits was not found" in capsys.readouterr().err


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """The digest of a plugin that is on the import path."""
    monkeypatch.setattr(registry, "_BUILDERS", dict(registry._BUILDERS))
    plugins._import.cache_clear()
    plugins._digest.cache_clear()
    (tmp_path / "installed").mkdir()
    (tmp_path / "installed/checked_nets.py").write_text(PLUGIN)
    monkeypatch.setattr(sys, "path", [str(tmp_path / "installed"), *sys.path])
    yield plugins.digests(["checked_nets"])
    sys.modules.pop("checked_nets", None)
    plugins._digest.cache_clear()


def test_a_plugin_is_imported_only_if_named_and_not_from_the_results(tiny_trial, plugin, tmp_path, monkeypatch, capsys):
    config = tiny_trial("trusted", train={"epochs": 1, "ramp_epochs": 1}).replace(plugins=plugin)
    trial = folder.make_trial(config, load("digits").fingerprint)
    sweep_dir, installed = tmp_path / "tiny", tmp_path / "installed"
    train_and_certify(config, folder.trial_dir(sweep_dir, trial.key))
    command, option = [str(sweep_dir)], ["--plugin", "checked_nets"]
    assert main("recheck", command) == FAILED
    assert "names the plugin checked_nets; if you trust it, add --plugin checked_nets" in capsys.readouterr().out
    plugins._import.cache_clear()
    assert main("recheck", [*command, *option]) == OK
    printed = capsys.readouterr()
    assert printed.out.splitlines()[-1] == "every verdict is confirmed; trusted plugins: checked_nets"
    imported = f"plugin checked_nets: imported from {installed / 'checked_nets.py'}"
    assert printed.err.splitlines() == [imported] and printed.out.count("checked_nets") == 1
    shutil.move(installed / "checked_nets.py", sweep_dir)
    del sys.modules["checked_nets"]
    monkeypatch.chdir(sweep_dir)
    for path, allowed in (
        ([str(sweep_dir)], "a module that Python finds"),  # as `python -m` has it: the working directory is first
        ([str(installed), str(sweep_dir)], "a module that does not lie in the results"),
    ):
        monkeypatch.setattr(sys, "path", [*path, *(entry for entry in sys.path if entry not in path)])
        importlib.invalidate_caches()
        assert main("recheck", [*command, *option]) == BAD_INPUT
        assert allowed in capsys.readouterr().err


@pytest.mark.slow
def test_what_branch_and_bound_certified_of_an_equilibrium_is_confirmed_leaf_by_leaf(tmp_path):
    """By harness.certify as users call it."""
    trial_dir = copy_golden("cerdeq", tmp_path / "golden")
    stages = ["--stages", "ibp,crown-ibp,bab", "--branches", "60", "--certificates", "--workers", "1"]
    assert main("certify", [str(trial_dir), *stages, "--images", "25"]) == OK
    (certified,) = certification.folders(trial_dir)
    assert main("recheck", [str(tmp_path / "golden")]) == FAILED  # the trial itself has no certificates
    result = recheck(certified)
    assert result.is_confirmed and result.confirmed == pytest.approx(result.recorded)
    assert result.proofs["bab", CERTIFICATE] > 0
