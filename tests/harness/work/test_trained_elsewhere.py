"""A network trained elsewhere from its checkpoint to MLflow, the leaderboard and the checker."""

import json

import pytest
import torch
import yaml
from study import TINY, Study, without_ray

from baselines import build
from harness.command_line import main
from harness.common import names
from harness.leaderboard.columns import REPORTED
from harness.storage import folder
from harness.storage.lock import LOCK, lock_directory
from harness.storage.sweep_file import SWEEP

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # MLflow's, of SQLAlchemy
SOURCE = {"paper": "Someone 2022", "method": "Box", "clean_accuracy": 90.5, "certified_accuracy": 80}


@pytest.fixture(scope="module")
def study(tmp_path_factory, store):
    """A finished sweep of one checkpoint and one network that is trained."""
    directory = tmp_path_factory.mktemp("elsewhere")
    network = build("conv", "digits", 0.1)
    state = {name: tensor for name, tensor in network.state_dict().items() if not name.startswith("normalize.")}
    torch.save({"net": state, "epoch": 3}, directory / "net.pt")
    checkpoint = {"file": "net.pt", "prefix": "net.", "mean": [0.25], "std": [0.5]}
    entry = {"model": "conv", "width": 0.1, "checkpoint": checkpoint, "source": SOURCE}
    made = Study(directory, TINY | {"name": "elsewhere", "trials": [entry, TINY["trials"][0]]}, store)
    with without_ray():
        assert made.main() == 0
    return made


def test_a_checkpoint_is_evaluated_logged_shown_and_rechecked_like_any_network(study, capsys):
    network_dir, evaluation_dir = study.network_dirs["conv", 0], study.evaluation_dirs["conv", 0]
    key = study.records["conv", 0].key
    expected = {folder.TRAINING, folder.STUDY, folder.NETWORK_FILE, folder.WEIGHTS, folder.TRAINED, folder.LOG}
    assert {path.name for path in network_dir.iterdir()} - {LOCK} == expected | {folder.EVALUATIONS, "mlflow.json"}
    expected = {folder.EVALUATION, folder.VERDICTS, folder.COUNTEREXAMPLES, folder.RESULT, folder.LOG}
    assert {path.name for path in evaluation_dir.iterdir()} == expected
    assert (network_dir / folder.NETWORK_FILE).read_bytes() == (study.root / "net.pt").read_bytes()
    result, run = folder.read_result(evaluation_dir), study.runs[key]
    assert run.info.status == "FINISHED" and run.data.metrics[names.CERTIFIED_ERROR] > 0
    digest = json.loads((network_dir / folder.TRAINING).read_text())["config"]["checkpoint"]["sha256"]
    assert run.data.params["checkpoint.sha256"] == digest and run.data.params["source.paper"] == "Someone 2022"
    assert result.metrics[names.PARAMETERS] == sum(p.numel() for p in build("conv", "digits", 0.1).parameters())
    row = reported_row(study)
    assert [row[name] for name in REPORTED] == [20, 9.5, "Box, Someone 2022"]
    assert row["method"] == "trained elsewhere" and row["train.epochs"] is None
    assert "| conv " in (study.directory / "leaderboard.md").read_text()
    assert main("recheck", [str(study.directory)]) == 0
    assert "every verdict is confirmed" in capsys.readouterr().out
    assert main("tables", [str(study.directory), "--status"]) == 0


def test_it_is_certified_further(study, capsys):
    """By the file in its results, from where the path of the checkpoint is another one."""
    network_dir, change = study.network_dirs["conv", 0], "evaluation={stages: [ibp, crown], test_images: 20}"
    words = [str(study.directory / SWEEP), "--here", "--only", network_dir.name, "--set", change]
    assert main("run", [*words, "--tracking-uri", study.store]) == 0
    assert "done conv trained elsewhere checkpoint=net.pt@" in capsys.readouterr().out


def reported_row(study):
    rows = json.loads((study.directory / "leaderboard.json").read_text())
    return next(row for row in rows if row["model"] == "conv")


def test_it_is_evaluated_without_ray(study, tmp_path):
    with lock_directory(tmp_path / "out/elsewhere"):  # so that it only trains
        assert main("run", [str(study.file), "--here", "--only", "conv*", "--results-dir", str(tmp_path / "out")]) == 0
    (network_dir,) = folder.network_folders(tmp_path / "out/elsewhere")
    (evaluation_dir,) = folder.evaluation_folders(network_dir)
    assert folder.read_result(evaluation_dir) is not None and (network_dir / folder.NETWORK_FILE).exists()


def test_new_numbers_of_the_paper_reach_the_table_without_another_evaluation(study, no_ray):
    written = (study.evaluation_dirs["conv", 0] / folder.RESULT).stat().st_mtime_ns
    content = yaml.safe_load(study.file.read_text())
    content["trials"][0]["source"]["certified_accuracy"] = 81.5
    study.file.write_text(yaml.safe_dump(content))
    assert study.main() == 0
    assert (study.evaluation_dirs["conv", 0] / folder.RESULT).stat().st_mtime_ns == written
    assert reported_row(study)["reported certified error"] == 18.5
