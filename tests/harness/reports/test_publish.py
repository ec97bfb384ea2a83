"""`python -m harness.publish`: what is kept of a study, and what is not."""

import dataclasses
import json
import signal
from functools import partial

import pandas as pd
import pytest
from made_studies import add, right

from harness.command_line import INTERRUPTED, main
from harness.figures import catalogue
from harness.reports import publish
from harness.storage import folder
from harness.storage.parquet import read_table


@pytest.fixture
def study(tmp_path, monkeypatch):
    """Two finished trials with all that a trial leaves, and one without a result."""
    monkeypatch.setattr(catalogue, "FIGURES", catalogue.FIGURES[:1])
    sweep = tmp_path / "results/study"
    places = [add(sweep, right(100, seed), seed=seed) for seed in range(3)]
    for place in places:
        for name in (folder.CHECKPOINT, folder.WEIGHTS, folder.COUNTEREXAMPLES):
            (place / name).write_bytes(bytes(1000))
    (places[2] / folder.RESULT).unlink()
    return sweep, places, tmp_path / "kept"


def run(sweep, kept, *options):
    return main("publish", [str(sweep), "--to", str(kept), *options])


def test_what_was_found_is_kept_and_what_proves_it_where_asked_for(study, capsys):
    sweep, places, kept = study
    assert run(sweep, kept, "--weights", "* seed 1") == 0
    assert "2 trials, 1 without a result left out, 1 with their weights" in capsys.readouterr().out
    found = {folder.TRIAL, folder.EPOCHS, folder.VERDICTS}
    proofs = {folder.WEIGHTS, folder.COUNTEREXAMPLES}
    for place, names in ((places[0], found), (places[1], found | proofs)):
        copy = kept / "study/trials" / place.name
        assert {path.name for path in copy.iterdir()} == names | {folder.RESULT}
        assert all((copy / name).read_bytes() == (place / name).read_bytes() for name in names - {folder.VERDICTS})
        kept_verdicts, verdicts = read_table(copy / folder.VERDICTS), read_table(place / folder.VERDICTS)
        assert kept_verdicts["width"].dtype == "float32"
        pd.testing.assert_frame_equal(kept_verdicts.astype(verdicts.dtypes), verdicts, rtol=1e-7, atol=0)
    assert not (kept / "study/trials" / places[2].name).exists()
    assert json.loads((kept / "study/leaderboard.json").read_text())[0]["seeds"] == 2
    assert (kept / "study/report.html").is_file()


def test_a_result_is_kept_without_the_path_of_its_data(study):
    sweep, places, kept = study
    result = folder.read_result(places[0])
    where = {"name": "cifar10", "directory": "/home/me/data"}
    folder.write_result(places[0], dataclasses.replace(result, data=where))
    assert run(sweep, kept) == 0
    copy = folder.read_result(kept / "study/trials" / places[0].name)
    assert copy == dataclasses.replace(result, data=where | {"directory": None})


def test_the_page_has_the_command_that_proves_what_can_be_proved(study):
    sweep, places, kept = study
    for options, only in ([], None), (["--weights", "* seed 1"], f" --only {places[1].name}"), (["--weights", "*"], ""):
        assert run(sweep, kept, *options) == 0
        page = (kept / "study/report.html").read_text()
        command = f"<code>uv run python -m harness.recheck kept/study{only}</code>"
        assert command in page if only is not None else "harness.recheck" not in page


def test_a_study_is_replaced_as_a_whole(study):
    sweep, _, kept = study
    (kept / "study").mkdir(parents=True)
    (kept / "study/old").write_text("")
    assert run(sweep, kept) == 0
    assert not (kept / "study/old").exists() and [path.name for path in kept.iterdir()] == ["study"]


def test_what_is_too_large_for_git_replaces_nothing(study, monkeypatch, capsys):
    sweep, _, kept = study
    monkeypatch.setattr(publish, "LIMIT", 1000)
    (kept / "study").mkdir(parents=True)
    (kept / "study/old").write_text("")
    assert run(sweep, kept) == 2
    assert "at most 25 MiB" in capsys.readouterr().err
    assert [str(path.relative_to(kept)) for path in kept.rglob("*")] == ["study", "study/old"]


@pytest.mark.parametrize("before", [True, False])
def test_what_was_kept_stays_where_the_page_cannot_be_written(study, monkeypatch, before):
    sweep, _, kept = study
    if before:
        (kept / "study").mkdir(parents=True)
        (kept / "study/old").write_text("")

    def full(*_):
        raise OSError(28, "no space left on device")

    monkeypatch.setattr(publish.report, "write", full)
    assert run(sweep, kept) == 1
    assert [str(path.relative_to(kept)) for path in kept.rglob("*")] == (["study", "study/old"] if before else [])


def ctrl_c():
    raise KeyboardInterrupt  # not by a signal, which processes in the background ignore


@pytest.mark.parametrize("end", [partial(signal.raise_signal, signal.SIGTERM), ctrl_c], ids=["SIGTERM", "Ctrl-C"])
def test_what_was_kept_stays_where_a_signal_ends_it(study, monkeypatch, end):
    sweep, _, kept = study
    (kept / "study").mkdir(parents=True)
    (kept / "study/old").write_text("")
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(publish.report, "write", lambda *_: end())
    assert run(sweep, kept) == INTERRUPTED
    assert [str(path.relative_to(kept)) for path in kept.rglob("*")] == ["study", "study/old"]
    assert signal.getsignal(signal.SIGTERM) == before


def test_what_a_killed_command_had_put_aside_is_left_and_named(study, capsys):
    sweep, _, kept = study
    for name, file in (("study", "half"), (".study.before", "old")):
        (kept / name).mkdir(parents=True)
        (kept / name / file).write_text("")
    assert run(sweep, kept) == 2
    assert f"{kept / '.study.before'} was put aside" in capsys.readouterr().err
    assert {path.name for path in kept.rglob("*")} == {"study", "half", ".study.before", "old"}


def test_a_link_is_published_to_where_it_leads(study):
    sweep, _, kept = study
    (kept / "elsewhere").mkdir(parents=True)
    (kept / "study").symlink_to("elsewhere")
    assert run(sweep, kept) == run(sweep, kept) == 0
    assert (kept / "study").is_symlink() and (kept / "elsewhere/report.html").is_file()


def test_a_study_is_not_published_onto_itself(study, capsys):
    sweep, _, kept = study
    assert run(sweep, kept, "--weights", "*") == 0
    assert run(kept / "study", kept) == 2
    assert "another place" in capsys.readouterr().err
    assert len(list(kept.rglob(folder.WEIGHTS))) == 2


@pytest.mark.parametrize(("options", "told"), [(["--weights", "vgg*"], "cnn5 ibp seed 0"), ([], "holds no finished")])
def test_what_is_not_there_is_bad_input(study, options, told, capsys):
    sweep, places, kept = study
    if not options:
        for place in places[:2]:
            (place / folder.RESULT).unlink()
    assert run(sweep, kept, *options) == 2
    assert told in capsys.readouterr().err
    assert not kept.exists()


def test_weights_that_are_not_there_are_not_said_to_be_kept(study, capsys):
    sweep, places, kept = study
    (places[1] / folder.WEIGHTS).unlink()
    assert run(sweep, kept, "--weights", "cnn5*") == 2
    assert "have not: cnn5 ibp seed 1" in capsys.readouterr().err
    assert not kept.exists()
