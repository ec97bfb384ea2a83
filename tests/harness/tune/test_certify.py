"""`python -m harness.certify`: killed anywhere it ends with the very same verdicts; what it refuses, and what fails."""

import dataclasses
import json
import shutil
import signal
import subprocess
import sys
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from processes import alive, descendants, wait_for

import cerdeq
from harness.command_line import main
from harness.common import names
from harness.data import load
from harness.evaluation import stages
from harness.evaluation.ledger import SoundnessError
from harness.leaderboard.table import build_leaderboard
from harness.storage import certification, files, folder, ranges
from harness.training import train_and_certify
from harness.tune import certify_plan, certify_trials
from harness.tune.machines import share_machine

STAGES = "ibp,crown-ibp,crown"
NAME = "ibp+crown-ibp+crown-30-images"


def finished_trials(sweep_dir):
    return [trial_dir for trial_dir in folder.trial_folders(sweep_dir) if folder.read_result(trial_dir)]


def run(*arguments, stages=STAGES):
    return main("certify", [*map(str, arguments), "--stages", stages, "--workers", "1"])


@pytest.fixture(scope="module", autouse=True)
def _no_ray():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "harness.tune.ray_tune", None)
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_trial):
    """A sweep's directory with two finished trials and one that is not, evaluated in three ranges of ten images."""
    sweep_dir, data = tmp_path_factory.mktemp("results") / "tiny", load("digits")
    base = tiny_trial(eps="1/64", train={"batch_size": 32})
    base = base.replace(evaluation=base.evaluation.replace(test_images=30, batch_size=10))
    for seed in (0, 1, 2):
        config = base.replace(seed=seed)
        trial = folder.make_trial(config, data.fingerprint)
        trial_dir = folder.trial_dir(sweep_dir, trial.key)
        if seed == 2:
            folder.take_over(trial_dir, trial)
        else:
            train_and_certify(config, trial_dir)
    return sweep_dir


def copy(trained, directory):
    shutil.copytree(trained, directory / "results/tiny")
    header = "dataset,eps,model,method,standard_error,certified_error,source\n"
    (directory / "results/published.csv").write_text(header)
    return directory / "results/tiny"


@pytest.fixture(scope="module")
def certified(trained, tmp_path_factory):
    """A copy whose finished trials are certified, which no test may change."""
    sweep_dir = copy(trained, tmp_path_factory.mktemp("certified"))
    assert run(sweep_dir) == 0
    return sweep_dir


@pytest.fixture
def sweep_dir(trained, tmp_path):
    return copy(trained, tmp_path)


@pytest.fixture
def trial_dir(sweep_dir):
    return finished_trials(sweep_dir)[0]


@pytest.fixture
def evaluate_with(monkeypatch):
    """A function that is called with the first image of a range before that is evaluated."""

    def replace(before):
        evaluate = certify_trials.evaluate_range

        def evaluate_range(ranges_dir, images, *rest):
            before(images.start)
            evaluate(ranges_dir, images, *rest)

        monkeypatch.setattr(certify_trials, "evaluate_range", evaluate_range)

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
def begun(trial_dir, evaluate_with, monkeypatch):
    """The folder of a certification that was killed in its second range."""
    with monkeypatch.context() as patch:
        patch.setattr(certify_trials, "evaluate_range", certify_trials.evaluate_range)
        evaluate_with(lambda first: die() if first == 10 else None)
        assert run(trial_dir) == 130
    return trial_dir / "certified" / NAME


def printed(capsys):
    return " ".join(capsys.readouterr().out.split())


def test_every_finished_trial_has_verdicts_and_a_result(certified):
    for trial_dir in finished_trials(certified):
        directory = trial_dir / "certified" / NAME
        table, own = (pd.read_parquet(path / folder.VERDICTS) for path in (directory, trial_dir))
        assert table[names.INDEX].tolist() == list(range(30))
        assert table.columns.drop("margin_crown").tolist() == own.columns.tolist()
        assert set(table[names.VERDICT]) <= set(names.VERDICTS)
        pd.testing.assert_series_equal(table["margin_ibp"], own["margin_ibp"])
        result, trial = folder.read_result(directory), folder.read_result(trial_dir)
        assert result.key == trial.key and result.metrics.keys() >= {
            names.certified_error_after("crown"),
            names.PARAMETERS,
        }
        for name in (names.STANDARD_ERROR, names.BOUND_WIDTH, names.TRAIN_SECONDS, names.BOUND_WIDTH_RELATIVE):
            assert result.metrics[name] == pytest.approx(trial.metrics[name], rel=1e-2)
        assert result.metrics.keys() >= {names.seconds_of(s) for s in ("clean", "attack", "ibp", "crown-ibp", "crown")}
        assert not (directory / ranges.RANGES).exists()


