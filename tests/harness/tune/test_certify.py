"""`python -m harness.certify`: killed anywhere it ends with the very same verdicts; what it refuses, and what fails."""

import json
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from processes import alive, descendants, wait_for

import cerdeq
from cerdeq.errors import UnsupportedOperator
from harness.command_line import main
from harness.common import names
from harness.data import load
from harness.evaluation import stages
from harness.evaluation.ledger import SoundnessError
from harness.evaluation.ranges import OpenEvaluation
from harness.leaderboard.table import build_leaderboard
from harness.storage import files, folder, ranges
from harness.storage.lock import lock_directory
from harness.storage.records import make_record, record_json
from harness.training.train_and_evaluate import train_and_evaluate
from harness.tune import ray_connection
from harness.tune.machines import share_machine

STAGES = "ibp,crown-ibp,crown"


def trained_networks(sweep_dir):
    return [path for path in folder.network_folders(sweep_dir) if folder.read_trained(path)]


def evaluations(network_dir):
    """The folders of all evaluations of a network but its main one, by radius."""
    main = folder.main_evaluation(network_dir).key
    paths = [path for path in folder.evaluation_folders(network_dir) if path.name != main]
    return sorted(paths, key=lambda path: folder.read_evaluation(path).config.eps)


def run(*arguments, stages=STAGES):
    return main("certify", [*map(str, arguments), "--stages", stages, "--workers", "1"])


@pytest.fixture(scope="module", autouse=True)
def _no_ray():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "harness.tune.ray_tune", None)
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_training, tiny_evaluation):
    """A sweep's directory with two finished networks and one that is not, evaluated in three ranges of ten images."""
    sweep_dir, data = tmp_path_factory.mktemp("results") / "tiny", load("digits")
    evaluation = tiny_evaluation(eps="1/64", stages=("ibp",), test_images=30, batch_size=10)
    for seed in (0, 1, 2):
        config = tiny_training(seed=seed, train={"batch_size": 32, "eps": "1/64"})
        record = make_record(config, data.fingerprint)
        folder.begin_network(network_dir := folder.network_dir(sweep_dir, record.key), record, "full", [evaluation])
        if seed < 2:
            train_and_evaluate(config, [evaluation], network_dir)
    return sweep_dir


def copy(trained, directory):
    shutil.copytree(trained, directory / "results/tiny")
    header = "dataset,eps,model,method,standard_error,certified_error,source\n"
    (directory / "results/published.csv").write_text(header)
    return directory / "results/tiny"


@pytest.fixture(scope="module")
def certified(trained, tmp_path_factory):
    """A copy whose trained networks are evaluated further, which no test may change."""
    sweep_dir = copy(trained, tmp_path_factory.mktemp("certified"))
    assert run(sweep_dir) == 0
    return sweep_dir


@pytest.fixture
def sweep_dir(trained, tmp_path):
    return copy(trained, tmp_path)


@pytest.fixture
def network_dir(sweep_dir):
    return trained_networks(sweep_dir)[0]


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
    for network_dir in trained_networks(certified):
        (directory,), main = evaluations(network_dir), folder.main_evaluation(network_dir)
        own = folder.evaluation_dir(network_dir, main)
        expected = main.replace(stages=tuple(STAGES.split(",")))
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
    (complete,) = evaluations(trained_networks(certified)[0])
    assert (begun / folder.VERDICTS).read_bytes() == (complete / folder.VERDICTS).read_bytes()
    assert not evaluations(trained_networks(sweep_dir)[1])


@pytest.mark.parametrize(
    "change", ["weights of an unfinished one", "versions", "weights of a finished one", "a result without weights"]
)
def test_what_is_of_other_weights_or_versions_is_evaluated_again(sweep_dir, begun, evaluated, monkeypatch, change):
    network_dir, other = trained_networks(sweep_dir)
    if change in ("weights of a finished one", "a result without weights"):
        assert run(network_dir) == 0
        evaluated.clear()
    if change == "versions":
        monkeypatch.setattr("harness.evaluation.ranges.describe_environment", lambda _: {"device": "x"})
    elif change == "a result without weights":  # as those of older versions
        folder.write_result(begun, replace(folder.read_result(begun), weights=""))
    else:
        shutil.copy(other / folder.WEIGHTS, network_dir / folder.WEIGHTS)
        folder.write_trained(network_dir, folder.read_trained(network_dir))
    assert run(network_dir) == 0
    assert evaluated == [0, 10, 20]
    assert run(network_dir) == 0 and evaluated == [0, 10, 20]


