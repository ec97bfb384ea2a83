"""What a person sees: bars of networks and of ranges of images; lines where there is no terminal."""

import io
import re
import time

import pytest
from rich.console import Console

from harness.common import names
from harness.common import terminal as terminal_module
from harness.common.terminal import announced
from harness.storage import folder, training_progress
from harness.storage.records import Result, make_record
from harness.work import display
from harness.work.display import Bars, StudyProgress
from harness.work.jobs import make_jobs
from harness.work.queue import Queue, end_job

ROW = {
    names.EPOCH: 2, names.TRAIN_EPS: 0.01, names.TRAIN_LOSS: None,
    names.TRAIN_EPOCH_SECONDS: 60.0, names.TRAIN_EXAMPLES_PER_SECOND: 1234.5,
}  # fmt: skip
ERRORS = {names.STANDARD_ERROR: 10.0, names.ATTACK_ERROR: 20.0, names.CERTIFIED_ERROR: 30.0}


@pytest.fixture
def terminal():
    return Console(file=io.StringIO(), width=150, force_terminal=True, color_system=None)


@pytest.fixture
def pipe():
    return Console(file=io.StringIO(), width=500)


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    return now


@pytest.fixture
def three(tmp_path, tiny_training, tiny_evaluation):
    """The jobs of three networks of three epochs."""
    records = [make_record(tiny_training(seed=seed), "data") for seed in range(3)]
    for record in records:
        folder.begin_network(tmp_path / record.key, record, "full", [tiny_evaluation()])
    return [
        make_jobs(tmp_path / each.key, each, [(tiny_evaluation(), 60)], "cpu", each.config.label)[0] for each in records
    ]


def study(console, jobs=(), logged=None):
    log = None if logged is None else lambda *call: logged.append(call)
    queue = Queue(jobs)
    progress = StudyProgress(console, queue, {job.network_dir for job in jobs}, log)
    for _ in jobs:
        queue.take()
    return progress


def finish(progress, job, *warnings):
    folder.write_trained(job.network_dir, Result(job.network_dir.name, {}, {}, {}, []))
    key = f"{job.network_dir.name}/{job.evaluation.key}"
    folder.write_result(job.evaluation_dir, Result(key, ERRORS, {}, {}, list(warnings)))
    end_job(progress.queue, progress, job, None)


def shown(bars):
    """The lines of all bars, as they are now."""
    console = Console(width=150, file=(file := io.StringIO()))
    console.print(bars.bars.get_renderable())
    return [" ".join(re.sub("[━╺╸]", "", line).split()) for line in file.getvalue().splitlines()]


def test_a_study_has_a_bar_for_each_network_that_runs_and_a_line_for_each_that_has_ended(three, terminal):
    first, second, third = three
    with study(terminal, three) as progress:
        progress.on_start(first)
        assert shown(progress) == ["0 of 3 networks 0% -:--:--", "cnn5 ibp seed 0 0% -:--:-- starts"]
        progress.on_report(first, {names.ACTIVITY: "compiles its steps"})
        assert shown(progress)[1].endswith("compiles its steps")
        progress.on_report(first, ROW)
        progress.on_report(second, {**ROW, names.EPOCH: 3})
        progress.on_report(second, {names.EVALUATED: 20, names.IMAGES: 60, names.EVALUATION_EPS: "1/8"})
        all_trials, running, evaluated = shown(progress)
        assert all_trials.startswith("0 of 3 networks 56%")
        assert running.endswith("epoch 2 of 3, eps 0.01, 1,234 images/s")
        assert evaluated.startswith("cnn5 ibp seed 1 100%") and evaluated.endswith(
            "evaluates image 20 of 60 at eps 1/8"
        )
        finish(progress, second, "odd [/x]")
        end_job(progress.queue, progress, third, "closing [/tag]")
        assert [line.split(" ")[0] for line in shown(progress)] == ["2", "cnn5"]
    text = terminal.file.getvalue()
    assert "done cnn5 ibp seed 1: standard error 10.00 %, attack error 20.00 %, certified error 30.00 % (1" in text
    assert "warning cnn5 ibp seed 1: odd [/x]" in text and "failed cnn5 ibp seed 2: closing [/tag]" in text
    assert "running:" not in text