def test_killed_anywhere_it_goes_on_to_the_very_same_verdicts(
    certified, sweep_dir, begun, evaluated, monkeypatch, capsys
):
    trial_dir = certification.trial_of(begun)
    assert (
        f"unfinished: 10 images of {NAME} are evaluated" in build_leaderboard(sweep_dir).uncounted["problem"].str.cat()
    )
    with monkeypatch.context() as patch:
        patch.setattr(folder, "write_result", die)
        assert run(trial_dir) == 130
    assert "the same command continues" in capsys.readouterr().err
    for _ in range(2):
        assert run(trial_dir) == 0
    assert evaluated == [10, 20], "nothing is done twice"
    complete = finished_trials(certified)[0] / "certified" / NAME
    assert (begun / folder.VERDICTS).read_bytes() == (complete / folder.VERDICTS).read_bytes()
    assert not (finished_trials(sweep_dir)[1] / "certified").exists()


@pytest.mark.parametrize("change", ["weights of an unfinished one", "versions", "weights of a finished one"])
def test_what_is_of_other_weights_or_versions_is_evaluated_again(
    sweep_dir, begun, evaluated, monkeypatch, change, capsys
):
    trial_dir, other = finished_trials(sweep_dir)
    if change == "weights of a finished one":
        assert run(trial_dir) == 0
        evaluated.clear()
    if change == "versions":
        monkeypatch.setattr(certify_plan, "describe_environment", lambda device: {"torch": "another"})
    else:
        shutil.copy(other / folder.WEIGHTS, trial_dir / folder.WEIGHTS)
    certify_trials._open.cache_clear()
    assert run(trial_dir) == 0
    assert evaluated == [0, 10, 20]
    assert "begun anew: what was there is of other weights, versions or another device" in printed(capsys)
    assert run(trial_dir) == 0 and evaluated == [0, 10, 20]


def test_an_image_whose_stage_fails_has_that_for_its_verdict(certified, trial_dir, monkeypatch, capsys):
    expected = pd.read_parquet(finished_trials(certified)[0] / "certified" / NAME / folder.VERDICTS)
    failing = expected.index[expected["margin_crown-ibp"].notna()].tolist()[:2]
    pixels = load("digits").test_images(30).images.double() / 255
    bounds, errors = stages.lower_bounds, [torch.OutOfMemoryError("64 GiB"), ValueError("no\nsuch rule")]

    def faulty(program, region, *arguments, **options):
        for index, error in zip(failing, errors, strict=True):
            if any(torch.allclose(centre, pixels[index], atol=1 / 16) for centre in region.center):
                raise error
        return bounds(program, region, *arguments, **options)

    monkeypatch.setattr(stages, "lower_bounds", faulty)
    assert run(trial_dir) == 0
    directory = trial_dir / "certified" / NAME
    table = pd.read_parquet(directory / folder.VERDICTS)
    assert table.loc[failing, names.VERDICT].tolist() == [names.OUT_OF_MEMORY, names.FAILED]
    assert table.loc[failing, names.STAGE].tolist() == ["crown-ibp"] * 2
    assert table.loc[failing, names.REASON].tolist() == ["OutOfMemoryError: 64 GiB", "ValueError: no such rule"]
    assert table.loc[failing, ["margin_crown-ibp", "margin_crown"]].isna().all(axis=None)
    columns = [names.VERDICT, names.STAGE, names.REASON]
    pd.testing.assert_frame_equal(table.drop(index=failing)[columns], expected.drop(index=failing)[columns])
    assert folder.read_result(directory).metrics[names.share_of(names.FAILED)] == pytest.approx(100 / 30)
    assert f"failed in crown-ibp: 1 example, such as {failing[1]} (ValueError: no such rule)" in printed(capsys)


def test_branch_and_bound_decides_what_is_left_within_its_budget(sweep_dir, trial_dir, monkeypatch):
    budgets = []

    def verify(model, region, spec, seconds, branches, certificates):
        budgets.append((seconds, branches))
        lower = spec.new_full(spec.shape[:2], -1.0)
        result = {"status": ["timeout"], "lower": lower, "counterexample": None, "branches": torch.tensor([3])}
        return SimpleNamespace(**result, certificates=[{}])

    monkeypatch.setattr(cerdeq, "verify", verify, raising=False)
    for options in ([], ["--branches", "40"], ["--branches", "40", "--seconds", "1.5"]):
        assert run(trial_dir, "--images", "20", *options, stages="ibp,bab") == 0
    assert list(dict.fromkeys(budgets)) == [(60.0, None), (None, 40), (1.5, 40)]
    folders = ["ibp+bab-1.5s-40branches-20-images", "ibp+bab-40branches-20-images", "ibp+bab-60s-20-images"]
    assert [path.name for path in certification.folders(trial_dir)] == folders
    table = pd.read_parquet(trial_dir / "certified" / folders[-1] / folder.VERDICTS)
    ended = table[names.VERDICT] == names.TIMEOUT
    assert ended.any() and (table.loc[ended, names.BRANCHES] == 3).all()
    assert table.loc[~ended, names.BRANCHES].isna().all() and names.UNKNOWN not in set(table[names.VERDICT])
    headings = [section.heading for section in build_leaderboard(sweep_dir).sections]
    heading = "profile full, ibp > bab (1.5 s or 40 branches), first 20 test images, by harness.certify"
    assert f"digits, eps 1/64, {heading}" in headings


