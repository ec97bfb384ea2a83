"""`python -m harness.recheck` on correct evaluations: what it confirms, selects and imports."""

import importlib
import os
import re
import shutil
import sys
from pathlib import Path

import pandas as pd
import pytest
from one_network import train_and_evaluate
from safetensors.torch import save_file

import cerdeq
from baselines import registry
from harness.checker import processes
from harness.checker.evaluation import recheck
from harness.checker.proofs.example import CERTIFICATE
from harness.command_line import BAD_INPUT, FAILED, OK, main
from harness.common import names
from harness.common.errors import InputError
from harness.config import plugin_sources, plugins
from harness.data import load
from harness.evaluation.network import load_network
from harness.storage import folder
from harness.storage.records import make_record

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


def write_certificates(path):
    """Write certificates of the images that alpha-CROWN certified."""
    network_dir, evaluation = folder.network_of(path), folder.read_evaluation(path).config
    config, table = folder.read_training(network_dir / folder.TRAINING).config, pd.read_parquet(path / folder.VERDICTS)
    model, test, tensors = load_network(config, network_dir / folder.WEIGHTS), load(config.dataset).test_images(60), {}
    for index in table.index[table[names.STAGE] == "alpha-crown"]:
        image, label = test.images[index : index + 1].double() / 255, test.labels[index : index + 1]
        region, spec = cerdeq.LinfBall(image, evaluation.eps), cerdeq.margin_spec(label, 10).double()
        (certificate,) = cerdeq.verify(model, region, spec, None, 20, certificates=True).certificates
        tensors |= {f"{index}/{name}": tensor for name, tensor in certificate.items()}
    save_file(tensors, path / folder.CERTIFICATES)


def copy_golden(name, sweep_dir):
    """The folder of the evaluation of a golden network, copied to a sweep's directory."""
    key = folder.read_training(GOLDEN / name / folder.TRAINING).key
    (path,) = folder.evaluation_folders(shutil.copytree(GOLDEN / name, folder.network_dir(sweep_dir, key)))
    return path


@pytest.fixture
def path(request, tmp_path):
    """A copy of a golden evaluation in a sweep's directory; as a parameter, by its name, with certificates."""
    path = copy_golden(getattr(request, "param", "cnn5"), tmp_path / "golden")
    if hasattr(request, "param"):
        write_certificates(path)
    return path


@pytest.mark.parametrize(("path", "proofs"), PROOFS.items(), indirect=["path"])
def test_correct_verdicts_are_confirmed(path, proofs, tmp_path, capsys):
    result = recheck(path)
    assert result.is_confirmed and result.images == 60 and result.confirmed < 50
    assert result.confirmed == pytest.approx(result.recorded)
    assert result.proofs == proofs
    assert main("recheck", [str(tmp_path / "golden")]) == OK
    output = capsys.readouterr().out
    assert "every verdict is confirmed" in output
    for (stage, by), count in proofs.items():
        assert f"of {count} certified by {stage}, confirmed: {count} by {by}\n" in output


def test_networks_without_weights_are_not_confirmed_and_can_be_left_out(path, tmp_path, capsys):
    other = folder.network_of(copy_golden("cerdeq", tmp_path / "golden"))
    (folder.network_of(path) / folder.WEIGHTS).unlink()
    command = [str(tmp_path / "golden"), "--images", "10"]
    assert main("recheck", command) == FAILED
    output = capsys.readouterr().out
    assert f"{folder.WEIGHTS} is not stored here" in output
    assert "not confirmed: 1 of 2 evaluations (1 without weights)" in output
    assert main("recheck", [*command, "--only", other.name]) == OK
    output = capsys.readouterr().out
    assert (
        "10 of 60" in output and "every verdict of the checked images of the selected networks is confirmed" in output
    )
    assert main("recheck", [*command, "--only", "vgg*"]) == BAD_INPUT
    assert "--only" in capsys.readouterr().err


def test_nothing_to_check_is_bad_input(path, tmp_path, monkeypatch, capsys):
    for directory in (tmp_path, tmp_path / "nowhere"):
        assert main("recheck", [str(directory)]) == BAD_INPUT
        assert "holds no networks" in capsys.readouterr().err

    def missing(name, data_dir):
        raise InputError(f"{name} was not found")

    monkeypatch.setattr("harness.checker.evaluation.load_hashed", missing)
    assert main("recheck", [str(tmp_path / "golden")]) == BAD_INPUT
    assert "digits was not found" in capsys.readouterr().err


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """The digest of a plugin that is on the import path."""
    monkeypatch.setattr(registry, "_BUILDERS", dict(registry._BUILDERS))
    plugins._import.cache_clear()
    plugin_sources.digest.cache_clear()
    (tmp_path / "installed").mkdir()
    (tmp_path / "installed/checked_nets.py").write_text(PLUGIN)
    monkeypatch.setattr(sys, "path", [str(tmp_path / "installed"), *sys.path])
    yield plugins.digests(["checked_nets"])
    sys.modules.pop("checked_nets", None)
    plugin_sources.digest.cache_clear()


def test_a_plugin_is_imported_only_if_named_and_not_from_the_results(
    tiny_training, tiny_evaluation, plugin, tmp_path, monkeypatch, capsys
):
    config = tiny_training("trusted", train={"epochs": 1, "ramp_epochs": 1}).replace(plugins=plugin)
    record = make_record(config, load("digits").fingerprint)
    sweep_dir, installed = tmp_path / "tiny", tmp_path / "installed"
    train_and_evaluate(config, [tiny_evaluation()], folder.network_dir(sweep_dir, record.key))
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
    path = copy_golden("cerdeq", tmp_path / "golden")
    training = folder.read_training(folder.network_of(path) / folder.TRAINING).config
    changes = {"stages": ("ibp", "crown-ibp", "bab"), "bab_seconds": None, "bab_branches": 60, "test_images": 25}
    further = folder.read_evaluation(path).config.replace(certificates=True, **changes)
    train_and_evaluate(training, [further], folder.network_of(path))
    (certified,) = set(folder.evaluation_folders(folder.network_of(path))) - {path}
    assert main("recheck", [str(tmp_path / "golden")]) == FAILED  # the other evaluation has no certificates
    result = recheck(certified)
    assert result.is_confirmed and result.confirmed == pytest.approx(result.recorded)
    assert result.proofs["bab", CERTIFICATE] > 0


@pytest.mark.slow
def test_several_processes_say_what_one_says(tmp_path, capsys, monkeypatch):
    """Also of a verdict that a changed table claims, in the last part; a problem of all parts is named once."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    copy_golden("cnn5", tmp_path / "study")
    path = copy_golden("cerdeq", tmp_path / "study")
    write_certificates(path)
    table = pd.read_parquet(path / folder.VERDICTS)
    last = table.index[table[names.VERDICT] == "certified"][-1]
    table.loc[last, [names.VERDICT, names.STAGE]] = "misclassified", ""
    table.to_parquet(path / folder.VERDICTS)
    outputs = []
    for part in (1_000, 25):
        monkeypatch.setattr(processes, "PART", part)
        assert main("recheck", [str(tmp_path / "study")]) == FAILED
        lines = capsys.readouterr().out.splitlines()
        outputs.append([re.sub(r"\d+ *$", "", line) for line in lines])  # but for the seconds
    assert outputs[0] == outputs[1] and any(f"image {last}: " in line for line in outputs[0])
    assert "OMP_NUM_THREADS" not in os.environ
