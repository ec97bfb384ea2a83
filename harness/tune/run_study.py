"""Train and evaluate networks: under Ray or here, shown in the terminal, logged to MLflow, with tables at the end."""

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console

from harness.common import names
from harness.common.errors import InputError
from harness.common.terminal import announced, percent, with_plural
from harness.config.file import CHANGED
from harness.leaderboard.files import print_leaderboard, write_leaderboard
from harness.leaderboard.table import Leaderboard
from harness.machine.device import best_device
from harness.machine.environment import device_name, source_digest
from harness.settings import Evaluation
from harness.storage import folder, training_progress
from harness.storage.files import remove_unfinished
from harness.storage.ranges import remove_ranges
from harness.storage.state import EvaluationState, State, read_state
from harness.storage.sweep_file import SWEEP, write_sweep_file
from harness.tune.items import LEFT, Item, Listener, Queue, Worker
from harness.tune.machines import RayOptions
from harness.tune.plan import Plan, adopt_trained, remove_not_begun, to_run, with_teachers
from harness.tune.progress import Progress
from harness.tune.run_items import FailedFast, run_items

if TYPE_CHECKING:
    from harness.tracking.tracker import Tracker

_ERRORS = (names.STANDARD_ERROR, names.ATTACK_ERROR, names.CERTIFIED_ERROR)
Log = Callable[[Path, bool], None]
"""Takes the folder of a network that has something new, and whether it is worked on."""


@dataclass(frozen=True)
class RunOptions:
    """How networks of a study or of a search are run.

    ray: None for one after the other in this process. threads: of each there.
    data_dir: None for the default one; absolute under Ray, whose workers have another working directory.
    tracking_uri: of the MLflow store; None for the default one.
    fail_fast: stop after the first failure. retry_failed: also run what would fail again.
    logs: whether a study is logged to MLflow, and its file written: not if another run may do so.
    """

    ray: RayOptions | None
    data_dir: str | None
    threads: int = 1
    tracking_uri: str | None = None
    fail_fast: bool = False
    retry_failed: bool = False
    logs: bool = False

    def prepare_process(self, listener: Listener) -> None:
        """Set the threads of this process, and tell its device, if it does the items itself."""
        if self.ray is None:
            torch.set_num_threads(self.threads)
            listener.on_text(f"device: {device_name(best_device())}")


@dataclass(frozen=True)
class Outcome:
    """What came of a study. is_complete: all evaluations have usable results, and MLflow has them."""

    leaderboard: Leaderboard
    is_complete: bool


def run_study(
    plan: Plan, states: dict[Path, EvaluationState], options: RunOptions, console: Console
) -> Outcome:  # fmt: skip
    """Run what is left of a study, log it and write the tables.

    states: of the plan's evaluations. Under Ray the caller has locked the sweep's directory.

    Raises:
        InputError: a wrong MLflow store, or Ray cannot start.
        Stopped, KeyboardInterrupt: a signal came.
        ConnectionError: Ray has died.
    """
    mlflow = open_mlflow(plan.sweep_dir.name, options, console)
    if options.ray is not None:  # without it other jobs of an array may have begun
        for directory in (plan.sweep_dir, plan.sweep_dir / folder.FIGURES):
            remove_unfinished(directory)
        remove_not_begun(plan.sweep_dir, plan.asked)
    if options.logs:
        write_sweep_file(plan.study.file, plan.sweep_dir, plan.all_keys)
    adopted = adopt_trained(plan)
    for source, count in adopted.items():
        console.print(f"{with_plural(count, 'network')} trained already in {source}: copied from there")
    for network_dir, record in plan.records.items():
        folder.begin_network(network_dir, record, plan.study.profile, plan.study.evaluations)
        if (checkpoint := record.config.checkpoint) is not None:
            path = plan.study.checkpoints[checkpoint.sha256]
            folder.copy_network_file(checkpoint, path, network_dir / folder.NETWORK_FILE)
    states = plan.select({}) if adopted else states
    wanted = to_run(states, options.retry_failed)
    for path, state in states.items():
        if state.state is not State.FINISHED and path not in wanted:
            failed = f"failed {plan.record_of(path).config.label}: {state.description}"
            console.print(f"{failed}; it would fail the same way again. To retry anyway: --retry-failed")
    asked: dict[Path, list[Evaluation]] = {}
    for path in wanted:
        asked.setdefault(folder.network_of(path), []).append(plan.asked[path])
    items = [Item.of(path, plan.records[path].config, each) for path, each in asked.items()]
    try:
        items = with_teachers(items, plan.study.checkpoints, options.retry_failed)
        run_networks(items, options, console, plan.sweep_dir, mlflow.log if mlflow else None)
    except InputError:
        if options.ray is not None:  # which cannot start; without it other jobs of an array may have begun
            remove_not_begun(plan.sweep_dir, [])
            if not (plan.sweep_dir / folder.NETWORKS).exists():
                (plan.sweep_dir / SWEEP).unlink(missing_ok=True)
        raise
    leaderboard = write_leaderboard(plan.sweep_dir)
    print_leaderboard(leaderboard, console)
    own = {record.key for record in plan.records.values()}
    candidates = [] if CHANGED in plan.study.profile else plan.all_keys
    is_logged = mlflow is None or mlflow.finish(plan.sweep_dir, own, candidates, only_own=options.ray is None)
    problems = plan.unusable(leaderboard.table)
    for path, problem in problems.items():
        advice = "put the file back, or remove that folder to do it again"
        console.print(f"cannot be used: {plan.record_of(path).config.label} ({path}): {problem}; {advice}")
    finished = leaderboard.table["evaluation_dir"][leaderboard.table["state"] == State.FINISHED]
    is_finished = not problems and plan.asked.keys() <= set(finished)
    return Outcome(leaderboard, is_logged and is_finished)


