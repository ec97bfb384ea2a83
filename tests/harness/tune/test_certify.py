"""`python -m harness.certify`: killed anywhere it ends with the very same verdicts; what it refuses, and what fails."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from processes import alive, descendants, wait_for

import cerdeq
from harness.checker.bounds import operators
from harness.command_line import main
from harness.common import names
from harness.data import load
from harness.evaluation import certification_shards as work
from harness.evaluation import parts, stages
from harness.evaluation.ledger import SoundnessError
from harness.leaderboard.table import build_leaderboard
from harness.storage import certification, files, folder
from harness.training import train_and_certify
from harness.tune import certification_jobs
from harness.tune.workers import Item, Listener, run_items

STAGES = "ibp,crown-ibp,crown"
NAME = "ibp+crown-ibp+crown-30-images"


def finished_trials(sweep_dir):
    return [trial_dir for trial_dir in folder.trial_folders(sweep_dir) if folder.read_result(trial_dir)]


def run(*arguments, stages=STAGES):
    return main("certify", [*map(str, arguments), "--stages", stages, "--workers", "1"])


@pytest.fixture(scope="module", autouse=True)
def _three_shards():
    """Ten images a shard, five a part, and no Ray."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(work, "FEWEST_PER_SHARD", 10)
        patch.setattr(parts, "images_per_part", lambda *_: 5)
        patch.setitem(sys.modules, "harness.tune.ray_tune", None)
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_trial):
    """A sweep's directory with two finished trials and one that is not finished."""
    sweep_dir, data = tmp_path_factory.mktemp("results") / "tiny", load("digits")
    base = tiny_trial(eps="1/64", train={"batch_size": 32})
    base = base.replace(evaluation=base.evaluation.replace(test_images=30))
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


@pytest.fixture(scope="module")
def killed(trained, tmp_path_factory):
    """A certification that was killed after its first shard, of two parts, and one part of its second."""
    trial_dir, *_ = finished_trials(copy(trained, tmp_path_factory.mktemp("killed")))
    write, calls = certification.write_part, []

    def die(*arguments, **options):
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(write(*arguments, **options))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(certification, "write_part", die)
        assert run(trial_dir) == 130
    directory = trial_dir / "certified" / NAME
    assert certification.unfinished_shards(directory) == [1, 2]
    assert sorted(path.stem for path in directory.glob("shards/*.json")) == ["00000", "00005", "00010"]
    return directory


@pytest.fixture
def begun(killed, trial_dir):
    """A copy of it."""
    return shutil.copytree(killed, trial_dir / "certified" / NAME)


@pytest.fixture
def evaluate_with(monkeypatch):
    """A function that replaces the evaluation of a shard, and is called with its number first."""

    def replace(before):
        certify_shard = certification_jobs.certify_shard

        def certify(directory, number, report, data_dir):
            before(number)
            certify_shard(directory, number, report, data_dir)

        monkeypatch.setattr(certification_jobs, "certify_shard", certify)

    return replace


@pytest.fixture
def shards(evaluate_with):
    """The numbers of the shards that are evaluated from now on."""
    numbers = []
    evaluate_with(numbers.append)
    return numbers


def printed(capsys):
    return " ".join(capsys.readouterr().out.split())


def test_networks_that_recheck_cannot_read_are_named(sweep_dir, monkeypatch, capsys):
    monkeypatch.delitem(operators._MODULES, torch.nn.ReLU)
    monkeypatch.setattr("harness.tune.certification_jobs._certify", lambda *_: {})
    monkeypatch.setattr("harness.tune.certification_jobs._describe_outcome", lambda *_: [])
    run(sweep_dir)
    printed = capsys.readouterr().out
    assert printed.count("warning: cnn5: harness.recheck will confirm no verdict: it has no rule for ReLU()") == 1


def test_every_finished_trial_has_verdicts_timings_and_a_result(certified):
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
        timings = pd.read_parquet(directory / certification.TIMINGS).groupby("stage")["seconds"].sum()
        assert set(timings.index) == {"clean", "attack", "ibp", "crown-ibp", "crown"}
        assert timings["ibp"] == pytest.approx(result.metrics[names.seconds_of("ibp")])
        assert not (directory / folder.SHARDS).exists()


def test_killed_anywhere_it_goes_on_to_the_very_same_verdicts(certified, sweep_dir, begun, shards, monkeypatch, capsys):
    def die(*_):
        raise KeyboardInterrupt

    trial_dir = certification.trial_of(begun)
    saved = (begun / "shards/00010.json").stat().st_mtime_ns
    assert "unfinished: 1 of 3 shards" in build_leaderboard(sweep_dir).uncounted["problem"].str.cat()
    with monkeypatch.context() as patch:
        patch.setattr(folder, "write_result", die)
        assert run(trial_dir) == 130
    assert "the same command continues" in capsys.readouterr().err
    assert certification.unfinished_shards(begun) == []
    assert (begun / "shards/00010.json").stat().st_mtime_ns == saved
    for _ in range(2):
        assert run(trial_dir) == 0
    assert shards == [1, 2], "nothing is done twice"
    complete = finished_trials(certified)[0] / "certified" / NAME
    assert (begun / folder.VERDICTS).read_bytes() == (complete / folder.VERDICTS).read_bytes()
    assert not (finished_trials(sweep_dir)[1] / "certified").exists()