def test_without_a_terminal_a_line_every_half_minute_says_what_runs_and_the_time_left(three, pipe, clock):
    first, second, _ = three
    with study(pipe, three) as progress:
        progress.bars.get_time = lambda: clock[0]
        progress.on_start(first)
        progress.on_report(first, {**ROW, names.EPOCH: 0})
        for epoch in (1, 2):
            progress.on_report(first, {**ROW, names.EPOCH: epoch})
            clock[0] += 10
        progress.on_start(second)
        for seconds in (29, 31, 40, 62):
            clock[0] = seconds
            progress.print_running()
    *begun, at_31, at_62 = pipe.file.getvalue().splitlines()
    assert begun == ["cnn5 ibp seed 0: starts", "cnn5 ibp seed 0: trains its first epoch"]
    expected = "cnn5 ibp seed 0: epoch 2 of 3, eps 0.01, 1,234 images/s; cnn5 ibp seed 1: starts"
    assert at_31 == at_62 == f"running: {expected} (0 of 3 networks, about 1.2 min left)", "seven epochs of 10 seconds"
    progress.on_report(first, {names.EVALUATED: 1, names.IMAGES: 100, names.EVALUATION_EPS: "1/8"})
    assert progress.summary() == "0 of 3 networks", "an evaluation may take seconds or hours"


def test_what_takes_long_is_said_again_and_again_while_it_lasts(three, pipe, monkeypatch):
    """In this process, where nobody reports meanwhile: as while the first steps are compiled."""
    monkeypatch.setattr(display, "LINE_SECONDS", 0.05)
    with study(pipe, three) as progress:
        progress.on_start(three[0])
        progress.on_report(three[0], {names.ACTIVITY: "compiles its steps"})
        deadline = time.monotonic() + 10
        while len(lines := pipe.file.getvalue().splitlines()[2:]) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert len(lines) >= 3
    assert set(lines) == {"running: cnn5 ibp seed 0: compiles its steps (0 of 3 networks)"}


def test_what_is_done_before_the_first_item_is_said_again_while_it_lasts(pipe, monkeypatch, capsys):
    """As while Ray starts, or packages are loaded, on a busy machine."""
    monkeypatch.setattr(display, "LINE_SECONDS", 0.05)
    monkeypatch.setattr(terminal_module, "LINE_SECONDS", 0.05)

    def wait_for(lines):
        deadline = time.monotonic() + 10
        while len(lines()) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert len(lines()) >= 3

    with study(pipe) as progress:
        progress.on_text("starts Ray")
        wait_for(lambda: pipe.file.getvalue().splitlines())
    assert set(pipe.file.getvalue().splitlines()[1:]) == {"running: starts Ray (0 of 0 networks)"}
    printed = []
    with announced("opens MLflow"):
        wait_for(lambda: printed.append(capsys.readouterr().out) or "".join(printed).splitlines())
    assert all(re.fullmatch(r"opens MLflow( \(since \d+ s\))?", line) for line in "".join(printed).splitlines())


def test_a_warning_of_training_is_shown_at_the_first_epoch_and_once(three, terminal):
    job, logged = three[0], []
    training_progress.add_lines(job.network_dir / folder.TRAINING_WARNINGS, ["steps are eager: no compiler"])
    progress = study(terminal, three, logged)
    progress.on_report(job, {**ROW, names.EPOCH: 1})
    assert "warning cnn5 ibp seed 0: steps are eager: no compiler" in terminal.file.getvalue()
    progress.on_report(job, ROW)
    finish(progress, job, *training_progress.read_lines(job.network_dir / folder.TRAINING_WARNINGS))
    assert terminal.file.getvalue().count("steps are eager") == 1
    assert logged == [(job.network_dir, True)] * 2 + [(job.network_dir, False)]