def open_mlflow(sweep: str, options: RunOptions, console: Console) -> "Tracker | None":
    """Return the MLflow experiment of a sweep; None where nothing is logged or MLflow is not installed.

    Raises InputError for a wrong store; a run in this process goes on without one that no option names.
    """
    if not options.logs:
        return None
    with announced("opens MLflow"):
        try:
            from harness.tracking.tracker import Tracker
        except ModuleNotFoundError as error:
            console.print(f"nothing is logged to MLflow: {error}")
            return None
        try:
            return Tracker.open(sweep, options.tracking_uri, console)
        except InputError as error:
            if options.ray is not None or options.tracking_uri is not None:
                raise
            console.print(f"nothing is logged to MLflow: {error}")  # a compute node may not reach it
            return None


def run_networks(
    items: list[Item], options: RunOptions, console: Console, directory: Path | None, log: Log | None = None
) -> dict[Path, EvaluationState]:  # fmt: skip
    """Do items and the ranges that they leave; return the states of their evaluations, by their folders.

    directory: where Ray's own state stays. Raises as `run_items` does.
    """
    if items:
        for item in items:
            _remove_failures(item)
        work = Worker(options.data_dir, source_digest(), shares=options.ray is not None)
        queue = Queue(items)
        with StudyListener(console, queue, len(items), log, options.fail_fast) as listener:
            options.prepare_process(listener)
            try:
                run_items(queue, work, listener, options.ray, directory)
            finally:
                for network_dir in listener.started:  # MLflow then says that nobody works on them
                    listener.log(network_dir, False)
    return {path: read_state(path) for item in items for path in evaluation_dirs(item)}


def evaluation_dirs(item: Item) -> list[Path]:
    """Return the folders of an item's evaluations."""
    return [folder.evaluation_dir(item.directory, evaluation) for evaluation in item.asked]


def _remove_failures(item: Item) -> None:
    for directory in (item.directory, *evaluation_dirs(item)):
        (directory / folder.FAILURE).unlink(missing_ok=True)


@dataclass
class _Shared:
    """An evaluation whose ranges of images several workers do.

    network: the item of its network, which goes on with this evaluation. left: ranges that are not evaluated yet.
    error: the first of those that failed.
    """

    network: Item
    left: set[Item]
    error: str | None = None