def test_the_stages_of_the_trial_itself_are_a_section_of_their_own(sweep_dir, trial_dir):
    assert run(trial_dir, stages="ibp,crown-ibp") == 0
    leaderboard = build_leaderboard(sweep_dir)
    assert [section.heading.partition("ibp, ")[2] for section in leaderboard.sections] == [
        "first 30 test images",
        "first 30 test images, by harness.certify",
    ]
    assert leaderboard.uncounted["problem"].tolist() == ["not begun"]


def test_an_unsound_bound_stops_everything(sweep_dir, evaluate_with, capsys):
    begun = []

    def unsound(first):
        begun.append(first)
        raise SoundnessError("certified and falsified all the same: test examples [3], 1 in all")

    evaluate_with(unsound)
    assert run(sweep_dir) == 1
    assert begun == [0]
    captured = capsys.readouterr()
    assert "a bound is wrong" in captured.err
    assert "left out 1 of 3 trials, unfinished or of another recipe version" in " ".join(captured.out.split())
    assert not list(sweep_dir.rglob("certified/*/result.json"))


def test_a_range_that_cannot_be_evaluated_leaves_the_others(trial_dir, evaluate_with, capsys):
    def fail(first):
        if first == 10:
            raise RuntimeError("worker lost")

    evaluate_with(fail)
    assert run(trial_dir) == 1
    assert "failed: RuntimeError: worker lost" in printed(capsys)
    assert ranges.count_saved_images(trial_dir / "certified" / NAME) == 20


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
    assert not list(trained.rglob("certified"))


def test_searches_for_certificates_have_the_budget_that_is_asked_for(trial_dir, monkeypatch):
    all_planned = []
    monkeypatch.setattr(certify_trials, "certify", lambda planned, *rest: all_planned.extend(planned) or True)
    assert run(trial_dir, "--certificates", "--branches", "7") == 0
    settings = all_planned[0].trial.evaluation
    assert (settings.certificates, settings.bab_seconds, settings.bab_branches) == (True, None, 7)


def test_a_path_without_a_finished_trial_is_refused(sweep_dir, trial_dir, capsys):
    assert run(sweep_dir / "nowhere") == 2
    assert str(sweep_dir / "nowhere") in capsys.readouterr().err
    (trial_dir / folder.RESULT).unlink()
    assert run(trial_dir) == 2
    assert "holds no finished trial" in capsys.readouterr().err


def make_stale(trial_dir):
    trial = json.loads((trial_dir / folder.TRIAL).read_text())
    files.write_json(trial_dir / folder.TRIAL, trial | {"recipe_version": 1})


def change_data(trial_dir):
    other = folder.make_trial(folder.read_trial(trial_dir / folder.TRIAL).config, "other")
    files.write_json(trial_dir / folder.TRIAL, folder.trial_json(other))
    folder.write_result(trial_dir, dataclasses.replace(folder.read_result(trial_dir), key=other.key))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (make_stale, "holds no finished trial"),
        (change_data, "data: found"),
        (lambda trial_dir: (trial_dir / folder.WEIGHTS).unlink(), "has no weights.safetensors"),
    ],
)
def test_trials_that_cannot_be_certified_are_refused(sweep_dir, trial_dir, capsys, change, message):
    change(trial_dir)
    assert run(trial_dir) == 2
    assert message in capsys.readouterr().err
    assert not list(sweep_dir.rglob("certified"))


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_two_workers_that_are_stopped_leave_ranges_that_one_goes_on_from(sweep_dir, number, status):
    """In a process of its own, with a Ray of its own."""
    command = [sys.executable, "-m", "harness.certify", str(sweep_dir), "--stages", "ibp,crown-ibp", "--images", "60"]
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
    pairs = [(trial_dir, trial_dir.with_name(f"{trial_dir.name}-copy")) for trial_dir in finished_trials(sweep_dir)]
    for trial_dir, again in pairs:
        shutil.copytree(trial_dir, again, ignore=shutil.ignore_patterns("certified"))
    assert subprocess.run([*command, "--workers", "1"], capture_output=True, timeout=250).returncode == 0
    for pair in pairs:
        resumed, anew = (next(path.glob(f"certified/*/{folder.VERDICTS}")) for path in pair)
        assert resumed.read_bytes() == anew.read_bytes()


def test_a_certification_that_cannot_be_read_is_refused_and_stays(certified, tmp_path, capsys):
    sweep_dir = copy(certified, tmp_path)
    (directory,) = certification.folders(finished_trials(sweep_dir)[0])
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
