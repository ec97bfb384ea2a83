"""A teacher is trained once, before its students, and has no row of its own."""

import os
import re

import pandas as pd
import torch
from small_sweep import load_sweep, write
from study import TINY

from harness.command_line import main
from harness.data import load
from harness.storage import folder
from harness.storage.lock import lock_directory
from harness.training import NonFiniteLossError
from harness.training.train import train
from harness.work import here
from harness.work.queue import Queue
from harness.work.search import Search

TEACHER = {"model": "cnn5", "train": {"epochs": 1}}
STUDENTS = [
    {"model": "cnn5", "method": method, "method_options": {"attack_steps": 1, "teacher": TEACHER}}
    for method in ("cc-dist", "ad-cert")
]
SWEEP = TINY | {"trials": STUDENTS, "evaluation": {**TINY["evaluation"], "stages": ["ibp"]}}
SEARCH = {"spaces": {"method_options.alpha": {"uniform": [0, 1]}}, "trials": 2, "validation_images": 64}
SEARCHED = SWEEP | {
    "trials": STUDENTS[:1],
    "search": SEARCH | {"objectives": ["certified_error", "standard_error"]},
    "train_images": None,
    "train": SWEEP["train"] | {"epochs": 1, "ramp_epochs": 0},
}


def run(tmp_path, content, *options):
    return main("run", [str(write(tmp_path, content)), "--here", "--results-dir", str(tmp_path / "out"), *options])


def teachers_of(sweep_dir):
    """The folders of networks that nothing evaluates."""
    networks = {path.parent for path in sweep_dir.glob(f"{folder.NETWORKS}/*/{folder.TRAINING}")}
    return networks - set(folder.network_folders(sweep_dir))


def test_a_teacher_is_trained_once_for_all_students_and_has_no_row(tmp_path, capsys):
    assert run(tmp_path, SWEEP) == 0
    shown, sweep_dir = capsys.readouterr().out, tmp_path / "out/tiny"
    assert shown.count("done teacher cnn5 pgd train.epochs=1 seed 0: trained") == 1
    (teacher,) = teachers_of(sweep_dir)
    assert (teacher / folder.WEIGHTS).exists() and not (teacher / folder.EVALUATIONS).exists()
    assert f"teachers, trained first unless they are: cnn5 pgd train.epochs=1 seed 0 ({teacher.name})\n" in shown
    assert main("tables", [str(sweep_dir), "--status"]) == 0
    assert re.search(rf"teacher cnn5 pgd train.epochs=1 seed 0 +{teacher.name} +trained", capsys.readouterr().out)
    assert "cnn5 ad-cert attack_steps=1 teacher=(cnn5 pgd train.epochs=1)" in (sweep_dir / "leaderboard.md").read_text()
    assert set(pd.read_csv(sweep_dir / "leaderboard.csv")["method"].dropna()) == {"cc-dist", "ad-cert"}
    content = SWEEP | {"trials": [*STUDENTS, {"model": "cnn5", "method": "pgd", "train": {"epochs": 1}}]}
    assert main("recheck", [str(sweep_dir)]) == 0, "a teacher has no evaluation that could be confirmed"
    written = os.stat(teacher / folder.WEIGHTS).st_mtime_ns
    assert run(tmp_path, content) == 0, "a teacher that the sweep lists now"
    assert os.stat(teacher / folder.WEIGHTS).st_mtime_ns == written and not teachers_of(sweep_dir)
    assert "teacher cnn5" not in capsys.readouterr().out.partition("teachers, trained first")[2].partition("\n")[2]


def test_a_kill_after_the_teacher_does_not_train_it_again(tmp_path, monkeypatch, capsys):
    calls = []

    def killed(record, *rest):
        calls.append(record.config.method)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return train(record, *rest)

    monkeypatch.setattr("harness.work.jobs.train", killed)
    run(tmp_path, SWEEP)
    assert run(tmp_path, SWEEP) == 0
    assert calls == ["pgd", "cc-dist", "cc-dist", "ad-cert"]


def test_a_student_says_that_its_teacher_has_failed(tmp_path, monkeypatch, capsys):
    def failing(record, *rest):
        if record.config.method == "pgd":
            raise OSError("the teacher's disk is full")
        return train(record, *rest)

    monkeypatch.setattr("harness.work.jobs.train", failing)
    assert run(tmp_path, SWEEP) == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert "failed teacher cnn5 pgd train.epochs=1 seed 0: OSError: the teacher's disk is full" in shown
    message = 'teacher: found "cnn5 pgd train.epochs=1 seed 0, untrained: OSError: the teacher\'s disk is full"'
    assert shown.count(message) >= 2
    monkeypatch.undo()
    assert run(tmp_path, SWEEP) == 0