class StudyListener(Progress):
    """Shows and logs what items report and how they end, and queues the ranges that networks leave."""

    def __init__(self, console: Console, queue: Queue, total: int, log: Log | None, fail_fast: bool):
        self.images_left = 0  # of evaluations that workers share
        super().__init__(console, "networks", total)
        self.shared = dict[Path, _Shared]()  # by the network's folder
        self.queue, self.log, self.fail_fast = queue, log or (lambda *_: None), fail_fast
        self.warned = set[tuple[Path, str]]()
        self.started = dict[Path, None]()  # folders of networks

    def on_start(self, item: Item) -> None:
        """Show that an item begins."""
        super().on_start(item)
        if item.evaluations:
            self.started[item.directory] = None

    def on_report(self, item: Item, row: dict[str, Any]) -> None:
        """Show what an item does, and log the row of an epoch, except a teacher's."""
        super().on_report(item, row)
        if names.EPOCH in row:
            warnings = training_progress.read_lines(item.directory / folder.TRAINING_WARNINGS)
            self._warn(item, warnings)
        if item.evaluations and (names.EPOCH in row or (names.ACTIVITY in row and item.images is None)):
            self.log(item.directory, True)

    def on_end(self, item: Item, error: str | None, result: dict[str, Any]) -> None:
        """Show and log what came of an item, and queue what follows."""
        if item.images is None:
            self._end_network(item, error, [range(*part) for part in result.get(LEFT, [])])
            return
        shared = self.shared[item.directory]
        shared.left.discard(item)
        self.images_left -= len(item.images)
        shared.error = shared.error or error
        self.end(item, is_done=False)
        if not shared.left:
            del self.shared[item.directory]
            if shared.error is None:
                self.queue.add([shared.network])  # which joins the ranges
            else:
                self._end_network(shared.network, shared.error, [])

    def _end_network(self, item: Item, error: str | None, left: list[range]) -> None:
        """Show its evaluations up to the first without a result; queue its ranges or, if it failed, the next."""
        if not item.evaluations:
            end_teacher(self, item, error, self.fail_fast)
            return
        ended, further = list[EvaluationState](), list[Item]()
        for number, path in enumerate(evaluation_dirs(item)):
            if left and read_state(path).state is not State.FINISHED:
                network = replace(item, evaluations=item.evaluations[number:])
                further = [_range_of(network, images) for images in left]
                self.shared[item.directory] = _Shared(network, set(further))
                self.images_left += sum(map(len, left))
                break
            ended.append(read_outcome(item, path, error))
            if ended[-1].result is None:
                others = item.evaluations[number + 1 :]
                is_trained = (item.directory / folder.TRAINED).exists()
                further = [replace(item, evaluations=others)] if others and is_trained else []
                break
        self.queue.add(further)
        self.end(item, is_done=not further)
        self.log(item.directory, bool(further))
        for state in ended:
            self._show(item, state)
        if self.fail_fast and any(state.result is None for state in ended):
            raise FailedFast

    def summary(self) -> str:
        """Return how much is done; there is no estimate of the time while workers share images."""
        return self._count() if self.images_left else super().summary()

    def _count(self) -> str:
        """Return how many networks are done, and how many images of evaluations that workers share are left."""
        left = f", {with_plural(self.images_left, 'image')} left to evaluate" if self.images_left else ""
        return super()._count() + left

    def _show(self, item: Item, state: EvaluationState) -> None:
        """Show the result or the failure of an evaluation."""
        text = ""
        if state.trained and state.evaluation and len(folder.evaluation_folders(item.directory)) > 1:
            text = f"{state.evaluation.config.description}: "
        if state.result is None:
            self.print_outcome("failed", "red", item, text + state.description)
            return
        errors = [f"{name.replace('_', ' ')} {percent(state.result.metrics[name])}" for name in _ERRORS]
        taken = sum(state.result.taken_over.values())
        text += ", ".join(errors) + (f", {with_plural(taken, 'answer')} taken over" if taken else "")
        self.print_outcome("done", "green", item, f"{text} ({self.summary()})")
        self._warn(item, state.result.warnings)

    def _warn(self, item: Item, warnings: Iterable[str]) -> None:
        """Show warnings of a network that were not shown before: each evaluation repeats those of training."""
        for warning in warnings:
            if (item.directory, warning) not in self.warned:
                self.warned.add((item.directory, warning))
                self.warn(item, warning)


def end_teacher(progress: Progress, item: Item, error: str | None, fail_fast: bool, is_done: bool = True) -> None:
    """Print what came of a teacher, after writing why it failed if its worker could not.

    is_done: as `Progress.end` has it. Raises FailedFast for a failure with `fail_fast`.
    """
    progress.end(item, is_done)
    if error is None:
        progress.print_outcome("done", "green", item, f"trained ({progress.summary()})")
        return
    if folder.read_failure(item.directory) is None:
        folder.write_failure(item.directory, error)
    progress.print_outcome("failed", "red", item, error)
    if fail_fast:
        raise FailedFast


def _range_of(network: Item, images: range) -> Item:
    """Return the item of a range of a network's first evaluation."""
    label = f"{network.label}, images {images.start} to {images.stop - 1}"
    return replace(network, label=label, evaluations=network.evaluations[:1], images=images)


def read_outcome(item: Item, evaluation_dir: Path, error: str | None) -> EvaluationState:
    """Return the state of an evaluation that has ended, after writing why it failed if its worker could not.

    error: of its worker. Ranges beside an error that would repeat, such as an unsound bound, are not used again.
    """
    state = read_state(evaluation_dir)
    if state.state not in (State.FINISHED, State.FAILED, State.DAMAGED):
        directory = evaluation_dir if (item.directory / folder.TRAINED).exists() else item.directory
        with suppress(OSError):  # of a full disk
            folder.write_failure(directory, error or "its worker ended without a result")
        state = read_state(evaluation_dir)
    if state.fails_again:
        remove_ranges(evaluation_dir)
    return state
