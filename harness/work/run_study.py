"""Train and evaluate networks: under Ray or here, shown in the terminal, logged to MLflow, with tables at the end."""

import sys
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from rich.console import Console

from harness.common.errors import InputError
from harness.common.terminal import announced, with_plural
from harness.config.expansion import Study
from harness.config.file import CHANGED
from harness.data import Data
from harness.evaluation.ranges import evaluated_images
from harness.leaderboard.files import print_leaderboard, write_leaderboard
from harness.leaderboard.table import Leaderboard
from harness.machine.device import best_device
from harness.machine.environment import device_name, source_digest
from harness.storage import folder
from harness.storage.files import remove_unfinished
from harness.storage.records import TrainingRecord
from harness.storage.state import EvaluationState, State
from harness.storage.sweep_file import SWEEP, write_sweep_file
from harness.work.display import StudyProgress
from harness.work.here import run_here
from harness.work.jobs import Job, do_job, make_jobs
from harness.work.machines import RayOptions
from harness.work.networks import Teachers, adopt_network, remove_not_begun
from harness.work.queue import FailedFast, Listener, Queue
from harness.work.study import find_evaluations, find_states, to_run, unusable

if TYPE_CHECKING:
    from harness.tracking.tracker import Tracker


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

    @property
    def device(self) -> str:
        """The kind of device that jobs use: "cpu" or "cuda"."""
        return best_device().type if self.ray is None else "cuda" if self.ray.gpu else "cpu"


@dataclass(frozen=True)
class Outcome:
    """What came of a study. is_complete: all evaluations have usable results, and MLflow has them."""

    leaderboard: Leaderboard
    is_complete: bool


def run_study(
    study: Study, data: Data, records: dict[Path, TrainingRecord], states: dict[Path, EvaluationState],
    sweep_dir: Path, options: RunOptions, console: Console,
) -> Outcome:  # fmt: skip
    """Run what is left of a study, log it and write the tables.

    records: of the networks that are asked for, by their folders. states: of their evaluations. Under Ray the caller
    has locked the sweep's directory.

    Raises:
        InputError: a wrong MLflow store, or Ray cannot start.
        Stopped, KeyboardInterrupt: a signal came.
        ConnectionError: Ray has died.
    """
    mlflow = open_mlflow(sweep_dir.name, options, console)
    asked = find_evaluations(records, study)
    if options.ray is not None:  # without it other jobs of an array may have begun
        for directory in (sweep_dir, sweep_dir / folder.FIGURES):
            remove_unfinished(directory)
        remove_not_begun(sweep_dir, asked)
    all_keys = [training.key(data.fingerprint) for training in study.trainings]
    if options.logs:
        write_sweep_file(study.file, sweep_dir, all_keys)
    adopted = Counter(filter(None, (adopt_network(path, sweep_dir.parent, study.evaluations) for path in records)))
    for source, count in adopted.items():
        console.print(f"{with_plural(count, 'network')} trained already in {source}: copied from there")
    for network_dir, record in records.items():
        folder.begin_network(network_dir, record, study.profile, study.evaluations)
        if (checkpoint := record.config.checkpoint) is not None:
            path = study.checkpoints[checkpoint.sha256]
            folder.copy_network_file(checkpoint, path, network_dir / folder.NETWORK_FILE)
    states = find_states(asked, {}) if adopted else states
    wanted = to_run(states, options.retry_failed)
    for path, state in states.items():
        if state.state is not State.FINISHED and path not in wanted:
            failed = f"failed {records[folder.network_of(path)].config.label}: {state.description}"
            console.print(f"{failed}; it would fail the same way again. To retry anyway: --retry-failed")
    try:
        if wanted:
            queue = Queue(make_study_jobs(study, data, records, wanted, options), fail_fast=options.fail_fast)
            networks = dict.fromkeys(folder.network_of(path) for path in wanted)
            with StudyProgress(console, queue, networks.keys(), mlflow.log if mlflow else None) as listener:
                run_jobs(queue, listener, options, sweep_dir)
    except InputError:
        if options.ray is not None:  # which cannot start; without it other jobs of an array may have begun
            remove_not_begun(sweep_dir, [])
            if not (sweep_dir / folder.NETWORKS).exists():
                (sweep_dir / SWEEP).unlink(missing_ok=True)
        raise
    leaderboard = write_leaderboard(sweep_dir)
    print_leaderboard(leaderboard, console)
    own = {record.key for record in records.values()}
    candidates = [] if CHANGED in study.profile else all_keys
    is_logged = mlflow is None or mlflow.finish(sweep_dir, own, candidates, only_own=options.ray is None)
    problems = unusable(asked, leaderboard.table)
    for path, problem in problems.items():
        advice = "put the file back, or remove that folder to do it again"
        label = records[folder.network_of(path)].config.label
        console.print(f"cannot be used: {label} ({path}): {problem}; {advice}")
    finished = leaderboard.table["evaluation_dir"][leaderboard.table["state"] == State.FINISHED]
    is_finished = not problems and asked.keys() <= set(finished)
    return Outcome(leaderboard, is_logged and is_finished)


def make_study_jobs(
    study: Study, data: Data, records: dict[Path, TrainingRecord], wanted: list[Path], options: RunOptions
) -> list[Job]:
    """Return the jobs of evaluations, by their folders, and of the networks and teachers that they need.

    Networks come in the order of their first evaluations, teachers before all. What was written of earlier failures is
    removed.
    """
    evaluations, teachers = find_evaluations(records, study), Teachers(study.checkpoints, options.retry_failed)
    asked = dict[Path, list[Path]]()
    for path in wanted:
        asked.setdefault(folder.network_of(path), []).append(path)
        for directory in (path, folder.network_of(path)):
            (directory / folder.FAILURE).unlink(missing_ok=True)
    first, jobs = list[Job](), list[Job]()
    trainings = [records[path].config.own_teacher for path in asked]
    keys = {training.key(data.fingerprint) for training in trainings if training is not None}
    for network_dir in sorted(asked, key=lambda path: records[path].key not in keys):  # teachers that are rows, first
        record = records[network_dir]
        counted = [
            (evaluations[path], len(evaluated_images(data, record.config.validation_images, evaluations[path])))
            for path in asked[network_dir]
        ]
        new, after = teachers.jobs_before(network_dir, record)
        own = make_jobs(network_dir, record, counted, options.device, record.config.label, after)
        if not folder.is_trained(network_dir):
            teachers.jobs[network_dir] = own[0]
        first += new
        jobs += own
    return [*first, *jobs]


def run_jobs(queue: Queue, listener: Listener, options: RunOptions, directory: Path) -> bool:
    """Do jobs under Ray, or in this process; return False if a failure has ended that.

    directory: where Ray writes what it knows. Raises as `run_on_ray` does.
    """
    do = partial(do_job, data_dir=options.data_dir, code=source_digest())
    try:
        if options.ray is None:
            torch.set_num_threads(options.threads)
            listener.on_text(f"device: {device_name(best_device())}")
            run_here(queue, do, listener)
        else:
            if "harness.work.on_ray" not in sys.modules:
                listener.on_text("connects to Ray" if options.ray.address else "loads Ray and starts it: about 15 s")
            from harness.work.on_ray import run_on_ray  # here, since it takes seconds

            run_on_ray(queue, do, listener, options.ray, directory)
    except FailedFast:
        listener.on_text("a network failed: the others are stopped")
        return False
    return True


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
