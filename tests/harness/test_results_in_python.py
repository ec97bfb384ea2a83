"""`harness.load` and `harness.results`: from a folder back to a network, and to a table."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

import harness
from harness.command_line import main
from harness.common.errors import InputError
from harness.leaderboard.table import build_leaderboard
from harness.storage import folder
from harness.storage.records import make_record, record_json

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture
def network_dir(tmp_path):
    return shutil.copytree(GOLDEN / "cerdeq", tmp_path / "study/networks/cerdeq")


def test_the_network_of_a_folder_is_that_of_its_verdicts(network_dir):
    network = harness.load(str(network_dir))
    stored = load_file(network_dir / folder.WEIGHTS)
    assert not network.training and network.state_dict().keys() == stored.keys()
    assert all(torch.equal(network.state_dict()[name], tensor.double()) for name, tensor in stored.items())
    with torch.no_grad():
        assert network(torch.rand(2, 1, 8, 8, dtype=torch.float64)).shape == (2, 10)


def test_a_folder_without_the_network_is_refused(network_dir):
    weights = load_file(network_dir / folder.WEIGHTS)
    name = next(iter(weights))
    save_file(weights | {name: weights[name].double()}, network_dir / folder.WEIGHTS)
    with pytest.raises(InputError, match=f"{name} is torch.float64"):
        harness.load(network_dir)
    (network_dir / folder.WEIGHTS).unlink()
    with pytest.raises(InputError, match=r"has no weights\.safetensors"):
        harness.load(network_dir)
    with pytest.raises(InputError, match=r"nowhere/training\.json"):
        harness.load(network_dir / "nowhere")


@pytest.mark.parametrize(
    ("changes", "message"), [({"width": 99.0}, "found a network of"), ({"options": {"zzz": 1}}, "unknown option 'zzz'")]
)
def test_a_network_that_is_too_large_or_does_not_exist_is_refused_before_it_is_built(network_dir, changes, message):
    record = folder.read_training(network_dir / folder.TRAINING)
    other = make_record(record.config.replace(**changes), record.fingerprint)
    (network_dir / folder.TRAINING).write_text(json.dumps(record_json(other)))
    with pytest.raises(InputError, match=f"options: {message}"):
        harness.load(network_dir)


def test_code_of_a_plugin_runs_only_if_it_is_named(tmp_path, tiny_training, monkeypatch):
    (tmp_path / "own_nets.py").write_text("import pathlib\npathlib.Path(__file__).with_name('ran').touch()\n")
    monkeypatch.syspath_prepend(tmp_path)
    network_dir = tmp_path / "network"
    folder.begin_network(network_dir, make_record(tiny_training(plugins={"own_nets": "0" * 16}), "data"))
    (network_dir / folder.WEIGHTS).touch()
    with pytest.raises(InputError, match=r"plugins: found \[\], allowed: a list with 'own_nets'"):
        harness.load(network_dir)
    with pytest.raises(InputError, match="the digest of the source that this network was made with"):
        harness.load(network_dir, plugins=["own_nets"])
    assert not (tmp_path / "ran").exists()


def test_a_study_is_a_data_frame_from_which_networks_are_loaded(network_dir):
    table = harness.results(network_dir.parents[1])
    (evaluation_dir,) = folder.evaluation_folders(network_dir)
    metrics = folder.read_result(evaluation_dir).metrics
    (row,) = table.to_dict("records")
    assert row["certified_error"] == metrics["certified_error"] and row["model"] == "cerdeq"
    (section,) = build_leaderboard(network_dir.parents[1]).sections
    assert (row["row"], row["section"]) == (section.labels[0], section.heading)
    assert (row["eps_value"], row["is_main"]) == (float(section.eps), True)
    assert isinstance(harness.load(row["network_dir"]), torch.nn.Sequential)


def test_a_network_of_which_no_evaluation_began_is_a_row_without_numbers(tmp_path, tiny_training):
    record = make_record(tiny_training(), "data")
    folder.begin_network(folder.network_dir(tmp_path / "study", record.key), record)
    (row,) = harness.results(tmp_path / "study").to_dict("records")
    assert pd.isna(row["section"]) and row["problem"]
    assert main("tables", [str(tmp_path / "study")]) == 0


def test_importing_the_package_imports_neither_torch_nor_pandas():
    code = "import sys, harness; assert not {'torch', 'pandas', 'numpy', 'harness.config'} & {*sys.modules}"
    subprocess.run([sys.executable, "-c", code], check=True)
