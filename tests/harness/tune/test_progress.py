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
from harness.tune import progress as progress_module
from harness.tune.items import LEFT, Item, Queue
from harness.tune.progress import Bars
from harness.tune.run_study import StudyListener

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
    """The items of three networks of three epochs."""
    records = [make_record(tiny_training(seed=seed), "data") for seed in range(3)]
    for record in records:
        folder.begin_network(tmp_path / record.key, record, "full", [tiny_evaluation()])
    return [Item.of(tmp_path / each.key, each.config, [tiny_evaluation()]) for each in records]


def study(console, logged=None, items=()):
    log = None if logged is None else lambda *call: logged.append(call)
    return StudyListener(console, Queue(items), 3, log, False)


def finish(item, *warnings):
    folder.write_trained(item.directory, Result(item.directory.name, {}, {}, {}, []))
    for evaluation in item.asked:
        key = f"{item.directory.name}/{evaluation.key}"
        result = Result(key, ERRORS, {}, {}, list(warnings))
        folder.write_result(folder.evaluation_dir(item.directory, evaluation), result)


def shown(bars):
    """The lines of all bars, as they are now."""
    console = Console(width=150, file=(file := io.StringIO()))
    console.print(bars.bars.get_renderable())
    return [" ".join(re.sub("[━╺╸]", "", line).split()) for line in file.getvalue().splitlines()]


def test_a_study_has_a_bar_for_each_network_that_runs_and_a_line_for_each_that_has_ended(three, terminal):
    first, second, third = three
    with study(terminal) as progress:
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
        finish(second, "odd [/x]")
        progress.on_end(second, None, {})
        progress.on_end(third, "closing [/tag]", {})
        assert [line.split(" ")[0] for line in shown(progress)] == ["2", "cnn5"]
    text = terminal.file.getvalue()
    assert "done cnn5 ibp seed 1: standard error 10.00 %, attack error 20.00 %, certified error 30.00 % (1" in text
    assert "warning cnn5 ibp seed 1: odd [/x]" in text and "failed cnn5 ibp seed 2: closing [/tag]" in text
    assert "running:" not in text


def test_without_a_terminal_a_line_every_half_minute_says_what_runs_and_the_time_left(three, pipe, clock):
    first, second, _ = three
    with study(pipe) as progress:
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
    monkeypatch.setattr(progress_module, "LINE_SECONDS", 0.05)
    with study(pipe) as progress:
        progress.on_start(three[0])
        progress.on_report(three[0], {names.ACTIVITY: "compiles its steps"})
        deadline = time.monotonic() + 10
        while len(lines := pipe.file.getvalue().splitlines()[2:]) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert len(lines) >= 3
    assert set(lines) == {"running: cnn5 ibp seed 0: compiles its steps (0 of 3 networks)"}


def test_what_is_done_before_the_first_item_is_said_again_while_it_lasts(pipe, monkeypatch, capsys):
    """As while Ray starts, or packages are loaded, on a busy machine."""
    monkeypatch.setattr(progress_module, "LINE_SECONDS", 0.05)
    monkeypatch.setattr(terminal_module, "LINE_SECONDS", 0.05)

    def wait_for(lines):
        deadline = time.monotonic() + 10
        while len(lines()) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert len(lines()) >= 3

    with study(pipe) as progress:
        progress.on_text("starts Ray")
        wait_for(lambda: pipe.file.getvalue().splitlines())
    assert set(pipe.file.getvalue().splitlines()[1:]) == {"running: starts Ray (0 of 3 networks)"}
    printed = []
    with announced("opens MLflow"):
        wait_for(lambda: printed.append(capsys.readouterr().out) or "".join(printed).splitlines())
    assert all(re.fullmatch(r"opens MLflow( \(since \d+ s\))?", line) for line in "".join(printed).splitlines())


