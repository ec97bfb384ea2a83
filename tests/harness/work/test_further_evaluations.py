"""Further evaluations by `sweep.yaml` of results: killed anywhere they end with the very same verdicts."""

import shutil
import sys
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from small_sweep import write
from study import TINY, snapshot

import cerdeq
from cerdeq.errors import UnsupportedOperator
from harness.command_line import main
from harness.common import names
from harness.data import load
from harness.evaluation import stages
from harness.evaluation.ledger import SoundnessError
from harness.evaluation.ranges import OpenEvaluation, _open_cached
from harness.leaderboard.table import build_leaderboard
from harness.storage import folder, ranges
from harness.storage.lock import LOCK
from harness.storage.sweep_file import SWEEP

STAGES = "[ibp, crown-ibp, crown]"


def evaluations(network_dir):
    """The folders of all evaluations of a network but its first one, by radius."""
    paths = [path for path in folder.evaluation_folders(network_dir) if path != first_evaluation(network_dir)]
    return sorted(paths, key=lambda path: folder.read_evaluation(path).config.eps)


def first_evaluation(network_dir):
    paths = folder.evaluation_folders(network_dir)
    (first,) = [path for path in paths if folder.read_evaluation(path).config.stages == ("ibp",)]
    return first


def run(directory, *assignments, stages=STAGES):
    """Run the sweep.yaml of a sweep's directory, for one network if it is a network's."""
    sweep_dir = directory.parents[1] if directory.parent.name == folder.NETWORKS else directory
    only = [] if sweep_dir == directory else ["--only", directory.name]
    changes = [f"evaluation.{each}" for each in (f"stages={stages}", *assignments)]
    words = [word for each in changes for word in ("--set", each)]
    return main("run", [str(sweep_dir / SWEEP), "--here", *only, *words])


@pytest.fixture(scope="module", autouse=True)
def _no_page_and_no_mlflow():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "harness.tracking.tracker", None)
        patch.setitem(sys.modules, "harness.report.sweep_page", SimpleNamespace(write_page=lambda *_: None))
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A sweep's directory with two finished networks, evaluated in three ranges of ten images."""
    directory = tmp_path_factory.mktemp("trained")
    evaluation = {**TINY["evaluation"], "stages": ["ibp"], "test_images": 30, "batch_size": 10}
    train = {**TINY["train"], "epochs": 3, "batch_size": 32, "ramp_epochs": 2}
    content = {**TINY, "eps": "1/64", "seeds": [0, 1], "train_images": 320, "train": train}
    content |= {"trials": TINY["trials"][:1], "evaluation": evaluation}
    assert main("run", [str(write(directory, content)), "--here", "--results-dir", str(directory)]) == 0
    return directory / "tiny"


def copy(trained, directory):
    shutil.copytree(trained, directory / "results/tiny")
    header = "dataset,eps,model,method,standard_error,certified_error,source\n"
    (directory / "results/literature.csv").write_text(header)
    return directory / "results/tiny"


@pytest.fixture(scope="module")
def certified(trained, tmp_path_factory):
    """A copy whose networks are evaluated further, which no test may change."""
    sweep_dir = copy(trained, tmp_path_factory.mktemp("certified"))
    assert run(sweep_dir) == 0
    return sweep_dir


@pytest.fixture
def sweep_dir(trained, tmp_path):
    return copy(trained, tmp_path)


@pytest.fixture
def network_dir(sweep_dir):
    return folder.network_folders(sweep_dir)[0]


@pytest.fixture
def evaluate_with(monkeypatch):
    """A function that is called with the first image of a range before that is evaluated."""

    def replace(before):
        evaluate = OpenEvaluation.evaluate_range

        def evaluate_range(opened, images):
            before(images.start)
            evaluate(opened, images)

        monkeypatch.setattr(OpenEvaluation, "evaluate_range", evaluate_range)

    return replace


@pytest.fixture
def evaluated(evaluate_with):
    """The first images of the ranges that are evaluated from now on."""
    firsts = []
    evaluate_with(firsts.append)
    return firsts


def die(*_):
    raise KeyboardInterrupt


@pytest.fixture
def begun(network_dir, evaluate_with, monkeypatch):
    """The folder of an evaluation that was killed in its second range."""
    with monkeypatch.context() as patch:
        patch.setattr(OpenEvaluation, "evaluate_range", OpenEvaluation.evaluate_range)
        evaluate_with(lambda first: die() if first == 10 else None)
        assert run(network_dir) == 130
    (directory,) = evaluations(network_dir)
    return directory


def printed(capsys):
    return " ".join(capsys.readouterr().out.split())


