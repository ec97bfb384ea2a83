"""Run trials side by side under Ray Tune.

Ray chooses the machine of a trial and retries trials whose worker died; its own state is deleted. The truth is a
trial's folder: a retry, or a later run of the sweep, goes on from the checkpoint there. On several machines the results
must therefore lie on storage that all of them share, or at an address.
"""

import logging
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

# isort: off
from harness.launch.ray_cluster import (  # before Ray itself
    MAX_RETRIES,
    check_resources,
    check_storage,
    cluster,
    ray,
    side_by_side,
)

# isort: on
import torch
from ray import tune
from ray.tune import FailureConfig, RunConfig, TuneConfig, Tuner
from ray.tune.progress_reporter import TrialProgressCallback
from ray.tune.search import Searcher

from harness.clock import Stopped
from harness.device import take_share
from harness.environment import source_digest
from harness.errors import InputError
from harness.launch.shared import is_stopped, run_trial_at
from harness.memory import free_memory
from harness.search.rungs import CANDIDATE, run_candidate
from harness.storage import folder, names
from harness.training import run_folder
from harness.training.trial import REPEATED

LOG = "ray.log"
_SHARED = ".shared-"
FAILS_AGAIN = (InputError, *REPEATED)  # a retry would raise them again


class _Reporter(TrialProgressCallback):
    """Calls back for reports and ends of trials, and prints nothing."""

    def __init__(self, on_report: Callable[[Path, dict[str, Any]], None], on_end: Callable[[Path, str | None], None]):
        self.on_report, self.on_end = on_report, on_end

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing to pickle: Tune saves callbacks, and we never restore them."""
        return {}

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Pass on a row."""
        self.on_report(_folder(trial), result)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Pass on that a worker has returned."""
        self.on_end(_folder(trial), None)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Pass on that a worker has died, or raised, for the last time."""
        self.on_end(_folder(trial), f"its worker failed {MAX_RETRIES + 1} times: {_reason(trial)}")


class _NextTrial(Searcher):
    """Gives Tune the next trial's folder whenever one more fits, until `supply` returns None."""

    def __init__(self, supply: Callable[[], Path | None]):
        super().__init__()
        self.supply = supply

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing to pickle."""
        return {}

    def suggest(self, trial_id: str) -> Any:
        """Return the next trial's config."""
        trial_dir = self.supply()
        return Searcher.FINISHED if trial_dir is None else {"directory": str(trial_dir.absolute())}

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        """Do nothing: `_Reporter` passes on the end."""

    def save(self, checkpoint_path: str) -> None:
        """Save nothing."""


def train_folder(config: dict[str, Any]) -> None:
    """Run a trial in a worker, with a thread for each assigned CPU and within its share of a GPU's memory.

    config: `directory`, the trial's folder, `data_dir`, `code`, and the sweep's `uri` if folders lie at an address.
    """
    trial_dir, uri, code = Path(config["directory"]), config.get("uri"), config.get("code")
    if is_stopped(uri) if uri else folder.stop_file(trial_dir).exists():
        return
    assigned = ray.get_runtime_context().get_assigned_resources()
    torch.set_num_threads(max(1, int(assigned.get("CPU", 1))))
    take_share(assigned.get("GPU", 0))
    arguments = tune.report, config["data_dir"], _report_evaluated
    with suppress(*FAILS_AGAIN, Stopped):  # failure.json has the reason
        if uri:
            run_trial_at(uri, trial_dir.name, *arguments, code=code)
        elif (trial_dir / CANDIDATE).exists():
            run_candidate(trial_dir, *arguments, code=code)
        else:
            run_folder(trial_dir, *arguments, code=code)
    free_memory()


def _report_evaluated(done: int, images: int) -> None:
    tune.report({names.JUDGED: done, names.IMAGES: images})


def _folder(trial: Any) -> Path:
    return Path(trial.config["directory"])


def _name(trial: Any) -> str:
    return _folder(trial).name


def _reason(trial: Any) -> str:
    """Return the last error of a worker in a line; Tune's own message has only its time."""
    try:
        error = ray.cloudpickle.loads(Path(trial.pickled_error_file).read_bytes())
    except (OSError, TypeError, AttributeError, ImportError):
        return "for no known reason"
    error = getattr(error, "cause", None) or error
    return f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"


def run_folders(
    folders: list[Path] | Callable[[], Path | None],
    data_dir: str | None,
    cpu: int,
    gpu: float,
    storage: Path,
    on_report: Callable[[Path, dict[str, Any]], None],
    on_end: Callable[[Path, str | None], None],
    address: str | None = None,
    at_once: int | None = None,
    worker: Callable[[dict[str, Any]], None] = train_folder,
    uri: str | None = None,
) -> None:
    """Run the trial of every folder with a trial.json, as many at a time as fit, until all have ended.

    Args:
        folders: the trials' folders, or a function that returns the next one, and None after the last.
        cpu, gpu: what each trial reserves; trials with a fraction of a GPU share it.
        storage: a directory for Ray's own state, removed at the end; what Ray prints goes to ray.log beside it.
        on_report: called with a trial's folder and an epoch's row, or the number of evaluated images.
        on_end: called with a trial's folder and the error of its worker, None if the worker returned.
        address: of a running cluster; None starts one here.
        at_once: the most trials at a time; None for as many as fit.
        uri: of the sweep, if its folders lie at an address.

    Raises:
        ResourceError: no machine has what a trial reserves, or a machine of a cluster lacks the trials' files.
    """
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    with cluster(address, storage.with_name(LOG)) as resources:
        check_resources(resources, cpu, gpu)
        if address:
            _check_storage(storage.parent, data_dir, uri)
        space: dict[str, Any] = {"data_dir": data_dir, "code": source_digest(), "uri": uri}
        tuning: dict[str, Any] = {"max_concurrent_trials": at_once}
        if callable(folders):
            fitting = side_by_side(cpu, gpu)
            tuning = {"search_alg": _NextTrial(folders), "num_samples": -1}
            tuning["max_concurrent_trials"] = min(fitting, at_once or fitting)
        else:
            space["directory"] = tune.grid_search([str(trial_dir.absolute()) for trial_dir in folders])
        tuner = Tuner(
            tune.with_resources(worker, {"cpu": cpu, "gpu": gpu}),
            param_space=space,
            tune_config=TuneConfig(reuse_actors=True, trial_name_creator=_name, trial_dirname_creator=_name, **tuning),
            run_config=RunConfig(
                name=str(time.time_ns()),
                storage_path=str(storage.absolute()),
                failure_config=FailureConfig(max_failures=MAX_RETRIES),
                callbacks=[_Reporter(on_report, on_end)],
                verbose=0,
            ),
        )
        try:
            tuner.fit()
        finally:
            shutil.rmtree(storage, ignore_errors=True)


def _check_storage(sweep_dir: Path, data_dir: str | None, uri: str | None) -> None:
    """Raise ResourceError if a machine of the cluster does not share the results, or lacks the data."""
    for old in sweep_dir.glob(f"{_SHARED}*"):  # of a driver that was killed
        old.unlink(missing_ok=True)
    marker = sweep_dir.absolute() / f"{_SHARED}{time.time_ns()}"  # a new name: no machine has a copy
    marker.touch()
    data = [Path(data_dir)] if data_dir and Path(data_dir).exists() else []
    try:
        check_storage(data if uri else [marker, *data], uri)
    finally:
        marker.unlink(missing_ok=True)