def test_an_image_whose_stage_fails_has_that_for_its_verdict(certified, network_dir, monkeypatch, capsys):
    (complete,) = evaluations(trained_networks(certified)[0])
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
    for options in ([], ["--branches", "40"], ["--branches", "40", "--seconds", "1.5"]):
        assert run(network_dir, "--images", "20", *options, stages="ibp,bab") == 0
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


def test_the_main_evaluation_is_not_done_again(network_dir, evaluated):
    assert run(network_dir, stages="ibp") == 0
    assert evaluations(network_dir) == [] and evaluated == []


def test_radii_are_evaluated_from_the_largest_on_and_take_over_what_that_certifies(network_dir, sweep_dir):
    assert run(network_dir, "--eps", "1/128,1/256", stages="ibp,crown") == 0
    smallest, middle = evaluations(network_dir)
    taken = folder.read_result(smallest).taken_over
    assert taken.keys() <= {middle.name, folder.main_evaluation(network_dir).key}
    errors = [folder.read_result(path).metrics[names.CERTIFIED_ERROR] for path in (smallest, middle)]
    assert errors == sorted(errors)
    assert len(build_leaderboard(sweep_dir).sections) == 3


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
    assert "left out 1 of 3 networks: untrained, without weights, or of another recipe version" in printed
    for network_dir in trained_networks(sweep_dir):
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


def test_another_run_in_the_directory_is_named_and_nothing_is_begun(network_dir, sweep_dir, capsys):
    with lock_directory(sweep_dir):
        assert run(network_dir) == 2
    assert "another run is writing there: " in capsys.readouterr().err
    assert not evaluations(network_dir)


