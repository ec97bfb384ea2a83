"""`python -m harness.tables --status`: what folders show of a sweep, while it runs and after."""

import os
import time

import pytest

from harness.command_line import main
from harness.config.training import RECIPE_VERSION
from harness.storage import folder
from harness.storage.lock import lock_directory
from harness.storage.records import make_record


def status_of(study, capsys):
    """Return the line of each network by its model, and all lines that are printed."""
    status = main("tables", [str(study.directory), "--status"])
    lines = capsys.readouterr().out.splitlines()
    assert status == 0
    return {model: next(line for line in lines if model in line) for model in ("cnn5", "cerdeq")}, lines


def test_finished_networks_are_shown_with_their_errors_and_their_size(copied, capsys):
    by_model, lines = status_of(copied, capsys)
    assert "no run on this machine is using" in lines[0]
    for (model, _), record in copied.records.items():
        assert record.key in by_model[model]
        assert "finished" in by_model[model] and "certified error" in by_model[model]
        assert "kB" in by_model[model] or "MB" in by_model[model]
    assert lines[-1].startswith("2 networks, 2 evaluations: 2 finished; ")


def test_failed_and_unfinished_ones_are_shown_with_why_and_how_far(copied, capsys):
    for evaluation_dir in copied.evaluation_dirs.values():
        (evaluation_dir / folder.RESULT).unlink()
    record = copied.records["cnn5", 0]
    other = make_record(record.config.replace(seed=9), record.fingerprint)
    folder.begin_network(folder.network_dir(copied.directory, other.key), other, "full", copied.evaluations)
    folder.write_failure(copied.evaluation_dirs["cnn5", 0], "RuntimeError: of a kind")
    (copied.network_dirs["cerdeq", 0] / folder.TRAINED).unlink()
    by_model, lines = status_of(copied, capsys)
    assert "failed" in by_model["cnn5"] and "RuntimeError: of a kind" in by_model["cnn5"]
    assert "unfinished" in by_model["cerdeq"] and "epoch 2 of 2" in by_model["cerdeq"] and " ago" in by_model["cerdeq"]
    assert all(part in lines[-1] for part in ("1 failed", "1 unfinished", "1 not begun"))


def test_a_network_runs_where_the_run_that_holds_the_directory_wrote_for_it(copied, capsys):
    for evaluation_dir in copied.evaluation_dirs.values():
        (evaluation_dir / folder.RESULT).unlink()
    for path in (copied.directory / folder.NETWORKS).rglob("*"):
        os.utime(path, (time.time() - 7200,) * 2)
    with lock_directory(copied.directory):
        os.utime(copied.network_dirs["cnn5", 0] / folder.EPOCHS)
        by_model, lines = status_of(copied, capsys)
    assert f"process {os.getpid()}" in lines[0]
    assert "running" in by_model["cnn5"]
    assert "unfinished" in by_model["cerdeq"] and "2 h ago" in by_model["cerdeq"]
    by_model, _ = status_of(copied, capsys)
    assert "unfinished" in by_model["cnn5"], "nobody holds the directory any more"


def test_a_network_of_an_older_recipe_counts_as_none_of_today_s(copied, capsys):
    path = copied.network_dirs["cnn5", 0] / folder.TRAINING
    path.write_text(path.read_text().replace(f'"recipe_version": {RECIPE_VERSION}', '"recipe_version": 1'))
    by_model, lines = status_of(copied, capsys)
    assert "older, of recipe version 1" in by_model["cnn5"] and "finished" in by_model["cerdeq"]
    assert "2 evaluations: " in lines[-1] and "1 finished" in lines[-1] and "1 older" in lines[-1]


@pytest.mark.parametrize("name", [folder.TRAINING, folder.RESULT])
def test_a_damaged_file_hides_no_other_network(copied, capsys, name):
    directories = copied.network_dirs if name == folder.TRAINING else copied.evaluation_dirs
    (directories["cnn5", 0] / name).write_text("{")
    assert main("tables", [str(copied.directory), "--status"]) == 0
    printed = capsys.readouterr().out
    assert "1 cannot be read" in printed and "1 finished" in printed


def test_each_evaluation_has_a_line_which_says_how_far_it_is(copied, capsys):
    further = copied.evaluations[0].replace(stages=("ibp", "crown"))
    for network_dir in copied.network_dirs.values():
        directory = folder.begin_evaluation(network_dir, further)
        (directory / "ranges/0").mkdir(parents=True)
        (directory / "ranges/0/00000-00020.pt").touch()
    assert main("tables", [str(copied.directory), "--status"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum("20 images are evaluated" in line and further.description in line for line in lines) == 2
    assert "2 networks, 4 evaluations: " in lines[-1] and "2 finished" in lines[-1] and "2 unfinished" in lines[-1]


def test_a_directory_without_networks_is_refused(tmp_path, capsys):
    assert main("tables", [str(tmp_path), "--status"]) == 2
    assert "holds no networks" in capsys.readouterr().err
