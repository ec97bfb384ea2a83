"""Run items side by side under Ray Tune.

Ray chooses the machine of an item and retries items whose worker died. Its own state, `ray` in the results directory,
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
from tempfile import TemporaryDirectory
from typing import Any

import torch

# isort: off
from harness.tune.ray_connection import (  # before Ray itself
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
from harness.training.train_and_evaluate import DETERMINISTIC_ERRORS
from harness.tune.items import Item, Items, Listener, Work
from harness.tune.machines import RayOptions, check_fits, count_fitting

RAY_STATE = "ray"
"""The directory of Ray's own state, in that of the results."""
WORKER_RETRIES = 2  # of an item whose worker died
_NOT_RETRIED = (InputError, *DETERMINISTIC_ERRORS)  # errors of an item after which no other worker tries it
ERROR = "error_of_item"
_NO_LIMIT = 10_000  # of items that Tune may have: without one it starts one worker after the other
_LIFE_CHECK_SECONDS = 5.0
_GOES_ON = "the same command continues"
TRIAL = "trial"  # Tune's name of an item: a dictionary of its settings and of its other fields


class _EndOfRun(BaseException):
    """Carries an exception of the command through Tune, which would first wait for workers after an Exception.

    `Stopper.stop_all`, Tune's public way, was tried: Tune then waits ten seconds for workers that are in an epoch, a
    constant of its own (seen with Ray 2.60: 10.2 s and 1.8 s for Ray's end, where this way takes 6), and a stopper is
    not asked while Tune waits for a dead raylet.
    """


class _Callback(TrialProgressCallback):
    """Collects what happens, and tells it to a listener between two steps of Tune, where an error ends the run.

    Without a callback of this base class Tune adds one, which prints a line for each trial even if verbose=0.
    """

    def __init__(self, items: Items, listener: Listener, signals: list[int]):
        self.items, self.listener, self.signals = items, listener, signals
        self.events, self.next_check = list[Callable[[], None]](), 0.0

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing to pickle: Tune saves callbacks, and we never restore them."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Note that a worker is started for an item."""
        self.events.append(partial(self.listener.on_start, item_of(trial.config)))

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Note a report; `on_trial_complete` notes an error."""
        if ERROR not in result:
            self.events.append(partial(self.listener.on_report, item_of(trial.config), result))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Note that a worker has returned."""
        result = trial.last_result
        self.events.append(partial(self._end, item_of(trial.config), result.get(ERROR), result))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Note that a worker has died, or raised, for the last time."""
        text = f"its worker failed {WORKER_RETRIES + 1} times: {_reason(trial)}"
        self.events.append(partial(self._end, item_of(trial.config), text, {}))
        self.next_check = 0.0  # Ray may have died

    def _end(self, item: Item, error: str | None, result: dict[str, Any]) -> None:
        self.items.end(item)
        self.listener.on_end(item, error, result)

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


class _NextItem(Searcher):
    """Gives Tune the next item whenever one more fits, until none will come.

    A searcher, and no grid: ranges of images become items once a network is trained. They are next, before networks
    that wait here; those that Tune has already would come before them, so it gets one more than fit, which waits there.
    count_places: how many fit, on machines that may come and go.
    """

    def __init__(self, items: Items, count_places: Callable[[], int]):
        super().__init__()
        self.items, self.count_places, self.started = items, count_places, set[str]()

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing to pickle."""
        return {}

    def suggest(self, trial_id: str) -> Any:
        """Return the next item, or None if one may come later."""
        if len(self.started) > self.count_places():
            return None
        if (item := self.items.take()) is not None:
            self.started.add(trial_id)
            return {TRIAL: settings_of(item)}
        return Searcher.FINISHED if self.items.is_finished else None

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        """Note that a place is free; `_Callback` tells the end."""
        self.started.discard(trial_id)

    def save(self, checkpoint_path: str) -> None:
        """Save nothing."""