@pytest.fixture
def shared(three, tiny_evaluation):
    """The jobs of a network with three evaluations, of which the first two have six ranges, and the last one."""
    evaluations = [tiny_evaluation(eps=eps, batch_size=size) for eps, size in (("1/8", 10), ("1/16", 10), ("1/32", 60))]
    counted = [(each, 60) for each in evaluations]
    return make_jobs(three[0].network_dir, three[0].record, counted, "cpu", three[0].record.config.label)


def test_ranges_have_bars_and_their_images_are_counted_until_their_network_goes_on(shared, terminal):
    logged, queue = [], Queue(shared)
    progress = StudyProgress(terminal, queue, {shared[0].network_dir}, lambda *call: logged.append(call))
    with progress:
        train = queue.take()
        assert queue.take() is None and not queue.is_finished, "its network is not trained"
        end_job(queue, progress, train, None)
        ranges = [queue.take() for _ in range(6)]
        assert [job.part.images for job in ranges] == [range(at, at + 10) for at in range(0, 60, 10)]
        assert queue.take() is None
        for job in ranges[:2]:
            progress.on_start(job)
        assert len(shown(progress)) == 3 and progress.summary() == "0 of 1 networks, 60 images left to evaluate"
        assert all("cnn5 ibp seed 0, images" in line for line in shown(progress)[1:])
        for job in ranges[:-1]:
            end_job(queue, progress, job, None)
        assert progress.summary() == "0 of 1 networks, 10 images left to evaluate" and queue.take() is None
        end_job(queue, progress, ranges[-1], None)
        finish(progress, join := queue.take())
        assert join.ends_evaluation and join.part is None
    assert terminal.file.getvalue().count("done cnn5 ibp seed 0: ") == 1
    assert logged[-1] == (join.network_dir, False)


def test_a_range_that_fails_fails_its_evaluation_and_those_after_it_go_on(shared, terminal):
    queue = Queue(shared)
    progress = StudyProgress(terminal, queue, {shared[0].network_dir}, None)
    with progress:
        train = queue.take()
        folder.write_trained(train.network_dir, Result(train.network_dir.name, {}, {}, {}, []))
        (train.network_dir / folder.WEIGHTS).touch()
        for evaluation in {job.evaluation.key: job.evaluation for job in shared[1:]}.values():
            folder.begin_evaluation(train.network_dir, evaluation)
        end_job(queue, progress, train, None)
        first, second = queue.take(), queue.take()
        end_job(queue, progress, first, "its worker failed 3 times: it died")
        assert "it died" in folder.read_failure(first.evaluation_dir).error
        assert folder.read_failure(train.network_dir) is None
        end_job(queue, progress, second, None)
        further = queue.take()
        assert further.evaluation != first.evaluation and further.part.images == range(10)
        folder.write_failure(further.evaluation_dir, "SoundnessError: of a kind", repeats=True)
        end_job(queue, progress, further, "SoundnessError: of a kind")
        last = queue.take()
        assert last.evaluation == shared[-1].evaluation
        end_job(queue, progress, last, "its worker failed 3 times: it died")
        assert queue.take() is None and queue.is_finished and progress.done == 1
    assert terminal.file.getvalue().count("failed cnn5 ibp seed 0: eps 1/") == 3


def test_a_failed_training_ends_its_network(shared, terminal):
    queue = Queue(shared)
    progress = StudyProgress(terminal, queue, {shared[0].network_dir}, None)
    with progress:
        end_job(queue, progress, job := queue.take(), "NonFiniteLossError: of a kind")
        assert queue.take() is None and queue.is_finished and progress.done == 1
    assert folder.read_failure(job.network_dir).error == "NonFiniteLossError: of a kind"
    assert terminal.file.getvalue().count("failed cnn5 ibp seed 0: NonFiniteLossError") == 1


def test_the_time_left_of_a_bar_is_estimated_from_all_parts(monkeypatch):
    now = [0.0]
    with Bars(Console(file=io.StringIO())) as bars:
        monkeypatch.setattr(bars.bars, "get_time", lambda: now[0])
        for done in (1, 2, 4):
            bars.move("all", "parts", done / 10)
            now[0] += 600
    assert shown(bars) == ["parts 40% 0:40:00"]