def test_a_warning_of_training_is_shown_at_the_first_epoch_and_once(three, terminal):
    item, logged = three[0], []
    training_progress.add_lines(item.directory / folder.TRAINING_WARNINGS, ["steps are eager: no compiler"])
    listener = study(terminal, logged)
    listener.on_report(item, {**ROW, names.EPOCH: 1})
    assert "warning cnn5 ibp seed 0: steps are eager: no compiler" in terminal.file.getvalue()
    listener.on_report(item, ROW)
    finish(item, *training_progress.read_lines(item.directory / folder.TRAINING_WARNINGS))
    listener.on_end(item, None, {})
    assert terminal.file.getvalue().count("steps are eager") == 1
    assert logged == [(item.directory, True)] * 2 + [(item.directory, False)]


def test_ranges_have_bars_and_their_images_are_counted_until_their_network_goes_on(three, terminal):
    network, logged = three[0], []
    folder.write_trained(network.directory, Result(network.directory.name, {}, {}, {}, []))
    progress = study(terminal, logged)
    queue = progress.queue
    with progress:
        progress.on_start(network)
        progress.on_end(network, None, {LEFT: [[0, 40], [40, 60]]})
        ranges = [queue.take(), queue.take()]
        assert [(each.images, each.evaluations) for each in ranges] == [
            (range(40), network.evaluations),
            (range(40, 60), network.evaluations),
        ]
        for each in ranges:
            progress.on_start(each)
            progress.on_report(each, {names.ACTIVITY: "evaluates"})
        assert len(shown(progress)) == 3 and progress.summary() == "0 of 3 networks, 60 images left to evaluate"
        assert all("cnn5 ibp seed 0, images" in line for line in shown(progress)[1:])
        queue.end(ranges[0])
        progress.on_end(ranges[0], None, {LEFT: []})
        assert progress.summary() == "0 of 3 networks, 20 images left to evaluate" and not queue.is_finished
        queue.end(ranges[1])
        progress.on_end(ranges[1], None, {LEFT: []})
        again = queue.take()
        assert again == network and queue.take() is None and not queue.is_finished
        finish(network)
        queue.end(again)
        progress.on_end(again, None, {LEFT: []})
        assert progress.summary().startswith("1 of 3 networks") and queue.is_finished
    assert terminal.file.getvalue().count("done cnn5 ibp seed 0: standard error") == 1
    assert logged == [(network.directory, True), (network.directory, False)]


def test_a_range_that_fails_fails_its_evaluation_and_those_after_it_go_on(three, terminal, tiny_evaluation):
    """Once all ranges have ended: the others are not lost."""
    network = three[0]
    others = [tiny_evaluation(attack_steps=steps) for steps in (3, 4)]
    training = folder.read_training(network.directory / folder.TRAINING).config
    network = Item.of(network.directory, training, [*network.asked, *others])
    folder.write_trained(network.directory, Result(network.directory.name, {}, {}, {}, []))
    first, second, _ = paths = [folder.begin_evaluation(network.directory, each) for each in network.asked]
    with study(terminal) as progress:
        queue = progress.queue
        progress.on_end(network, None, {LEFT: [[0, 40], [40, 60]]})
        for error in ("its worker failed 3 times: it died", None):
            queue.end(item := queue.take())
            progress.on_end(item, error, {})
        assert "it died" in folder.read_failure(first).error
        assert progress.done == 0
        rest = queue.take()
        assert (rest.evaluations, rest.images) == (network.evaluations[1:], None) and queue.take() is None
        folder.write_failure(second, "SoundnessError: of a kind", repeats=True)
        queue.end(rest)
        progress.on_end(rest, "SoundnessError: of a kind", {})
        last = queue.take()
        assert last.evaluations == network.evaluations[2:]
        queue.end(last)
        progress.on_end(last, "its worker failed 3 times: it died", {})
        assert progress.done == 1 and queue.is_finished
    assert all(folder.read_failure(path) is not None for path in paths)
    assert folder.read_failure(network.directory) is None
    assert terminal.file.getvalue().count("failed cnn5 ibp seed 0: eps 1/32") == 3


def test_the_time_left_of_a_bar_is_estimated_from_all_parts(monkeypatch):
    now = [0.0]
    with Bars(Console(file=io.StringIO())) as bars:
        monkeypatch.setattr(bars.bars, "get_time", lambda: now[0])
        for done in (1, 2, 4):
            bars.move("all", "parts", done / 10)
            now[0] += 600
    assert shown(bars) == ["parts 40% 0:40:00"]
