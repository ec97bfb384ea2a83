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
from harness import certify
from harness.analysis.comparisons import compare
from harness.analysis.leaderboard import build_leaderboard
from harness.command_line import main
from harness.data import load
from harness.evaluation import certification as work
from harness.evaluation import stages
from harness.evaluation.ledger import SoundnessError
from harness.storage import certification, files, folder, names
from harness.training import run_trial

STAGES = "ibp,crown-ibp,crown"
NAME = "ibp+crown-ibp+crown-60-images"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A sweep's directory with two finished trials of a few seconds, and one that is not finished."""
    from harness.config.settings import EvaluationSettings, TrainSettings
    from harness.config.trial import TrialConfig

    train = TrainSettings(epochs=3, batch_size=32, ramp_start=1, ramp_epochs=2, decay_epochs=())
    judged = EvaluationSettings(("ibp", "crown-ibp"), 60, attack_steps=5, attack_restarts=1)
    settings = {"width": 0.1, "train_images": 320, "train": train, "evaluation": judged}
    base = TrialConfig("tiny", "full", "digits", "1/64", 0, "cnn5", "ibp", **settings)
    sweep, data = tmp_path_factory.mktemp("results") / "tiny", load("digits")
    for seed in (0, 1, 2):
        config = dataclasses.replace(base, seed=seed)
        trial = folder.make_trial(config, data.fingerprint)
        place = folder.place(sweep, trial.key)
        if seed == 2:
            folder.claim(place, trial)
        else:
            run_trial(config, place)
    return sweep


