"""Run items side by side under Ray Tune.

Ray chooses the machine of an item and retries items whose worker died; its own state is deleted. The truth is the
item's folder: a retry, or a later run, goes on from what is saved there. On several machines the results must therefore
lie on storage that all of them share.
"""

import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

# isort: off
from harness.tune.ray_connection import RayDiedError, connected_to_ray, exit_if_ray_dies, ray  # before Ray itself

# isort: on
from ray import tune
from ray.exceptions import RayError
from ray.tune import FailureConfig, RunConfig, TuneConfig, Tuner
from ray.tune.progress_reporter import TrialProgressCallback
from ray.tune.search import Searcher

from harness.common.errors import InputError, Stopped, error_line
from harness.machine.device import limit_gpu_memory
from harness.machine.freed_memory import free_memory
from harness.training.trial import DETERMINISTIC_ERRORS
from harness.tune.resources import WORKER_RETRIES, check_resources, check_storage, count_parallel_trials
from harness.tune.workers import RAY_STATE, OnEnd, OnReport, RayOptions, Work

LOG = "ray.log"
_NOT_RETRIED = (InputError, *DETERMINISTIC_ERRORS)  # errors of an item after which no other worker tries it
_ERROR = "error_of_item"


class _CallbackError(BaseException):
    """Carries an exception of a callback through Tune, which would take an Exception for an item's own."""


@contextmanager
def _through_tune() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise _CallbackError from error


class _Callback(TrialProgressCallback):
    """Calls back for reports and ends of items, and prints nothing.

    Without a callback of this base class Tune adds one, which prints a line for each trial even if verbose=0.
    """

    def __init__(self, on_report: OnReport, on_end: OnEnd):
        self.on_report, self.on_end = on_report, on_end

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing to pickle: Tune saves callbacks, and we never restore them."""
        return {}

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Pass on a report; `on_trial_complete` passes on an error."""
        if _ERROR not in result:
            with _through_tune():
                self.on_report(_item(trial), result)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Pass on that a worker has returned."""
        with _through_tune():
            self.on_end(_item(trial), trial.last_result.get(_ERROR))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Pass on that a worker has died, or raised, for the last time."""
        with _through_tune():
            self.on_end(_item(trial), f"its worker failed {WORKER_RETRIES + 1} times: {_reason(trial)}")


class _NextItem(Searcher):
    """Gives Tune the next item whenever one more fits, until `supply` returns None."""

    def __init__(self, supply: Callable[[], Path | None]):
        super().__init__()
        self.supply = supply

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing to pickle."""
        return {}

    def suggest(self, trial_id: str) -> Any:
        """Return the next item."""
        item = self.supply()
        return Searcher.FINISHED if item is None else {"item": str(item.absolute())}

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        """Do nothing: `_Callback` passes on the end."""

    def save(self, checkpoint_path: str) -> None:
        """Save nothing."""


def run_on_ray(
    items: list[Path] | Callable[[], Path | None],
    work: Work,
    on_report: OnReport,
    on_end: OnEnd,
    options: RayOptions,
    directory: Path,
) -> None:
    """Run items in workers until all have ended. Once Ray is dead, this process ends with status 1.

    Args:
        items: paths, or a function that returns the next one, and None after the last.
        work: does an item in a worker, which has a thread for each CPU that it reserves.
        on_report: called with an item and what its work reports.
        on_end: called with an item and its error: that of its worker, or one that a retry would raise again.
        directory: of the results; Ray's own state lies there until the end, what Ray prints goes to ray.log.

    Raises:
        InputError: no machine has what an item reserves, or a machine of a cluster lacks the items' files.
        RayDiedError: Ray says that it has died.
        Exception: of `on_report` or `on_end`.
    """
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    (directory / LOG).unlink(missing_ok=True)
    cpu, gpu, at_once = options.cpu, options.gpu, options.at_once
    with connected_to_ray(options.address, directory / LOG), exit_if_ray_dies():
        check_resources(cpu, gpu)
        if options.address:
            check_storage(directory, options.data_dir)
        space, tuning = dict[str, Any](), dict[str, Any]()
        if callable(items):
            fitting = count_parallel_trials(cpu, gpu)
            at_once = min(fitting, at_once or fitting)
            tuning = {"search_alg": _NextItem(items), "num_samples": -1}
        else:
            space = {"item": tune.grid_search([str(item.absolute()) for item in items])}
        tuner = Tuner(
            tune.with_resources(_trainable(work, Path.cwd()), {"cpu": cpu, "gpu": gpu}),
            param_space=space,
            tune_config=TuneConfig(
                max_concurrent_trials=at_once, reuse_actors=True, trial_dirname_creator=_trial_id, **tuning
            ),
            run_config=RunConfig(
                name=str(time.time_ns()),
                storage_path=str((directory / RAY_STATE).absolute()),
                failure_config=FailureConfig(max_failures=WORKER_RETRIES),
                callbacks=[_Callback(on_report, on_end)],
                verbose=0,
            ),
        )
        try:
            tuner.fit()
        except _CallbackError as error:
            raise error.__cause__ or error from None
        except RayError as error:  # not an item's: Tune handles those
            raise RayDiedError(f"Ray has died: {error_line(error)}; the same command continues") from error
        finally:
            shutil.rmtree(directory / RAY_STATE, ignore_errors=True)


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
            with suppress(Stopped):
                work(Path(config["item"]), tune.report)
        except _NOT_RETRIED as error:
            tune.report({_ERROR: error_line(error)})
        free_memory()

    return run_item


def _limit_torch(cpus: float, gpus: float) -> None:
    """Let torch use as many threads, and as much of a GPU's memory, as are reserved."""
    torch.set_num_threads(max(1, int(cpus)))
    limit_gpu_memory(gpus)


def _item(trial: Any) -> Path:
    return Path(trial.config["item"])


def _trial_id(trial: Any) -> str:
    return trial.trial_id


def _reason(trial: Any) -> str:
    """Return the last error of a worker in a line; Tune's own message has only its time."""
    try:
        error = ray.cloudpickle.loads(Path(trial.pickled_error_file).read_bytes())
    except (OSError, TypeError, AttributeError, ImportError):
        return "for no known reason"
    error = getattr(error, "cause", None) or error
    return f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"
