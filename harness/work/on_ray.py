"""Do jobs side by side under Ray Tune.

Ray chooses the machine of a job and retries jobs whose worker died. Its own state, `ray` in the results directory,
is that of the last run, for `ray.tune.ExperimentAnalysis`; nothing here reads it. The truth is the network's folder: a
retry, or a later run, goes on from what is saved there. On several machines the results must therefore lie on storage
that all of them share.
"""

import logging
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter

# isort: off
from harness.work.ray_connection import (  # before Ray itself
    is_here_alive,
    machines_of_ray,
    ray,
    shared_ray,
)

# isort: on
from ray import tune
from ray.exceptions import RayError
from ray.tune import FailureConfig, RunConfig, TuneConfig, Tuner
from ray.tune.logger import JsonLoggerCallback
from ray.tune.progress_reporter import TrialProgressCallback
from ray.tune.search import Searcher

from harness.common.errors import InputError, Stopped, error_line
from harness.machine.device import limit_gpu_memory
from harness.machine.freed_memory import free_memory
from harness.storage.records import parse_training, record_json
from harness.work.jobs import DETERMINISTIC_ERRORS, Do, Job, Work
from harness.work.machines import RayOptions, check_fits, count_fitting
from harness.work.queue import Listener, Queue, end_job

RAY_STATE = "ray"
"""The directory of Ray's own state, in that of the results."""
WORKER_RETRIES = 2  # of a job whose worker died
_NOT_RETRIED = (InputError, *DETERMINISTIC_ERRORS)  # errors of a job after which no other worker tries it
ERROR = "error_of_job"
_NO_LIMIT = 10_000  # of jobs that Tune may have: without one it starts one worker after the other
_LIFE_CHECK_SECONDS = 5.0
_GOES_ON = "the same command continues"
JOB = "job"  # Tune's name of a job: its JSON
_WORK = TypeAdapter(tuple[Work, ...])


class _EndOfRun(BaseException):
    """Carries an exception of the command through Tune, which would first wait for workers after an Exception.

    `Stopper.stop_all`, Tune's public way, was tried: Tune then waits ten seconds for workers that are in an epoch, a
    constant of its own (seen with Ray 2.60: 10.2 s and 1.8 s for Ray's end, where this way takes 6), and a stopper is
    not asked while Tune waits for a dead raylet.
    """


class _Jobs:
    """The jobs that Tune has begun, by the number in their configs."""

    def __init__(self, queue: Queue):
        self.queue, self.begun = queue, list[Job]()

    def take(self) -> dict[str, Any] | None:
        """Return the config of the next job, None if there is none now."""
        if (job := self.queue.take()) is None:
            return None
        self.begun.append(job)
        return {JOB: config_of(job, len(self.begun) - 1)}

    def of(self, trial: Any) -> Job:
        """Return the job of a trial."""
        return self.begun[trial.config[JOB]["number"]]


class _Callback(TrialProgressCallback):
    """Collects what happens, and tells it to a listener between two steps of Tune, where an error ends the run.

    Without a callback of this base class Tune adds one, which prints a line for each trial even if verbose=0.
    """

    def __init__(self, jobs: _Jobs, listener: Listener, signals: list[int]):
        self.jobs, self.listener, self.signals = jobs, listener, signals
        self.events, self.next_check = list[Callable[[], None]](), 0.0

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing to pickle: Tune saves callbacks, and we never restore them."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Note that a worker is started for a job."""
        self.events.append(partial(self.listener.on_start, self.jobs.of(trial)))

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Note a report; `on_trial_complete` notes an error."""
        if ERROR not in result:
            self.events.append(partial(self.listener.on_report, self.jobs.of(trial), result))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Note that a worker has returned."""
        self._end(trial, trial.last_result.get(ERROR))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Note that a worker has died, or raised, for the last time."""
        self._end(trial, f"its worker failed {WORKER_RETRIES + 1} times: {_reason(trial)}")
        self.next_check = 0.0  # Ray may have died

    def _end(self, trial: Any, error: str | None) -> None:
        self.events.append(partial(end_job, self.jobs.queue, self.listener, self.jobs.of(trial), error))

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Tell the listener what has happened. Raises _EndOfRun after a signal, an error, or once Ray has died."""
        try:
            if self.signals:
                raise Stopped(self.signals[0])
            if time.monotonic() > self.next_check:
                if not is_here_alive():  # Tune would wait for its workers for ever
                    raise ConnectionError(f"Ray has died: its raylet on this machine does not answer; {_GOES_ON}")
                self.next_check = time.monotonic() + _LIFE_CHECK_SECONDS
            events, self.events = self.events, []
            for event in events:
                event()
        except (Exception, Stopped) as error:
            raise _EndOfRun from error