@pytest.fixture(scope="module")
def whole(trained, tmp_path_factory):
    """The first finished trial's certification that nothing broke off."""
    place = shutil.copytree(finished_trials(trained)[0], tmp_path_factory.mktemp("whole") / "results/tiny/trials/whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(work, "_PER_SHARD", 25)
        assert run(place) == 0
    return place / "certified" / NAME


@pytest.fixture
def sweep(trained, tmp_path, monkeypatch):
    """A copy of it; shards are of 25 images, and nothing imports Ray."""
    shutil.copytree(trained, tmp_path / "results/tiny")
    (tmp_path / "results/published.csv").write_text("dataset,eps,model,method,standard_error,certified_error,source\n")
    monkeypatch.setattr(work, "_PER_SHARD", 25)
    monkeypatch.setattr(stages, "_IMAGES_OF_A_SLOW_STAGE", 25)
    monkeypatch.setitem(sys.modules, "harness.launch.ray_tasks", None)
    return tmp_path / "results/tiny"


def finished_trials(sweep):
    return [place for place in folder.trial_folders(sweep) if folder.read_result(place)]


def run(*arguments, stages=STAGES):
    return main("certify", [*map(str, arguments), "--stages", stages, "--workers", "1"])


def test_every_finished_trial_is_certified_and_stands_in_a_section_of_its_own(sweep, capsys):
    before = build_leaderboard(sweep)
    assert run(sweep) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "1 of 3 trials are unfinished or of another recipe version: left out" in printed
    assert "certified error" in printed and "at least" in printed
    for place in finished_trials(sweep):
        directory = place / "certified" / NAME
        table, own = (pd.read_parquet(path / folder.VERDICTS) for path in (directory, place))
        assert table[names.INDEX].tolist() == list(range(60))
        assert table.columns.drop("margin_crown").tolist() == own.columns.tolist()
        assert set(table[names.VERDICT]) <= set(names.VERDICTS)
        pd.testing.assert_series_equal(table["margin_ibp"], own["margin_ibp"])
        result, trial = folder.read_result(directory), folder.read_result(place)
        assert result.key == trial.key and result.metrics.keys() >= {names.certified_by("crown"), names.PARAMETERS}
        for name in (names.STANDARD_ERROR, names.BOUND_WIDTH, names.TRAIN_SECONDS, names.BOUND_WIDTH_RELATIVE):
            assert result.metrics[name] == pytest.approx(trial.metrics[name], rel=1e-2)
        timings = pd.read_parquet(directory / certification.TIMINGS)
        assert set(timings["stage"]) == {"clean", "attack", "ibp", "crown-ibp", "crown"}
        assert timings.groupby("stage")["seconds"].sum()["ibp"] == pytest.approx(
            result.metrics[names.seconds_of("ibp")]
        )
        assert sorted(path.name for path in directory.iterdir() if not path.name.startswith(".")) == [
            *(
                certification.CERTIFICATION,
                folder.COUNTEREXAMPLES,
                folder.RESULT,
                certification.TIMINGS,
                folder.VERDICTS,
            )
        ]
    (old,), (first, second) = before.sections, build_leaderboard(sweep).sections
    assert first.heading == old.heading == "digits, eps 1/64, profile full, ibp > crown-ibp, first 60 test images"
    assert second.heading == "digits, eps 1/64, profile full, ibp > crown-ibp > crown, first 60 test images"
    assert [section.rows["seeds"].tolist() for section in (first, second)] == [[2], [2]]
    stages = (sweep / "leaderboard.md").read_text().split(second.heading.replace(">", ">"))[1]
    assert "| clean " in stages and " of 60, " in stages


def test_rows_of_a_certification_are_compared(sweep):
    assert run(sweep) == 0
    lines, _ = (
        compare(build_leaderboard(sweep), baseline="cnn5 ibp")
        if len(build_leaderboard(sweep).rows) > 2
        else (None, None)
    )
    assert lines is None  # one row a section: nothing to compare, and never with the other section's
    with pytest.raises(ValueError, match="nothing to compare"):
        compare(build_leaderboard(sweep))
    for place in finished_trials(sweep):  # as if of another network
        copy = sweep / "trials" / f"copy-of-{place.name}"
        shutil.copytree(place, copy)
        trial = folder.read_trial(place / folder.TRIAL)
        other = folder.make_trial(dataclasses.replace(trial.config, model="cnn7"), trial.fingerprint)
        for path in copy.rglob("*.json"):
            text = path.read_text().replace('"model": "cnn5"', '"model": "cnn7"')
            path.write_text(text.replace(trial.key, other.key))
    lines, notes = compare(build_leaderboard(sweep))
    assert notes == [] and len(set(lines["section"])) == 2
    assert (lines["difference"] == 0).all() and (lines["images"].isin([60, 120])).all()


@pytest.mark.parametrize("where", ["write_shard", "write_result"])
def test_killed_anywhere_it_goes_on_to_the_very_same_verdicts(sweep, whole, monkeypatch, where, capsys):
    place, other = finished_trials(sweep)
    owner, calls = certification if where == "write_shard" else folder, []
    honest = getattr(owner, where)

    def dies(*arguments, **options):
        calls.append(arguments)
        if where == "write_result" or len(calls) == 2:
            raise KeyboardInterrupt
        return honest(*arguments, **options)

    monkeypatch.setattr(owner, where, dies)
    assert run(place) == 130
    assert "the same command goes on from there" in capsys.readouterr().err
    left = certification.missing(place / "certified" / NAME)
    assert left == ([1, 2] if where == "write_shard" else [])
    monkeypatch.setattr(owner, where, honest)
    done = []
    monkeypatch.setattr(certify, "certify_shard", lambda *piece: done.append(piece[1]) or work.certify_shard(*piece))
    if where == "write_shard":
        assert "unfinished: 1 of 3 shards" in build_leaderboard(sweep).failures["problem"].str.cat()
    assert run(place) == 0
    assert done == left
    assert (place / "certified" / NAME / folder.VERDICTS).read_bytes() == (whole / folder.VERDICTS).read_bytes()
    assert run(place) == 0 and done == left  # there is nothing left to do
    assert not (other / "certified").exists()


def begin(place, monkeypatch):
    """A certification that was killed after its first shard."""
    honest, calls = certification.write_shard, []

    def dies(*arguments, **options):
        if calls:
            raise KeyboardInterrupt
        calls.append(honest(*arguments, **options))

    with monkeypatch.context() as patch:
        patch.setattr(certification, "write_shard", dies)
        assert run(place) == 130
    directory = place / "certified" / NAME
    assert certification.missing(directory) == [1, 2]
    return directory


@pytest.mark.parametrize("change", ["weights", "versions", "a shard's verdicts", "a shard of something else"])
def test_shards_of_anything_else_are_done_again(sweep, whole, monkeypatch, change, capsys):
    place, other = finished_trials(sweep)
    directory = begin(place, monkeypatch)
    if change == "weights":
        shutil.copy(other / folder.WEIGHTS, place / folder.WEIGHTS)
    if change == "versions":
        monkeypatch.setattr(work, "describe_environment", lambda device: {"torch": "another", "threads": "1"})
    if change == "a shard's verdicts":
        table = pd.read_parquet(directory / "shards/00000.parquet")
        table.assign(**{names.VERDICT: names.CERTIFIED}).to_parquet(directory / "shards/00000.parquet")
    if change == "a shard of something else":
        path = directory / "shards/00000.json"
        files.write_json(path, json.loads(path.read_text()) | {"digest": "else"})
    done = []
    monkeypatch.setattr(certify, "certify_shard", lambda *piece: done.append(piece[1]) or work.certify_shard(*piece))
    work._load.cache_clear()
    assert run(place) == 0
    assert done == [0, 1, 2]
    told = {"weights": "begun anew: other weights or data", "versions": "begun anew: other versions or device"}
    assert told.get(change, "") in " ".join(capsys.readouterr().out.split())
    fresh = whole
    if change == "weights":
        fresh = directory.rename(directory.with_name("fresh"))
        assert run(place) == 0
    assert (fresh / folder.VERDICTS).read_bytes() == (directory / folder.VERDICTS).read_bytes()


def test_an_image_whose_stage_fails_has_that_for_its_verdict_and_the_others_theirs(sweep, whole, monkeypatch, capsys):
    place, _ = finished_trials(sweep)
    directory = place / "certified" / NAME
    whole = pd.read_parquet(whole / folder.VERDICTS)
    asked = whole.index[whole["margin_crown-ibp"].notna()].tolist()[:2]
    pixels = load("digits").test_images(60).images.double() / 255
    honest, errors = stages.lower_bounds, [torch.OutOfMemoryError("64 GiB"), ValueError("no\nsuch rule")]

    def faulty(program, region, *arguments, **options):
        for index, error in zip(asked, errors, strict=True):
            if any(torch.allclose(centre, pixels[index], atol=1 / 16) for centre in region.center):
                raise error
        return honest(program, region, *arguments, **options)

    monkeypatch.setattr(stages, "lower_bounds", faulty)
    assert run(place) == 0
    table = pd.read_parquet(directory / folder.VERDICTS)
    assert table.loc[asked, names.VERDICT].tolist() == [names.OUT_OF_MEMORY, names.FAILED]
    assert table.loc[asked, names.STAGE].tolist() == ["crown-ibp"] * 2
    assert table.loc[asked, names.REASON].tolist() == ["OutOfMemoryError: 64 GiB", "ValueError: no such rule"]
    assert table.loc[asked, ["margin_crown-ibp", "margin_crown"]].isna().all(axis=None)
    decided = [names.VERDICT, names.STAGE, names.REASON]
    pd.testing.assert_frame_equal(table.drop(index=asked)[decided], whole.drop(index=asked)[decided])
    result, printed = folder.read_result(directory), " ".join(capsys.readouterr().out.split())
    assert result.metrics[names.share_of(names.FAILED)] == pytest.approx(100 / 60)
    assert f"failed in crown-ibp: 1 examples, such as {asked[1]} (ValueError: no such rule)" in printed


def test_branch_and_bound_has_what_is_left_within_its_budget(sweep, monkeypatch):
    place, _ = finished_trials(sweep)
    budgets = []

    def verify(model, region, spec, seconds, branches, certificates):
        budgets.append((seconds, branches))
        lower = spec.new_full(spec.shape[:2], -1.0)
        found = {"status": ["timeout"], "lower": lower, "counterexample": None, "branches": torch.tensor([3])}
        return SimpleNamespace(**found, certificates=[{}])

    monkeypatch.setattr(cerdeq, "verify", verify, raising=False)
    for options in ([], ["--branches", "40"], ["--branches", "40", "--seconds", "1.5"]):
        assert main("certify", [str(place), "--stages", "ibp,bab", "--images", "30", "--workers", "1", *options]) == 0
    assert list(dict.fromkeys(budgets)) == [(60.0, None), (None, 40), (1.5, 40)]
    assert [path.name for path in certification.folders(place)] == [
        *("ibp+bab-1.5s-40branches-30-images", "ibp+bab-40branches-30-images", "ibp+bab-60s-30-images")
    ]
    table = pd.read_parquet(place / "certified/ibp+bab-60s-30-images" / folder.VERDICTS)
    ended = table[names.VERDICT] == names.TIMEOUT
    assert ended.any() and (table.loc[ended, names.BRANCHES] == 3).all()
    assert table.loc[~ended, names.BRANCHES].isna().all() and names.UNKNOWN not in set(table[names.VERDICT])
    headings = [section.heading for section in build_leaderboard(sweep).sections]
    assert len(set(headings)) == 4
    assert "digits, eps 1/64, profile full, ibp > bab (1.5 s or 40 branches), first 30 test images" in headings


def test_an_unsound_bound_stops_everything_loudly(sweep, monkeypatch, capsys):
    def unsound(*_):
        raise SoundnessError("certified and refuted all the same: test examples [3], 1 in all")

    monkeypatch.setattr(certify, "certify_shard", unsound)
    assert run(sweep) == 1
    assert "a bound is wrong, and nothing here can be trusted" in capsys.readouterr().err
    assert not list(sweep.rglob("certified/*/result.json"))


def test_a_shard_that_cannot_be_done_leaves_the_others(sweep, monkeypatch, capsys):
    def dies(directory, number, data_dir):
        if number == 1:
            raise RuntimeError("worker lost")
        return work.certify_shard(directory, number, data_dir)

    place, _ = finished_trials(sweep)
    monkeypatch.setattr(certify, "certify_shard", dies)
    assert run(place) == 1
    assert "failed: RuntimeError: worker lost; what is done is kept" in " ".join(capsys.readouterr().out.split())
    assert certification.missing(place / "certified" / NAME) == [1]


def unfinished(sweep):
    return next(place for place in folder.trial_folders(sweep) if folder.read_result(place) is None)


REFUSED = {
    "a stage there is not": (["--stages", "ibp,milp"], ["stages", "milp", "alpha-crown", "bab"]),
    "stages in another order": (["--stages", "crown,ibp"], ["stages", "in order"]),
    "no time": (["--seconds", "0"], ["--seconds", "above 0"]),
    "endless time": (["--seconds", "inf"], ["--seconds", "finite"]),
    "no branches": (["--branches", "0"], ["--branches", "at least 1"]),
    "no images": (["--images", "0"], ["--images", "at least 1"]),
    "more images than there are": (["--images", "361"], ["360", "361"]),
    "no workers": (["--workers", "0"], ["--workers", "at least 1"]),
    "seconds of nothing": (["--stages", "ibp", "--seconds", "5"], ["--seconds", "found 5.0", "nothing without bab"]),
    "branches of nothing": (["--stages", "ibp", "--branches", "5"], ["--branches", "nothing without bab"]),
    "certificates of nothing": (
        ["--stages", "ibp,crown-ibp", "--certificates"],
        ["--certificates", "without crown or alpha-crown or bab"],
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_is_refused_before_anything_starts(sweep, capsys, what):
    options, told = REFUSED[what]
    assert main("certify", [str(sweep), *options]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and all(part in message for part in told), message
    assert not list(sweep.rglob("certified"))


@pytest.mark.parametrize("what", ["no folder", "unfinished", "stale", "without weights", "other data"])
def test_trials_that_cannot_be_certified_are_refused(sweep, capsys, what):
    place, _ = finished_trials(sweep)
    path, told = place, what
    if what == "no folder":
        path, told = sweep / "nowhere", "nowhere"
    if what == "unfinished":
        path, told = unfinished(sweep), "is not finished"
    if what == "stale":
        trial = json.loads((place / folder.TRIAL).read_text())
        files.write_json(place / folder.TRIAL, trial | {"recipe_version": 1})
        told = "another recipe version"
    if what == "without weights":
        (place / folder.WEIGHTS).unlink()
        told = "has no weights.safetensors"
    if what == "other data":
        other = folder.make_trial(folder.read_trial(place / folder.TRIAL).config, "other")
        files.write_json(place / folder.TRIAL, folder.trial_json(other))
        told = "data: found"
    assert run(path) == 2
    assert told in capsys.readouterr().err
    assert not list(sweep.rglob("certified"))


def test_two_workers_give_the_bytes_of_one(sweep, whole, cluster, monkeypatch):
    """Through Ray, whose workers the tests' own cluster has up already."""
    place, _ = finished_trials(sweep)
    monkeypatch.undo()
    monkeypatch.setattr(work, "_PER_SHARD", 25)
    assert main("certify", [str(place), "--stages", STAGES, "--workers", "2"]) == 0
    together = place / "certified" / NAME
    assert (together / folder.VERDICTS).read_bytes() == (whole / folder.VERDICTS).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(("with_signal", "status"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_two_workers_that_are_stopped_leave_shards_that_one_goes_on_from(sweep, monkeypatch, with_signal, status):
    """In a process of its own, with a Ray of its own."""
    monkeypatch.undo()
    command = [sys.executable, "-m", "harness.certify", str(sweep), "--stages", "ibp,crown-ibp", "--images", "360"]
    quiet = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    stopped = subprocess.Popen([*command, "--workers", "2"], **quiet)
    wait_for(lambda: list(sweep.rglob("shards/*.json")) or stopped.poll() is not None, 200)
    workers = descendants(stopped.pid)
    stopped.send_signal(with_signal)
    _, errors = stopped.communicate(timeout=60)
    assert stopped.returncode == status
    assert with_signal == signal.SIGKILL or "the same command goes on from there" in errors
    assert 1 <= len(list(sweep.rglob("shards/*.json"))) < 4
    wait_for(lambda: not any(map(alive, workers)))
    for place in finished_trials(sweep):
        shutil.copytree(place, place.with_name(f"{place.name}-copy"), ignore=shutil.ignore_patterns("certified"))
    assert subprocess.run([*command, "--workers", "1"], capture_output=True, timeout=250).returncode == 0
    for copy in sweep.glob("trials/*-copy"):
        place = copy.with_name(copy.name.removesuffix("-copy"))
        whole, resumed = (next(path.glob(f"certified/*/{folder.VERDICTS}")) for path in (copy, place))
        assert whole.read_bytes() == resumed.read_bytes()
