"""A file whose evaluation changes: networks stay, answers are taken over, long evaluations are shared by workers."""

import math
import os
import re
import signal
from contextlib import contextmanager

import pandas
import pytest
from processes import wait_for, workers
from servers import mlflow
from study import TINY, Study, without_ray

from harness.common import names
from harness.evaluation.ledger import SoundnessError
from harness.evaluation.ranges import OpenEvaluation
from harness.storage import folder
from harness.work import ray_connection

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # MLflow's, of SQLAlchemy

MAIN = TINY["evaluation"]
STAGE = {**MAIN, "stages": ["ibp", "crown-ibp", "crown"]}
RADII = {**MAIN, "eps": ["1/32", "1/64"]}
IMAGES = {**STAGE, "test_images": 70}


def study_of(root, store, *evaluations, **changes):
    return Study(root, {**TINY, "evaluation": list(evaluations), **changes}, store)


def written(study, name):
    return {path: path.stat().st_mtime_ns for path in study.directory.glob(f"{folder.NETWORKS}/**/{name}")}


def without_seconds(table):
    """The paragraphs of a table but those of durations."""
    return [text for text in table.split("\n\n") if "second" not in text and "| clean " not in text]


def test_a_stage_radii_and_images_more_train_nothing_again_and_end_in_the_table_of_a_fresh_run(
    copied, tmp_path, store, capsys
):
    trained, finished = written(copied, folder.TRAINED), written(copied, folder.RESULT)
    asked = [MAIN]
    for evaluation in (STAGE, RADII, IMAGES):
        asked.append(evaluation)
        study = study_of(copied.root, copied.store, *asked)
        with without_ray():
            assert study.main() == 0
        printed = capsys.readouterr().out
        count = 2 * len(study.evaluations)
        done = len(finished)
        assert f"2 networks, 2 trained already; {count} evaluations, {done} finished already" in printed
        assert written(study, folder.TRAINED) == trained
        assert written(study, folder.RESULT).items() >= finished.items()
        finished = written(study, folder.RESULT)
        assert len(finished) == count
    study.assert_complete()
    (tmp_path / "fresh").mkdir()
    fresh = study_of(tmp_path / "fresh", store, *asked)
    assert fresh.main("--here") == 0
    tables = [(each.directory / "leaderboard.md").read_text() for each in (study, fresh)]
    assert without_seconds(tables[0]) == without_seconds(tables[1]) and tables[0].count("eps 1/") >= 5
    for path in study.directory.glob(f"networks/*/evaluations/*/{folder.VERDICTS}"):
        other = fresh.directory / path.relative_to(study.directory)
        assert path.read_bytes() == other.read_bytes()


@contextmanager
def embedded(store, directory):
    yield store


@contextmanager
def served(store, directory):
    """The same store by way of a server."""
    with mlflow(directory, store, str(directory / "artifacts")) as uri:
        yield uri


@pytest.mark.timeout(900)
@pytest.mark.parametrize("store_of", [embedded, pytest.param(served, marks=pytest.mark.slow)])
def test_mlflow_has_what_the_leaderboard_s_main_section_has_whatever_evaluations_were_asked_before(
    tmp_path, store, store_of
):
    smaller = {**MAIN, "eps": "1/64", "stages": ["ibp"]}
    orders = [[MAIN, smaller], [smaller, MAIN], [STAGE, smaller], [smaller], [MAIN], [smaller, STAGE], [MAIN, STAGE]]
    errors, done = [], set()
    with store_of(store, tmp_path) as uri:
        for asked in orders:
            study = study_of(tmp_path, uri, *asked, name=store_of.__name__)
            assert study.main("--here") == 0
            leaderboard = pandas.read_csv(study.directory / "leaderboard.csv").drop_duplicates("model")  # main: first
            assert set(leaderboard["eps"]) == {str(study.evaluations[0].eps)}
            logged = [study.runs[study.records[model, 0].key].data.metrics for model in leaderboard["model"]]
            shown = [name for name in leaderboard if name.startswith("certified_error") and not name.endswith("_std")]
            for name in [*shown, "standard_error", "attack_error", "bound_width"]:
                expected = pytest.approx(list(leaderboard[name]), nan_ok=True)
                assert [each.get(name, math.nan) for each in logged] == expected
            assert {each["eps"] for each in logged} == {float(study.evaluations[0].eps)}
            errors.append(tuple(leaderboard["certified_error"]))
            done |= {f"{record.key}/{each.key}" for record in study.records.values() for each in study.evaluations}
            assert study.runs.keys() >= done, "nothing is deleted"
            for key in done:
                network, evaluation = key.split("/")
                evaluation_dir = study.directory / folder.NETWORKS / network / folder.EVALUATIONS / evaluation
                certified = folder.read_result(evaluation_dir).metrics[names.CERTIFIED_ERROR]
                assert study.runs[key].data.metrics[names.CERTIFIED_ERROR] == certified
    assert len(set(errors)) > 1, "else nothing is tested"


def test_a_network_that_a_sweep_beside_has_trained_is_copied_and_only_what_is_new_is_done(
    copied, no_ray, store, capsys
):
    beside = Study(copied.root, {**TINY, "name": "beside"}, store)
    assert beside.main() == 0, "its evaluation is finished there, too: Ray is not needed"
    assert f"2 networks trained already in {copied.directory}: copied from there" in capsys.readouterr().out
    beside.assert_complete()
    for name, network_dir in beside.network_dirs.items():
        assert (network_dir / folder.TRAINED).read_bytes() == (copied.network_dirs[name] / folder.TRAINED).read_bytes()


