"""Run items side by side under Ray Tune.

Ray chooses the machine of an item and retries items whose worker died. Its own state, `ray` in the results directory,
is that of the last run, for `ray.tune.ExperimentAnalysis`; nothing here reads it. The truth is the item's folder: a
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
from pathlib import Path
from typing import Any

import torch

# isort: off
from harness.tune.ray_connection import RayDiedError, connected_to_ray, is_here_alive, ray  # before Ray itself

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
from harness.training.trial import DETERMINISTIC_ERRORS
from harness.tune.resources import WORKER_RETRIES, check_resources, check_storage, count_parallel_trials
from harness.tune.workers import RAY_STATE, Item, Listener, RayOptions, Work

_NOT_RETRIED = (InputError, *DETERMINISTIC_ERRORS)  # errors of an item after which no other worker tries it
_ERROR = "error_of_item"
_LIFE_CHECK_SECONDS = 5.0
_TRIAL = "trial"  # Tune's name of an item: a dictionary of its settings and of its other fields


class _CallbackError(BaseException):
    """Carries an exception of a listener through Tune, which would take an Exception for an item's own."""


@contextmanager
def _through_tune() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise _CallbackError from error


class _Callback(TrialProgressCallback):
    """Passes on what happens to a listener, and prints nothing; ends the run after a signal, and once Ray has died.

    Without a callback of this base class Tune adds one, which prints a line for each trial even if verbose=0.
    """

    def __init__(self, listener: Listener, signals: list[int]):
        self.listener, self.signals, self.checked = listener, signals, time.monotonic()

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing to pickle: Tune saves callbacks, and we never restore them."""
        return {}

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Raise Stopped after a signal, RayDiedError if Ray is dead. Tune calls this several times a second."""
        if self.signals:
            raise Stopped(self.signals[0])
        with _through_tune():
            if time.monotonic() > self.checked + _LIFE_CHECK_SECONDS:
                self.require_alive()
            self.listener.on_step()

    def require_alive(self) -> None:
        """Raise RayDiedError if Ray is dead on this machine: Tune would wait for its workers for ever."""
        if not is_here_alive():
            raise RayDiedError("Ray has died: its raylet on this machine does not answer; the same command continues")
        self.checked = time.monotonic()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Pass on that a worker is started for an item."""
        with _through_tune():
            self.listener.on_start(_item(trial.config))

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Pass on a report; `on_trial_complete` passes on an error."""
        if _ERROR not in result:
            with _through_tune():
                self.listener.on_report(_item(trial.config), result)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Pass on that a worker has returned."""
        with _through_tune():
            self.listener.on_end(_item(trial.config), trial.last_result.get(_ERROR))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Pass on that a worker has died, or raised, for the last time."""
        with _through_tune():
            self.require_alive()
            self.listener.on_end(_item(trial.config), f"its worker failed {WORKER_RETRIES + 1} times: {_reason(trial)}")