class _NextJob(Searcher):
    """Gives Tune the next job whenever one more fits, until none will come.

    A searcher, and no grid, since Tune knows no order of trials: it starts all it has as soon as they fit, while a job
    waits for those before it, and a search proposes the next candidate when one has ended. Tune gets one job more than
    fit, which waits there.
    count_places: how many fit, on machines that may come and go.
    """

    def __init__(self, jobs: _Jobs, count_places: Callable[[], int]):
        super().__init__()
        self.jobs, self.count_places, self.started = jobs, count_places, set[str]()

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing to pickle."""
        return {}

    def suggest(self, trial_id: str) -> Any:
        """Return the next job, or None if one may come later."""
        if len(self.started) > self.count_places():
            return None
        if (config := self.jobs.take()) is not None:
            self.started.add(trial_id)
            return config
        return Searcher.FINISHED if self.jobs.queue.is_finished else None

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        """Note that a place is free; `_Callback` tells the end."""
        self.started.discard(trial_id)

    def save(self, checkpoint_path: str) -> None:
        """Save nothing."""


def run_on_ray(queue: Queue, do: Do, listener: Listener, options: RayOptions, directory: Path) -> None:
    """Do jobs in workers until all have ended.

    Args:
        queue: the next job is taken when fewer than `options.at_once` are started, and at most one more than fit.
        do: does a job in a worker, which has a thread for each CPU that it reserves.
        directory: of the results; Ray's own state stays there.

    Raises:
        InputError: Ray cannot be used, or no machine has what a job reserves.
        ConnectionError: Ray has died.
        Stopped: SIGINT or SIGTERM came. Workers have ended.
        FailedFast: as the queue raises it.
    """
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    with shared_ray(options.address, options.dashboard) as url, _delayed_signals() as signals:
        if url:
            listener.on_text(f"Ray's dashboard: http://{url}")
        if options.dashboard and not options.address:
            listener.on_text(f"its token, of this run alone: {os.environ['RAY_AUTH_TOKEN']}")
        machines = machines_of_ray()
        check_fits(machines, options.cpu, options.gpu)  # Ray may see less than torch, and would wait for ever
        shutil.rmtree(directory / RAY_STATE, ignore_errors=True)  # Tune would go on with it
        jobs = _Jobs(queue)
        tuner = Tuner(
            tune.with_resources(make_trainable(do, Path.cwd()), {"cpu": options.cpu, "gpu": options.gpu}),
            tune_config=TuneConfig(
                search_alg=_NextJob(jobs, lambda: count_fitting(machines_of_ray(), options.cpu, options.gpu)),
                num_samples=-1,  # until there is no next job
                max_concurrent_trials=options.at_once or _NO_LIMIT,
                reuse_actors=True,
                trial_name_creator=_label,
                trial_dirname_creator=_trial_id,
            ),
            run_config=RunConfig(
                name=RAY_STATE,
                storage_path=str(directory.absolute()),
                failure_config=FailureConfig(max_failures=WORKER_RETRIES),
                callbacks=[_Callback(jobs, listener, signals), JsonLoggerCallback()],
                verbose=0,
            ),
        )
        try:
            tuner.fit()
        except _EndOfRun as end:
            assert end.__cause__ is not None
            raise end.__cause__ from None
        except RayError as error:  # not a job's: Tune handles those
            raise ConnectionError(f"Ray has died: {error_line(error)}; {_GOES_ON}") from error


@contextmanager
def _delayed_signals() -> Iterator[list[int]]:
    """Collect the signals that ask for an end within the block.

    `_Callback` raises them between two steps of Tune, so that no write to MLflow or to a file is broken off.
    """
    received = list[int]()
    asking = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda which, frame: received.append(which)) for number in asking}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def make_trainable(do: Do, directory: Path) -> Callable[[dict[str, Any]], None]:
    """Return the function that does a job in a worker.

    directory: where the command started; relative paths, such as a network's file, mean the same in a worker. Tune
    changes to a directory of its own. A machine of a cluster may lack the command's directory.
    """

    def run_job(config: dict[str, Any]) -> None:
        with suppress(FileNotFoundError):
            os.chdir(directory)
        reserved = ray.get_runtime_context().get_assigned_resources()
        torch.set_num_threads(max(1, int(reserved.get("CPU", 1))))
        limit_gpu_memory(reserved.get("GPU", 0))
        job = job_of(config[JOB])
        try:
            do(job, tune.report)
            tune.report({})
        except _NOT_RETRIED as error:
            tune.report({ERROR: error_line(error)})
        if job.trains:  # a range leaves no captured graphs, and freeing took a tenth of a small one's time
            free_memory()

    return run_job


def config_of(job: Job, number: int) -> dict[str, Any]:
    """Return a job as Tune and its dashboard show it: the settings of the training are first, and flat."""
    return {
        **job.record.config.model_dump(mode="json"),
        "number": number,
        "label": job.label,
        "directory": str(job.network_dir.absolute()),
        "record": record_json(job.record),
        "work": _WORK.dump_python(job.work, mode="json"),
    }


def job_of(config: dict[str, Any]) -> Job:
    """Return the job of a config, as a worker does it."""
    work = _WORK.validate_python(config["work"])
    return Job(Path(config["directory"]), parse_training(config["record"]), work, config["label"])


def _label(trial: Any) -> str:
    return str(trial.config[JOB]["label"])


def _trial_id(trial: Any) -> str:
    return str(trial.trial_id)


def _reason(trial: Any) -> str:
    """Return the last error of a worker in a line."""
    try:
        error = ray.cloudpickle.loads(Path(trial.pickled_error_file).read_bytes())
    except (OSError, TypeError, AttributeError, ImportError):  # there is none, or pickle cannot make it again
        return "for no known reason"
    return error_line(getattr(error, "cause", None) or error)