@pytest.fixture
def unsound(monkeypatch):
    """A bound is wrong in the evaluations of one stage more, of cnn5."""
    evaluate = OpenEvaluation.evaluate_range

    def evaluate_range(opened, images):
        if "crown" in opened.evaluation.stages and opened.training.config.model == "cnn5":
            raise SoundnessError("certified and falsified all the same: test examples [3], 1 in all")
        evaluate(opened, images)

    monkeypatch.setattr(OpenEvaluation, "evaluate_range", evaluate_range)


def test_an_evaluation_that_fails_leaves_its_reason_and_all_others_go_on(copied, unsound, monkeypatch, capsys):
    """So does a training. What would fail again is left, unless it is asked for."""
    network_dirs = copied.network_dirs
    diverges = {**TINY["trials"][0], "train": {"regularisation": 3e38}}
    study = study_of(copied.root, copied.store, MAIN, STAGE, RADII, trials=[*TINY["trials"], diverges])
    with without_ray():
        assert study.main() == 1
    printed = capsys.readouterr().out
    assert printed.count("failed cnn5 ibp seed 0: eps 1/16, ibp > crown-ibp > crown") == 1
    diverged = [line for line in printed.splitlines() if line.startswith("failed ") and "NonFiniteLossError" in line]
    assert len(diverged) == 1, "of the network, not of each evaluation"
    failures = set(study.directory.rglob(folder.FAILURE))
    _, further, *radii = study.evaluations
    evaluation_dir = folder.evaluation_dir(network_dirs["cnn5", 0], further)
    assert evaluation_dir / folder.FAILURE in failures and len(failures) == 2
    for network_dir in network_dirs.values():
        assert all(folder.read_result(folder.evaluation_dir(network_dir, each)) for each in radii)
    assert folder.read_result(folder.evaluation_dir(network_dirs["cerdeq", 0], further))
    with without_ray():
        assert study.main() == 1
    assert capsys.readouterr().out.count("it would fail the same way again. To retry anyway: --retry-failed") == 5
    monkeypatch.undo()
    with without_ray():
        assert study.main("--retry-failed", "--only", network_dirs["cnn5", 0].name) == 0


@pytest.fixture
def no_start(monkeypatch):
    """Ray cannot start."""

    def fails(*_, **__):
        raise RuntimeError("The current node timed out during startup.")

    monkeypatch.setattr(ray_connection.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray_connection.ray, "init", fails)


def test_where_ray_cannot_start_a_line_gives_advice_and_nothing_is_left_of_what_did_not_begin(
    tmp_path, store, no_start, capsys
):
    study = Study(tmp_path, {**TINY, "name": "not-started"}, store)
    assert study.main() == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "timed out during startup" in line and "harness.run --here" in line
    assert not study.directory.exists() and study.runs == {}


LONG_EVALUATION = {
    **TINY,
    "name": "shared",
    "width": 0.25,
    "evaluation": [
        {**MAIN, "batch_size": 5, "test_images": 200, "attack_steps": 100},
        {**MAIN, "eps": "1/32", "batch_size": 5, "test_images": 200, "attack_steps": 100},
    ],
    "trials": [{"model": "cnn7", "method": "ibp"}],
}


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_ranges_of_one_network_are_shared_and_kills_of_a_worker_and_the_driver_change_nothing(tmp_path, store):
    study = Study(tmp_path, LONG_EVALUATION, store)

    def ranges():
        return list(study.directory.glob("networks/*/evaluations/*/ranges/*/*.pt"))

    driver = study.start(start_new_session=True)
    try:
        wait_for(lambda: len(ranges()) > 3 or driver.poll() is not None, 400)
        wait_for(lambda: len(workers(driver.pid)) >= 2, 100)
        os.kill(workers(driver.pid)[0], signal.SIGKILL)
        before = len(ranges())
        wait_for(lambda: len(ranges()) > before + 3 or driver.poll() is not None, 200)
    finally:
        driver.kill()
    out, err = driver.communicate()
    assert driver.returncode == -signal.SIGKILL, out + err
    again = study.start()
    out, err = again.communicate(timeout=600)
    assert again.returncode == 0, out + err
    assert re.search(r"1 network, 1 trained already; 2 evaluations, [01] finished already", out)
    study.assert_complete()
    (tmp_path / "quiet").mkdir()
    quiet = Study(tmp_path / "quiet", LONG_EVALUATION, store)
    assert quiet.main("--here") == 0
    for evaluation in study.evaluations:
        shared, alone = (folder.evaluation_dir(each.network_dirs["cnn7", 0], evaluation) for each in (study, quiet))
        for name in (folder.VERDICTS, folder.COUNTEREXAMPLES):
            assert (shared / name).read_bytes() == (alone / name).read_bytes()
        assert {path.name for path in shared.iterdir()} == {path.name for path in alone.iterdir()}
        metrics = [folder.read_result(path).metrics for path in (shared, alone)]
        assert metrics[0][names.CERTIFIED_ERROR] == metrics[1][names.CERTIFIED_ERROR]
