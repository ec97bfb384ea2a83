"""What else may lie in a sweep's results directory: of other networks, older recipes, damaged, left by Ray."""

import json
import shutil

import pytest
from mlflow import MlflowClient
from study import TINY, Study, snapshot

from harness.command_line import main
from harness.common import names
from harness.config.training import RECIPE_VERSION
from harness.storage import files, folder
from harness.storage.records import make_record, record_json
from harness.work import on_ray
from harness.work.queue import end_job

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # MLflow's, of SQLAlchemy


def test_a_result_of_another_network_is_not_taken_for_this_one_s(copied, no_ray, capsys):
    """Told by its path before anything starts, and neither trained again nor tabled."""
    wrong, right = copied.evaluation_dirs["cnn5", 0], copied.evaluation_dirs["cerdeq", 0]
    shutil.copy(right / folder.RESULT, wrong / folder.RESULT)
    before = snapshot(copied.directory)
    assert copied.main() == 2
    message = capsys.readouterr().err
    assert (
        str(wrong) in message
        and f"belongs to another network or evaluation, {folder.network_of(right).name}/" in message
    )
    after = snapshot(copied.directory)
    assert {path: after[path][1] for path in after} == {path: before[path][1] for path in before}


def test_a_stale_network_that_today_s_code_cannot_read_is_counted_and_flagged_with_all(copied, no_ray, capsys):
    """A folder of an older recipe, whose config had a setting that is gone: stale, not in the way."""
    stale = record_json(copied.records["cnn5", 0])
    stale |= {"key": "0" * 16, "recipe_version": RECIPE_VERSION - 1}
    stale["config"]["train"]["momentum"] = 0.9
    network_dir = copied.directory / folder.NETWORKS / ("0" * 16)
    files.write_json(network_dir / folder.TRAINING, stale)
    (network_dir / folder.LOG).touch()
    assert copied.main() == 0
    assert "Left out: 1 evaluation of 1 network: " in (copied.directory / "leaderboard.md").read_text()
    capsys.readouterr()
    assert main("tables", [str(copied.directory), "--all"]) == 0
    assert "(0000000000000000): not counted: training.json cannot be read: " in " ".join(
        capsys.readouterr().out.split()
    )


@pytest.mark.parametrize("name", [folder.EPOCHS, folder.FAILURE])
def test_a_damaged_file_is_named_and_hides_no_other_network(copied, no_ray, capsys, name):
    """In a folder that the sweep no longer names: named by its path; everything else is logged and tabled."""
    left, remaining = copied.network_dirs["cerdeq", 0], copied.records["cnn5", 0].key
    study = Study(copied.root, {**TINY, "trials": TINY["trials"][:1]}, copied.store)
    if name == folder.FAILURE:
        (left / folder.TRAINED).unlink()
    (left / name).write_text("{")
    left = left.rename(left.with_name("0" * 16))  # first in order
    MlflowClient(study.store).delete_run(study.runs[remaining].info.run_id)
    assert study.main() == 0, "nothing that the sweep asks for is missing"
    captured = capsys.readouterr()
    assert str(left / name) in captured.out + captured.err
    assert "cnn5" in (study.directory / "leaderboard.md").read_text()
    assert study.runs[remaining].info.status == "FINISHED"


def exchange_errors(evaluation_dir):
    result = json.loads((evaluation_dir / folder.RESULT).read_text())
    result["metrics"] |= {names.STANDARD_ERROR: 90.0, names.CERTIFIED_ERROR: 10.0}
    (evaluation_dir / folder.RESULT).write_text(json.dumps(result))


def test_a_finished_evaluation_that_cannot_be_used_fails_the_run_which_names_it(copied, no_ray, capsys):
    network_dir, evaluation_dir = copied.network_dirs["cnn5", 0], copied.evaluation_dirs["cnn5", 0]
    shutil.copytree(network_dir, good := copied.root / "good")
    for spoil, message in (
        (exchange_errors, "standard <= attack <= certified error does not hold"),
        (lambda _: (network_dir / folder.WEIGHTS).unlink(), f"{folder.WEIGHTS} is missing"),
        (lambda path: (path / folder.VERDICTS).unlink(), f"{folder.VERDICTS} is missing"),
        (lambda path: (path / folder.VERDICTS).unlink(), f"{folder.VERDICTS} is missing"),  # and again
    ):
        shutil.rmtree(network_dir)
        shutil.copytree(good, network_dir)
        spoil(evaluation_dir)
        assert copied.main() == 1
        line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("cannot be used: "))
        assert "cnn5 ibp seed 0" in line and str(evaluation_dir) in line and message in line
    assert copied.main("--only", "cerdeq*") == 0, "of the selected networks nothing is missing"


def test_an_old_failure_is_not_reported_as_a_new_one(copied, monkeypatch, capsys):
    """A worker dies before it begins: the reason is that, not what failure.json holds from last week."""
    evaluation_dir = copied.evaluation_dirs["cnn5", 0]
    (evaluation_dir / folder.RESULT).unlink()
    files.write_json(evaluation_dir / folder.FAILURE, {"error": "RuntimeError: last week's", "last_finite": {}})

    def dies_at_once(queue, do, listener, options, directory):
        end_job(queue, listener, queue.take(), "its worker failed 3 times: it died")

    monkeypatch.setattr(on_ray, "run_on_ray", dies_at_once)
    assert copied.main() == 1
    assert "it died" in folder.read_failure(evaluation_dir).error
    assert "last week" not in capsys.readouterr().out


def test_what_an_older_form_of_the_file_asked_for_and_never_began_disappears(copied, no_ray):
    """What has begun stays."""
    record, main = copied.records["cnn5", 0], copied.evaluations[0]
    other = make_record(record.config.replace(seed=9), record.fingerprint)
    network_dir = folder.network_dir(copied.directory, other.key)
    folder.begin_network(network_dir, other, "full", [main])
    folder.write_choice(network_dir, {"text": "tpe", "search": "tpe-0"})
    never, begun = (
        folder.begin_evaluation(copied.network_dirs["cnn5", 0], main.replace(attack_steps=steps)) for steps in (7, 8)
    )
    (begun / folder.LOG).touch()
    assert copied.main() == 0
    assert not network_dir.exists() and not never.exists() and begun.exists()