def test_candidates_of_a_search_share_their_teacher_which_sees_no_held_out_image(tmp_path, capsys):
    assert run(tmp_path, SEARCHED) == 0
    (search_dir,) = (tmp_path / "out/tiny/search").iterdir()
    (teacher,) = teachers_of(search_dir)
    assert folder.read_training(teacher / folder.TRAINING).config.validation_images == 64
    assert capsys.readouterr().out.count("done teacher") == 2, "one of candidates, one of winners"


def test_a_diverged_teacher_ends_a_search_with_fail_fast_and_is_retried_when_asked(tmp_path, monkeypatch):
    calls = []

    def failing(record, *rest):
        calls.append(record.config.method)
        if record.config.method == "pgd":
            raise NonFiniteLossError(1, 1, {})
        return train(record, *rest)

    monkeypatch.setattr("harness.work.jobs.train", failing)
    assert run(tmp_path, SEARCHED, "--fail-fast") == 1 and calls == ["pgd"]
    calls.clear()
    assert run(tmp_path, SEARCHED) == 1 and "pgd" not in calls
    calls.clear()
    assert run(tmp_path, SEARCHED, "--retry-failed") == 1
    assert calls.count("pgd") == 1 and len(calls) > 1, "once, not before each candidate"
    monkeypatch.undo()
    assert run(tmp_path, SEARCHED, "--retry-failed") == 0


def test_a_teacher_that_fails_by_chance_is_tried_once_in_a_search(tmp_path, monkeypatch):
    calls = []

    def failing(record, *rest):
        calls.append(record.config.method)
        if record.config.method == "pgd":
            raise MemoryError
        return train(record, *rest)

    monkeypatch.setattr("harness.work.jobs.train", failing)
    assert run(tmp_path, SEARCHED) == 1
    assert calls == ["pgd", "cc-dist", "cc-dist"]


def searched(tmp_path, content):
    return Search(load_sweep(write(tmp_path, content), None, True), load("digits"), tmp_path / "tiny", "cpu")


def test_a_candidate_that_is_also_a_teacher_waits_for_it_and_is_tried_though_it_failed_as_that(tmp_path):
    spaces = {"train.learning_rate": {"log_uniform": [1e-4, 1e-2]}}
    content = SEARCHED | {
        "trials": [{"model": "cnn5", "method": "pgd"}],
        "search": SEARCHED["search"] | {"spaces": spaces},
    }
    search = searched(tmp_path, content)
    with search.opened(retry_failed=False):
        (first,) = search.propose()
        search.begun = [first.network_dir]
        folder.write_failure(first.network_dir, "it failed by chance")
        (again,) = search.propose()
    assert again.network_dir == first.network_dir and again.after == (first,) and not again.has_failed


def test_candidates_in_this_process_have_the_threads_of_the_sweep(tmp_path, monkeypatch):
    threads = []

    def counted(*rest):
        threads.append(torch.get_num_threads())
        return train(*rest)

    monkeypatch.setattr("harness.work.jobs.train", counted)
    torch.set_num_threads(2)
    assert run(tmp_path, SEARCHED) == 0
    assert set(threads) == {1} and len(threads) >= 5, "a teacher and two candidates, a teacher and a winner"


def test_other_rows_of_a_search_go_on_while_a_teacher_trains(tmp_path):
    rows = [SEARCHED["trials"][0], {"model": "cnn5", "method": "cc-ibp"}]
    search = searched(tmp_path, SEARCHED | {"trials": rows})
    with search.opened(retry_failed=False):
        queue = Queue([], search.propose)
        taken = [queue.take() for _ in range(4)]
        assert [job and job.label.partition(" of ")[0] for job in taken] == [
            "teacher cnn5 pgd seed 0", "candidate 0", "candidate 1", None,
        ]  # fmt: skip
        assert not queue.is_finished
        queue.end(taken[0], None)
        assert queue.take().record.config.method == "cc-dist"


def test_a_teacher_with_too_large_a_batch_is_refused_before_anything_starts(tmp_path, capsys):
    teacher = {"model": "cnn5", "train": {"batch_size": 1430}}
    content = SEARCHED | {"trials": [STUDENTS[0] | {"method_options": {"teacher": teacher}}]}
    for each in (content, content | {"search": None, "train_images": 1429}):
        assert run(tmp_path, {key: value for key, value in each.items() if value is not None}) == 2
        assert "method_options.teacher.train.batch_size: found 1430, allowed: at most the 1" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_teacher_that_another_run_trains_is_waited_for(tmp_path, monkeypatch):
    """As jobs of an array do, which hold no lock of the sweep."""
    said, holder = [], lock_directory(tmp_path)
    monkeypatch.setattr(here, "_WAIT_SECONDS", 0.0)
    holder.__enter__()

    def report(row):
        said.append(row)
        holder.__exit__(None, None, None)

    with here._hold_folder(tmp_path, report):
        assert len(said) == 1
