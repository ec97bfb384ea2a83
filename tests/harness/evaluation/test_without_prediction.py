"""An image without a proved prediction counts as an error, whatever the cause; no limit of time is one."""

import json
import shutil

import pandas as pd
import pytest
import torch
from networks import GOLDEN

from cerdeq.equilibrium import NotConvergedError
from harness.checker.evaluation import recheck
from harness.common import names
from harness.data import load
from harness.evaluation import ibp
from harness.evaluation.ranges import open_evaluation
from harness.leaderboard.evaluations import NOT_COUNTED, read_evaluations
from harness.storage import folder
from harness.storage.parquet import read_table, write_table
from harness.storage.state import State, read_state

ERRORS = {"failed": NotConvergedError("no equilibrium"), "out of memory": torch.cuda.OutOfMemoryError("8 GiB")}
FAILING = [5, 18]


@pytest.fixture
def network_dir(tmp_path):
    """The folder of a trained network without evaluations, in a sweep's directory."""
    path = folder.network_dir(tmp_path, folder.read_training(GOLDEN / "cnn5" / folder.TRAINING).key)
    return shutil.copytree(GOLDEN / "cnn5", path, ignore=lambda *_: [folder.EVALUATIONS])


@pytest.fixture
def evaluate(network_dir, tiny_evaluation, monkeypatch):
    """A function of an error and settings to the folder of an evaluation of forty images, of which FAILING raise it."""
    bound_margins, data = ibp.bound_margins, load("digits")
    failing = data.test_images(40).images[FAILING].double() / 255

    def run(error=None, **settings):
        def fail(program, x, *rest):
            if error is not None and any(torch.equal(image, other) for image in failing for other in x):
                raise error
            return bound_margins(program, x, *rest)

        monkeypatch.setattr(ibp, "bound_margins", fail)
        settings = {"eps": "1/16", "stages": ("ibp",), "test_images": 40, "batch_size": 15} | settings
        opened = open_evaluation(network_dir, tiny_evaluation(**settings), data)
        count = len(opened.images)
        for start in range(0, count, 15):
            opened.evaluate_range(range(start, min(start + 15, count)))
        opened.finish()
        return opened.directory

    return run


def errors(metrics):
    return [metrics[name] for name in (names.STANDARD_ERROR, names.ATTACK_ERROR, names.CERTIFIED_ERROR)]


@pytest.mark.parametrize("cause", ERRORS)
def test_an_image_without_a_prediction_is_an_error_that_the_checker_confirms(evaluate, network_dir, cause):
    right = read_table(evaluate() / folder.VERDICTS)
    assert set(right.loc[FAILING, names.VERDICT]) == {names.CERTIFIED}
    shutil.rmtree(network_dir / folder.EVALUATIONS)
    directory = evaluate(ERRORS[cause])
    table, result = read_table(directory / folder.VERDICTS), folder.read_result(directory)
    columns = [names.PREDICTION, names.VERDICT, names.STAGE]
    assert table.loc[FAILING, columns].to_numpy().tolist() == 2 * [[names.NO_PREDICTION, "misclassified", "clean"]]
    assert table.loc[FAILING, names.ATTACK_MARGIN].isna().all()
    pd.testing.assert_frame_equal(table.drop(FAILING)[columns], right.drop(FAILING)[columns])
    wrong = [
        table[names.VERDICT].isin(verdicts)
        for verdicts in (["misclassified"], ["misclassified", "falsified"], set(names.VERDICTS) - {"certified"})
    ]
    assert errors(result.metrics) == pytest.approx([100 * each.mean() for each in wrong])
    assert wrong[0].sum() == 2 + (right[names.VERDICT] == "misclassified").sum()
    reason = f"{cause}: {type(ERRORS[cause]).__name__}: {ERRORS[cause]}"
    assert f"no prediction of 2 images (2 {cause}), such as 5 ({reason}): counted as errors" in result.warnings
    checked = recheck(directory)
    assert checked.problems == [] and checked.confirmed == pytest.approx(checked.recorded)


def test_a_network_of_which_most_images_have_no_prediction_does_not_count_as_collapsed(evaluate, monkeypatch):
    monkeypatch.setattr(torch, "equal", lambda image, other: True)  # all images fail
    directory = evaluate(ERRORS["failed"], test_images=1)
    result = folder.read_result(directory)
    assert errors(result.metrics) == [100.0, 100.0, 100.0]
    assert [warning for warning in result.warnings if "collapsed" in warning] == []


def test_no_limit_of_time_stops_a_prediction(evaluate, network_dir):
    expected = read_table(evaluate(stages=("ibp", "crown-ibp")) / folder.VERDICTS)
    shutil.rmtree(network_dir / folder.EVALUATIONS)
    table = read_table(evaluate(stages=("ibp", "crown-ibp"), stage_seconds=1e-9) / folder.VERDICTS)
    same = [names.PREDICTION, names.margin_column("ibp"), names.WIDTH]
    pd.testing.assert_frame_equal(table[same], expected[same])
    assert set(table.loc[table[names.STAGE] == names.ATTACK, names.VERDICT]) == {names.TIMEOUT}


def make_older(directory, cause):
    """Write the result of an evaluation without predictions of FAILING as it once was: they counted as right."""
    table, result = read_table(directory / folder.VERDICTS), json.loads((directory / folder.RESULT).read_text())
    table.loc[FAILING, [names.VERDICT, names.STAGE, names.PREDICTION]] = [cause, names.CLEAN, names.NO_PREDICTION]
    table = table.astype({names.PREDICTION: int})
    write_table(directory / folder.VERDICTS, table)
    result["metrics"] |= {names.share_of(cause): 5.0, names.STANDARD_ERROR: 0.0}
    (directory / folder.RESULT).write_text(json.dumps(result | {"verdicts": ""}))


@pytest.mark.parametrize("cause", [names.TIMEOUT, names.OUT_OF_MEMORY, names.FAILED])
def test_an_older_result_that_counts_such_images_as_right_is_not_shown_and_evaluated_again(
    evaluate, network_dir, tmp_path, cause
):
    directory = evaluate(stage_seconds=100.0)
    expected, metrics = read_table(directory / folder.VERDICTS), folder.read_result(directory).metrics
    make_older(directory, cause)
    state, said = read_state(directory), "older, it counts 2 images without a prediction as predicted rightly"
    assert state.state is State.OLDER and state.text == f"{said}: run it again"
    (row,) = read_evaluations(tmp_path).to_dict("records")
    assert row["state"] == NOT_COUNTED and said in row["problem"]
    further = evaluate(stage_seconds=100.0, eps="1/20")  # it takes over answers of the older one, not about FAILING
    table = read_table(further / folder.VERDICTS)
    assert set(table.loc[FAILING, names.VERDICT]) == {names.CERTIFIED} and recheck(further).problems == []
    assert evaluate(stage_seconds=100.0) == directory
    assert read_state(directory).state is State.FINISHED
    again = folder.read_result(directory).metrics
    assert errors(again) == errors(metrics)
    assert read_table(directory / folder.VERDICTS)[names.VERDICT].equals(expected[names.VERDICT])


def test_a_later_evaluation_may_prove_an_image_without_a_prediction(evaluate):
    """That is no contradiction, in either order."""
    lacking = evaluate(ERRORS["out of memory"])
    further = evaluate(eps="1/12")
    table = read_table(further / folder.VERDICTS)
    assert set(table.loc[FAILING, names.VERDICT]) == {names.CERTIFIED}
    shutil.rmtree(lacking)
    evaluate(ERRORS["out of memory"])