@pytest.mark.parametrize("change", ["weights or data", "versions or device"])
def test_shards_of_other_weights_or_versions_are_done_again(sweep_dir, begun, shards, monkeypatch, change, capsys):
    trial_dir, other = finished_trials(sweep_dir)
    if change == "weights or data":
        shutil.copy(other / folder.WEIGHTS, trial_dir / folder.WEIGHTS)
    else:
        monkeypatch.setattr(work, "describe_environment", lambda device: {"torch": "another", "threads": "1"})
    work._load.cache_clear()
    assert run(trial_dir) == 0
    assert shards == [0, 1, 2]
    assert f"begun anew: other {change}" in printed(capsys)


def test_a_shard_whose_verdicts_were_changed_is_missing(begun):
    table = pd.read_parquet(begun / "shards/00000.parquet")
    table.assign(**{names.VERDICT: names.CERTIFIED}).to_parquet(begun / "shards/00000.parquet")
    assert certification.unfinished_shards(begun) == [0, 1, 2]


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

    def unsound(number):
        begun.append(number)
        raise SoundnessError("certified and falsified all the same: test examples [3], 1 in all")

    evaluate_with(unsound)
    assert run(sweep_dir) == 1
    assert begun == [0]
    captured = capsys.readouterr()
    assert "a bound is wrong" in captured.err
    assert "left out 1 of 3 trials, unfinished or of another recipe version" in " ".join(captured.out.split())
    assert not list(sweep_dir.rglob("certified/*/result.json"))


def test_a_shard_that_cannot_be_done_leaves_the_others(trial_dir, evaluate_with, capsys):
    def die(number):
        if number == 1:
            raise RuntimeError("worker lost")

    evaluate_with(die)
    assert run(trial_dir) == 1
    assert "failed: RuntimeError: worker lost" in printed(capsys)
    assert certification.unfinished_shards(trial_dir / "certified" / NAME) == [1]


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
    jobs = []
    monkeypatch.setattr(certification_jobs, "certify_jobs", lambda made, *rest: jobs.extend(made) or True)
    assert run(trial_dir, "--certificates", "--branches", "7") == 0
    settings = jobs[0].config.evaluation
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
def test_two_workers_that_are_stopped_leave_shards_that_one_goes_on_from(sweep_dir, number, status):
    """In a process of its own, with a Ray of its own."""
    command = [sys.executable, "-m", "harness.certify", str(sweep_dir), "--stages", "ibp,crown-ibp", "--images", "360"]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    stopped = subprocess.Popen([*command, "--workers", "2"], **options)
    wait_for(lambda: list(sweep_dir.rglob("shards/*.json")) or stopped.poll() is not None, 200)
    workers = descendants(stopped.pid)
    stopped.send_signal(number)
    _, errors = stopped.communicate(timeout=60)
    assert stopped.returncode == status
    assert number == signal.SIGKILL or "the same command continues" in errors
    assert 1 <= len(list(sweep_dir.rglob("shards/*.json"))) < 4
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
    content = json.loads((directory / certification.CERTIFICATION).read_text())
    (directory / certification.CERTIFICATION).write_text(json.dumps(content | {"digest": "of another machine"}))
    (directory / folder.RESULT).write_text("{")
    assert run(sweep_dir) == 2
    assert str(directory / folder.RESULT) in capsys.readouterr().err
    assert (directory / folder.VERDICTS).exists() and (directory / folder.RESULT).read_text() == "{"


@pytest.mark.parametrize(
    ("workers", "gpus", "share"), [(3, 2, 1 / 2), (5, 2, 1 / 3), (7, 3, 1 / 3), (2, 2, 1.0), (3, 0, 0)]
)
def test_so_many_workers_as_are_asked_for_fit_on_the_gpus(monkeypatch, workers, gpus, share):
    """Ray gives a worker its share of one GPU: of shares of 2 / 3 there is room for one on each."""
    given = []
    run_on_ray = lambda items, work, listener, options, scratch: given.append(options)  # noqa: E731
    monkeypatch.setitem(sys.modules, "harness.tune.ray_tune", SimpleNamespace(run_on_ray=run_on_ray))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    items = [Item(Path(str(number)), "", {}) for number in range(workers)]
    run_items(items, lambda item, report: {}, Listener(), "", workers)
    assert (given[0].gpu, given[0].at_once) == (share, workers)
    assert share == 0 or int(1 / given[0].gpu) * gpus >= workers