def test_every_trained_network_has_verdicts_and_a_result(certified):
    for network_dir in folder.network_folders(certified):
        (directory,), own = evaluations(network_dir), first_evaluation(network_dir)
        expected = folder.read_evaluation(own).config.replace(stages=("ibp", "crown-ibp", "crown"))
        assert folder.read_evaluation(directory).config == expected
        table, before = (pd.read_parquet(path / folder.VERDICTS) for path in (directory, own))
        assert table[names.INDEX].tolist() == list(range(30))
        assert set(table[names.VERDICT]) <= set(names.VERDICTS)
        pd.testing.assert_series_equal(table["margin_ibp"], before["margin_ibp"])
        result, first = folder.read_result(directory), folder.read_result(own)
        assert result.key == f"{network_dir.name}/{directory.name}"
        assert result.metrics.keys() >= {names.certified_error_after("crown"), names.PARAMETERS}
        for name in (names.STANDARD_ERROR, names.BOUND_WIDTH, names.TRAIN_SECONDS, names.BOUND_WIDTH_RELATIVE):
            assert result.metrics[name] == pytest.approx(first.metrics[name], rel=1e-2)
        assert result.metrics.keys() >= {names.seconds_of(s) for s in ("clean", "ibp", "crown-ibp", "crown")}
        assert not (directory / ranges.RANGES).exists()


def test_killed_anywhere_it_goes_on_to_the_very_same_verdicts(
    certified, sweep_dir, begun, evaluated, monkeypatch, capsys
):
    network_dir = folder.network_of(begun)
    assert "unfinished: trained, 10 images are evaluated" in build_leaderboard(sweep_dir).uncounted["problem"].str.cat()
    with monkeypatch.context() as patch:
        patch.setattr(folder, "write_result", die)
        assert run(network_dir) == 130
    assert "the same command continues" in capsys.readouterr().err
    for _ in range(2):
        assert run(network_dir) == 0
    assert evaluated == [10, 20], "nothing is done twice"
    (complete,) = evaluations(folder.network_folders(certified)[0])
    assert (begun / folder.VERDICTS).read_bytes() == (complete / folder.VERDICTS).read_bytes()
    assert not evaluations(folder.network_folders(sweep_dir)[1])


@pytest.mark.parametrize("change", ["weights of an unfinished one", "versions", "weights of a finished one"])
def test_what_is_of_other_weights_or_versions_is_evaluated_again(sweep_dir, begun, evaluated, monkeypatch, change):
    network_dir, other = folder.network_folders(sweep_dir)
    if change == "weights of a finished one":
        assert run(network_dir) == 0
        evaluated.clear()
    if change == "versions":
        monkeypatch.setattr("harness.evaluation.ranges.describe_environment", lambda _: {"device": "x"})
        _open_cached.cache_clear()  # as in another process
    else:
        shutil.copy(other / folder.WEIGHTS, network_dir / folder.WEIGHTS)
        folder.write_trained(network_dir, folder.read_trained(network_dir))
    assert run(network_dir) == 0
    assert evaluated == [0, 10, 20]
    assert run(network_dir) == 0 and evaluated == [0, 10, 20]


def test_an_image_whose_stage_fails_has_that_for_its_verdict(certified, network_dir, monkeypatch, capsys):
    (complete,) = evaluations(folder.network_folders(certified)[0])
    expected = pd.read_parquet(complete / folder.VERDICTS)
    failing = expected.index[expected["margin_crown-ibp"].notna()].tolist()[:2]
    pixels = load("digits").test_images(30).images.double() / 255
    bounds, errors = stages.lower_bounds, [torch.OutOfMemoryError("64 GiB"), UnsupportedOperator("no\nsuch rule")]

    def faulty(program, region, *arguments, **options):
        for index, error in zip(failing, errors, strict=True):
            if any(torch.allclose(centre, pixels[index], atol=1 / 16) for centre in region.center):
                raise error
        return bounds(program, region, *arguments, **options)

    monkeypatch.setattr(stages, "lower_bounds", faulty)
    assert run(network_dir) == 0
    (directory,) = evaluations(network_dir)
    table = pd.read_parquet(directory / folder.VERDICTS)
    assert table.loc[failing, names.VERDICT].tolist() == [names.OUT_OF_MEMORY, names.FAILED]
    assert table.loc[failing, names.STAGE].tolist() == ["crown-ibp"] * 2
    reasons = ["OutOfMemoryError: 64 GiB", "UnsupportedOperator: no such rule"]
    assert table.loc[failing, names.REASON].tolist() == reasons
    assert table.loc[failing, ["margin_crown-ibp", "margin_crown"]].isna().all(axis=None)
    columns = [names.VERDICT, names.STAGE, names.REASON]
    pd.testing.assert_frame_equal(table.drop(index=failing)[columns], expected.drop(index=failing)[columns])
    assert folder.read_result(directory).metrics[names.share_of(names.FAILED)] == pytest.approx(100 / 30)
    assert f"failed in crown-ibp: 1 example, such as {failing[1]} ({reasons[1]})" in printed(capsys)