def test_where_ray_cannot_start_a_line_gives_advice_and_nothing_is_begun(sweep_dir, monkeypatch, capsys):
    def fails(*_, **__):
        raise RuntimeError("The current node timed out during startup.")

    monkeypatch.delitem(sys.modules, "harness.tune.ray_tune")
    monkeypatch.setattr(ray_connection.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray_connection.ray, "init", fails)
    before = sorted(sweep_dir.rglob("*"))
    assert main("certify", [str(sweep_dir), "--stages", STAGES, "--workers", "2"]) == 2
    error = capsys.readouterr().err
    assert "timed out during startup" in error and "harness.certify --workers 1" in error
    assert sorted(sweep_dir.rglob("*")) == sorted([*before, sweep_dir / ".lock"])


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--stages", "ibp,milp"], ["stages", "milp", "alpha-crown", "bab"]),
        (["--seconds", "inf"], ["--seconds", "finite"]),
        (["--images", "361"], ["360", "361"]),
        (["--stages", "ibp,crown", "--branches", "5"], ["--branches: needs one of the stages bab in --stages"]),
        (["--stages", "ibp", "--seconds", "5"], ["--seconds: needs one of the stages bab in --stages"]),
    ],
)
def test_options_that_cannot_be_are_refused(trained, capsys, options, parts):
    assert main("certify", [str(trained), *options]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and all(part in message for part in parts), message
    assert not any(map(evaluations, folder.network_folders(trained)))


def test_searches_for_certificates_have_the_budget_that_is_asked_for(network_dir, monkeypatch):
    all_planned = []
    monkeypatch.setattr("harness.tune.certify.certify", lambda _, planned, *rest: all_planned.append(planned) or True)
    assert run(network_dir, "--certificates", "--branches", "7") == 0
    ((settings,),) = all_planned[0].values()
    assert (settings.certificates, settings.bab_seconds, settings.bab_branches) == (True, None, 7)


def test_a_path_without_a_trained_network_is_refused(sweep_dir, network_dir, capsys):
    assert run(sweep_dir / "nowhere") == 2
    assert str(sweep_dir / "nowhere") in capsys.readouterr().err
    (network_dir / folder.TRAINED).unlink()
    assert run(network_dir) == 2
    assert "holds no trained network" in capsys.readouterr().err


def test_networks_are_selected_by_their_labels(sweep_dir, capsys):
    network_dir, other = trained_networks(sweep_dir)
    assert run(sweep_dir, "--only", folder.read_training(network_dir / folder.TRAINING).config.label) == 0
    assert evaluations(network_dir) and not evaluations(other)
    assert run(sweep_dir, "--only", "cnn9 *") == 2
    assert "--only: found 'cnn9 *', allowed: one of" in capsys.readouterr().err


def test_networks_whose_weights_are_not_stored_are_left_out(sweep_dir, network_dir, capsys):
    (network_dir / folder.WEIGHTS).unlink()
    assert run(sweep_dir, stages="ibp,crown") == 0
    assert "left out 2 of 3 networks: untrained, without weights" in " ".join(capsys.readouterr().out.split())
    assert [bool(evaluations(path)) for path in trained_networks(sweep_dir)] == [False, True]


def make_stale(network_dir):
    record = json.loads((network_dir / folder.TRAINING).read_text())
    files.write_json(network_dir / folder.TRAINING, record | {"recipe_version": 1})


def change_data(network_dir):
    other = make_record(folder.read_training(network_dir / folder.TRAINING).config, "other")
    files.write_json(network_dir / folder.TRAINING, record_json(other))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (make_stale, "holds no trained network"),
        (change_data, "data: found"),
        (lambda network_dir: (network_dir / folder.WEIGHTS).unlink(), "holds no trained network"),
        (lambda network_dir: (network_dir / folder.WEIGHTS).write_bytes(b""), "is not the file of which"),
    ],
)
def test_networks_that_cannot_be_evaluated_are_refused(network_dir, capsys, change, message):
    change(network_dir)
    assert run(network_dir) == 2
    assert message in capsys.readouterr().err
    assert not evaluations(network_dir)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_two_workers_that_are_stopped_leave_ranges_that_one_goes_on_from(sweep_dir, number, status):
    """In a process of its own, with a Ray of its own; of two networks, the second radius after the first."""
    command = [sys.executable, "-m", "harness.certify", str(sweep_dir), "--stages", "ibp,crown-ibp", "--images", "60"]
    command += ["--eps", "1/64,1/32"]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    stopped = subprocess.Popen([*command, "--workers", "2"], **options)
    wait_for(lambda: list(sweep_dir.rglob("ranges/*/*.pt")) or stopped.poll() is not None, 200)
    workers = descendants(stopped.pid)
    stopped.send_signal(number)
    _, errors = stopped.communicate(timeout=60)
    assert stopped.returncode == status
    assert number == signal.SIGKILL or "the same command continues" in errors
    assert 1 <= len(list(sweep_dir.rglob("ranges/*/*.pt"))) < 12
    wait_for(lambda: not any(map(alive, workers)))
    again = sweep_dir.with_name("again")
    for network_dir in trained_networks(sweep_dir):
        copied = folder.network_dir(again, network_dir.name)
        left_out = [path.name for path in evaluations(network_dir)]
        shutil.copytree(network_dir, copied, ignore=shutil.ignore_patterns(*left_out))
    assert subprocess.run([*command, "--workers", "2"], capture_output=True, timeout=250).returncode == 0
    command[3] = str(again)
    assert subprocess.run([*command, "--workers", "1"], capture_output=True, timeout=250).returncode == 0
    resumed, anew = (sorted(path.glob(f"networks/*/evaluations/*/{folder.VERDICTS}")) for path in (sweep_dir, again))
    assert len(resumed) == 6 and [path.read_bytes() for path in resumed] == [path.read_bytes() for path in anew]


def test_an_evaluation_that_cannot_be_read_is_refused_and_stays(certified, tmp_path, capsys):
    sweep_dir = copy(certified, tmp_path)
    (directory,) = evaluations(trained_networks(sweep_dir)[0])
    (directory / folder.RESULT).write_text("{")
    assert run(sweep_dir) == 2
    assert str(directory / folder.RESULT) in capsys.readouterr().err
    assert (directory / folder.VERDICTS).exists() and (directory / folder.RESULT).read_text() == "{"


@pytest.mark.parametrize(
    ("workers", "gpus", "share"), [(3, 2, 1 / 2), (5, 2, 1 / 3), (7, 3, 1 / 3), (2, 2, 1.0), (3, 0, 0)]
)
def test_so_many_workers_as_are_asked_for_fit_on_the_gpus(monkeypatch, workers, gpus, share):
    """Ray gives a worker its share of one GPU: of shares of 2 / 3 there is room for one on each."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    options = share_machine(workers, workers)
    assert (options.gpu, options.at_once) == (share, workers)
    assert share == 0 or int(1 / options.gpu) * gpus >= workers