def run_on_ray(items: Items, work: Work, listener: Listener, options: RayOptions, directory: Path | None) -> None:
    """Run items in workers until all have ended.

    Args:
        items: what is to be done. The next one is taken when fewer than `options.at_once` are started, and at most one
            more than fit.
        work: does an item in a worker, which has a thread for each CPU that it reserves.
        directory: of the results; Ray's own state stays there.

    Raises:
        InputError: Ray cannot be used, or no machine has what an item reserves.
        ConnectionError: Ray has died.
        Stopped: SIGINT or SIGTERM came. Workers have ended.
        Exception: of the listener.
    """
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    with (
        TemporaryDirectory(prefix="harness-") as scratch,
        shared_ray(options.address, options.dashboard) as url,
        _delayed_signals() as signals,
    ):
        if url:
            listener.on_text(f"Ray's dashboard: http://{url}")
        if options.dashboard and not options.address:
            listener.on_text(f"its token, of this run alone: {os.environ['RAY_AUTH_TOKEN']}")
        machines = machines_of_ray()
        check_fits(machines, options.cpu, options.gpu)  # Ray may see less than torch, and would wait for ever
        path = (directory or Path(scratch)).absolute()
        shutil.rmtree(path / RAY_STATE, ignore_errors=True)  # Tune would go on with it
        tuner = Tuner(
            tune.with_resources(make_trainable(work, Path.cwd()), {"cpu": options.cpu, "gpu": options.gpu}),
            tune_config=TuneConfig(
                search_alg=_NextItem(items, lambda: count_fitting(machines_of_ray(), options.cpu, options.gpu)),
                num_samples=-1,  # until there is no next item
                max_concurrent_trials=options.at_once or _NO_LIMIT,
                reuse_actors=True,
                trial_name_creator=_label,
                trial_dirname_creator=_trial_id,
            ),
            run_config=RunConfig(
                name=RAY_STATE,
                storage_path=str(path),
                failure_config=FailureConfig(max_failures=WORKER_RETRIES),
                callbacks=[_Callback(items, listener, signals), JsonLoggerCallback()],
                verbose=0,
            ),
        )
        try:
            tuner.fit()
        except _EndOfRun as end:
            assert end.__cause__ is not None
            raise end.__cause__ from None
        except RayError as error:  # not an item's: Tune handles those
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


def make_trainable(work: Work, directory: Path) -> Callable[[dict[str, Any]], None]:
    """Return the function that does an item in a worker.

    directory: where the command started; relative paths, such as a network's file, mean the same in a worker. Tune
    changes to a directory of its own. A machine of a cluster may lack the command's directory.
    """

    def run_item(config: dict[str, Any]) -> None:
        with suppress(FileNotFoundError):
            os.chdir(directory)
        reserved = ray.get_runtime_context().get_assigned_resources()
        torch.set_num_threads(max(1, int(reserved.get("CPU", 1))))
        limit_gpu_memory(reserved.get("GPU", 0))
        item = item_of(config)
        try:
            tune.report(work(item, tune.report))
        except _NOT_RETRIED as error:
            tune.report({ERROR: error_line(error)})
        if item.images is None:  # a range leaves no captured graphs, and freeing took a tenth of a small one's time
            free_memory()

    return run_item


def settings_of(item: Item) -> dict[str, Any]:
    """Return an item as Tune and its dashboard show it; Tune shows no objects."""
    images = [item.images.start, item.images.stop] if item.images else None
    own = {"label": item.label, "directory": str(item.directory.absolute()), "evaluations": list(item.evaluations)}
    return {**item.settings, **own, "images": images, "needs": item.needs and str(item.needs.absolute())}


def item_of(config: dict[str, Any]) -> Item:
    """Return the item of a config of Tune."""
    training = dict(config[TRIAL])
    directory, label, evaluations, images, needs = (
        training.pop(name) for name in ("directory", "label", "evaluations", "images", "needs")
    )
    needed = Path(needs) if needs else None
    return Item(Path(directory), label, training, tuple(evaluations), range(*images) if images else None, needed)


def _label(trial: Any) -> str:
    return item_of(trial.config).label


def _trial_id(trial: Any) -> str:
    return str(trial.trial_id)


def _reason(trial: Any) -> str:
    """Return the last error of a worker in a line."""
    try:
        error = ray.cloudpickle.loads(Path(trial.pickled_error_file).read_bytes())
    except (OSError, TypeError, AttributeError, ImportError):  # there is none, or pickle cannot make it again
        return "for no known reason"
    return error_line(getattr(error, "cause", None) or error)