def test_branch_and_bound_decides_what_is_left_within_its_budget(sweep_dir, network_dir, monkeypatch):
    budgets = []

    def verify(model, region, spec, seconds, branches, certificates):
        budgets.append((seconds, branches))
        lower = spec.new_full(spec.shape[:2], -1.0)
        result = {"status": ["timeout"], "lower": lower, "counterexample": None, "branches": torch.tensor([3])}
        return SimpleNamespace(**result, certificates=[{}])

    monkeypatch.setattr(cerdeq, "verify", verify, raising=False)
    for limits in (["bab_seconds=60"], ["bab_branches=40"], ["bab_branches=40", "bab_seconds=1.5"]):
        assert run(network_dir, "test_images=20", "bab_seconds=null", *limits, stages="[ibp, bab]") == 0
    assert list(dict.fromkeys(budgets)) == [(60.0, None), (None, 40), (1.5, 40)]
    assert len(evaluations(network_dir)) == 3
    for directory in evaluations(network_dir):
        table = pd.read_parquet(directory / folder.VERDICTS)
        ended = table[names.VERDICT] == names.TIMEOUT
        assert ended.any() and (table.loc[ended, names.BRANCHES] == 3).all()
        assert table.loc[~ended, names.BRANCHES].isna().all() and names.UNKNOWN not in set(table[names.VERDICT])
    headings = [section.heading for section in build_leaderboard(sweep_dir).sections]
    assert "digits, profile full, eps 1/64, ibp > bab (1.5 s or 40 branches), first 20 test images" in headings, (
        headings
    )


def test_the_file_as_it_ran_does_nothing_again(sweep_dir, evaluated):
    before = snapshot(sweep_dir)
    assert main("run", [str(sweep_dir / SWEEP), "--here"]) == 0
    assert evaluated == [] and {path for path in before if path.name != LOCK} == unchanged(sweep_dir, before)


def unchanged(sweep_dir, before):
    """The files that are as they were, but the lock's."""
    return {path for path, state in snapshot(sweep_dir).items() if before.get(path) == state and path.name != LOCK}


def test_radii_are_evaluated_from_the_largest_on_and_take_over_what_that_certifies(network_dir):
    assert run(network_dir, "eps=[1/128, 1/256]", stages="[ibp, crown]") == 0
    smallest, middle = evaluations(network_dir)
    taken = folder.read_result(smallest).taken_over
    assert taken.keys() <= {middle.name, first_evaluation(network_dir).name}
    errors = [folder.read_result(path).metrics[names.CERTIFIED_ERROR] for path in (smallest, middle)]
    assert errors == sorted(errors)


def test_an_unsound_bound_fails_its_evaluation_and_no_range_of_it_is_used(sweep_dir, evaluate_with, capsys):
    begun = []

    def unsound(first):
        begun.append(first)
        if first == 10:
            raise SoundnessError("certified and falsified all the same: test examples [3], 1 in all")

    evaluate_with(unsound)
    assert run(sweep_dir) == 1
    assert begun == [0, 10] * 2
    printed = " ".join(capsys.readouterr().out.split())
    assert printed.count("failed cnn5 ibp seed") == 2
    for network_dir in folder.network_folders(sweep_dir):
        (directory,) = evaluations(network_dir)
        assert folder.read_failure(directory).repeats and not (directory / ranges.RANGES).exists()


def test_a_range_that_cannot_be_evaluated_leaves_those_before_it(network_dir, evaluate_with, capsys):
    def fail(first):
        if first == 10:
            raise RuntimeError("worker lost")

    evaluate_with(fail)
    assert run(network_dir) == 1
    assert "RuntimeError: worker lost" in printed(capsys)
    assert ranges.count_saved_images(*evaluations(network_dir)) == 10


def test_an_evaluation_that_cannot_be_read_is_refused_and_stays(certified, tmp_path, capsys):
    sweep_dir = copy(certified, tmp_path)
    (directory,) = evaluations(folder.network_folders(sweep_dir)[0])
    (directory / folder.RESULT).write_text("{")
    assert run(sweep_dir) == 2
    assert str(directory / folder.RESULT) in capsys.readouterr().err
    assert (directory / folder.VERDICTS).exists() and (directory / folder.RESULT).read_text() == "{"