class _NextItem(Searcher):
    """Gives Tune the next item whenever one more fits, until `supply` returns None."""

    def __init__(self, supply: Callable[[], Item | None]):
        super().__init__()
        self.supply = supply

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing to pickle."""
        return {}

    def suggest(self, trial_id: str) -> Any:
        """Return the next item."""
        item = self.supply()
        return Searcher.FINISHED if item is None else {_TRIAL: _settings(item)}

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        """Do nothing: `_Callback` passes on the end."""

    def save(self, checkpoint_path: str) -> None:
        """Save nothing."""


def run_on_ray(
    items: list[Item] | Callable[[], Item | None],
    work: Work,
    listener: Listener,
    options: RayOptions,
    directory: Path,
) -> None:
    """Run items in workers until all have ended.

    Args:
        items: what is to be done, or a function that returns the next one, and None after the last.
        work: does an item in a worker, which has a thread for each CPU that it reserves.
        directory: of the results; Ray's own state lies there.

    Raises:
        InputError: no machine has what an item reserves, or a machine of a cluster lacks the items' files.
        RayDiedError: Ray has died.
        Stopped: SIGINT or SIGTERM came. Workers have ended.
        Exception: of the listener.
    """
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    shutil.rmtree(directory / RAY_STATE, ignore_errors=True)  # Tune would go on with it
    cpu, gpu, at_once = options.cpu, options.gpu, options.at_once
    with connected_to_ray(options.address, options.dashboard) as url:
        if url:
            listener.on_text(f"Ray's dashboard: http://{url}")
        if options.dashboard and not options.address:
            listener.on_text(f"its token, of this run alone: {os.environ['RAY_AUTH_TOKEN']}")
        check_resources(cpu, gpu)
        if options.address:
            check_storage(directory, options.data_dir)
        space, tuning = dict[str, Any](), dict[str, Any]()
        if callable(items):
            fitting = count_parallel_trials(cpu, gpu)
            at_once = min(fitting, at_once or fitting)
            tuning = {"search_alg": _NextItem(items), "num_samples": -1}
        else:
            space = {_TRIAL: tune.grid_search([_settings(item) for item in items])}
        with _delayed_signals() as signals:
            tuner = Tuner(
                tune.with_resources(_trainable(work, Path.cwd()), {"cpu": cpu, "gpu": gpu}),
                param_space=space,
                tune_config=TuneConfig(
                    max_concurrent_trials=at_once,
                    reuse_actors=True,
                    trial_name_creator=_label,
                    trial_dirname_creator=_trial_id,
                    **tuning,
                ),
                run_config=RunConfig(
                    name=RAY_STATE,
                    storage_path=str(directory.absolute()),
                    failure_config=FailureConfig(max_failures=WORKER_RETRIES),
                    callbacks=[_Callback(listener, signals), JsonLoggerCallback()],
                    verbose=0,
                ),
            )
            try:
                tuner.fit()
            except _CallbackError as error:
                raise error.__cause__ or error from None
            except RayError as error:  # not an item's: Tune handles those
                raise RayDiedError(f"Ray has died: {error_line(error)}; the same command continues") from error


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


def _trainable(work: Work, directory: Path) -> Callable[[dict[str, Any]], None]:
    """Return the function that does an item in a worker.

    directory: where the command started; relative paths, such as a network's file, mean the same in a worker. Tune
    changes to a directory of its own. A machine of a cluster may lack the command's directory.
    """

    def run_item(config: dict[str, Any]) -> None:
        with suppress(FileNotFoundError):
            os.chdir(directory)
        assigned = ray.get_runtime_context().get_assigned_resources()
        _limit_torch(assigned.get("CPU", 1), assigned.get("GPU", 0))
        try:
            tune.report(work(_item(config), tune.report))
        except _NOT_RETRIED as error:
            tune.report({_ERROR: error_line(error)})
        free_memory()

    return run_item


def _limit_torch(cpus: float, gpus: float) -> None:
    """Let torch use as many threads, and as much of a GPU's memory, as are reserved."""
    torch.set_num_threads(max(1, int(cpus)))
    limit_gpu_memory(gpus)


def _settings(item: Item) -> dict[str, Any]:
    """Return an item as Tune and its dashboard show it; Tune shows no objects."""
    images = [item.images.start, item.images.stop] if item.images else None
    return {**item.settings, "label": item.label, "directory": str(item.directory.absolute()), "images": images}


def _item(config: dict[str, Any]) -> Item:
    """Return the item of a config of Tune."""
    settings = dict(config[_TRIAL])
    directory, label, images = (settings.pop(name) for name in ("directory", "label", "images"))
    return Item(Path(directory), label, settings, range(*images) if images else None)


def _label(trial: Any) -> str:
    return _item(trial.config).label


def _trial_id(trial: Any) -> str:
    return str(trial.trial_id)


def _reason(trial: Any) -> str:
    """Return the last error of a worker in a line; Tune's own message has only its time."""
    try:
        error = ray.cloudpickle.loads(Path(trial.pickled_error_file).read_bytes())
    except (OSError, TypeError, AttributeError, ImportError):
        return "for no known reason"
    error = getattr(error, "cause", None) or error
    return f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"
