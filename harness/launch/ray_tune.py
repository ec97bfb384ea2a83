"""Runs trials side by side under Ray Tune.

Ray places trials and retries those whose worker died; it keeps nothing that matters. A trial's own folder is the truth,
and a retry, or a later run of the same sweep, goes on from the checkpoint there. On several machines the results
directory must therefore lie on storage that all of them share, or at an address, where workers exchange it.
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
from harness.launch.shared import is_stopped, run_at
from harness.memory import free_memory
from harness.search.rungs import CANDIDATE, run_candidate
from harness.storage import folder, names
from harness.training import run_folder
from harness.training.trial import REPEATED

LOG = "ray.log"
_SHARED = ".shared-"
HOPELESS = (InputError, *REPEATED)  # trying again at once repeats them


class _Reporter(TrialProgressCallback):
    """Passes on what trials report, and that one has ended, instead of what Tune would print."""

    def __init__(self, on_report: Callable[[Path, dict[str, Any]], None], on_end: Callable[[Path, str | None], None]):
        self.on_report, self.on_end = on_report, on_end

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles callbacks into its own state, which we never restore; live tables and clients stay here."""
        return {}

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Tune received a row."""
        self.on_report(_folder(trial), result)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A worker returned."""
        self.on_end(_folder(trial), None)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A worker died, or raised, for the last time."""
        self.on_end(_folder(trial), f"its worker failed {MAX_RETRIES + 1} times: {_reason(trial)}")


class _Supply(Searcher):
    """Asks for a folder whenever one more trial fits, until there is none."""

    def __init__(self, supply: Callable[[], Path | None]):
        super().__init__()
        self.supply = supply

    def __getstate__(self) -> dict[str, Any]:
        """Tune keeps no state of it: folders are the truth."""
        return {}

    def suggest(self, trial_id: str) -> Any:
        """The next trial's config."""
        place = self.supply()
        return Searcher.FINISHED if place is None else {"directory": str(place.absolute())}

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        """Who supplies folders reads in them what came of them."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing is kept."""


def train_folder(config: dict[str, Any]) -> None:
    """What a worker runs: the trial whose folder is config's `directory`, or called so at config's `uri`, on as many
    threads as it was given CPUs and in its share of a GPU's memory."""
    directory, uri = Path(config["directory"]), config.get("uri")
    if is_stopped(uri) if uri else folder.stop_file(directory).exists():
        return
    given = ray.get_runtime_context().get_assigned_resources()
    torch.set_num_threads(max(1, int(given.get("CPU", 1))))
    take_share(given.get("GPU", 0))
    told, code = (tune.report, config["data_dir"], _report_judged), config.get("code")
    with suppress(*HOPELESS, Stopped):  # failure.json tells; or the sweep is asked to stop
        if uri:
            run_at(uri, directory.name, *told, code=code)
        elif (directory / CANDIDATE).exists():
            run_candidate(directory, *told, code=code)
        else:
            run_folder(directory, *told, code=code)
    free_memory()


def _report_judged(done: int, images: int) -> None:
    tune.report({names.JUDGED: done, names.IMAGES: images})


def _folder(trial: Any) -> Path:
    return Path(trial.config["directory"])


def _name(trial: Any) -> str:
    return _folder(trial).name


def _reason(trial: Any) -> str:
    """The last error of a worker, in a line; Tune's own message says only when it was."""
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
    """Run the trial of every folder (each with its trial.json), as many at a time as fit.

    folders: all of them, or what gives the next one when one more fits, and None when there is none left.
    on_report: told a trial's folder and an epoch's row, or how many images are judged, and of how many.
    cpu, gpu: what each trial reserves; trials with a fraction of a GPU share it. storage: where Ray may keep its own
    state meanwhile; what it prints goes to ray.log beside it. address: of a running cluster; else one is started here,
    unless this process has Ray up already. at_once: no more trials than that at a time. uri: of the sweep, where its
    folders are shared by address; workers then need none of these.
    Returns when all have ended, well or not: their folders tell.
    Raises ResourceError where CUDA is there and Ray does not see it, no machine has what a trial asks for, or one of a
    cluster's does not have the trials' files.
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
            tuning = {"search_alg": _Supply(folders), "num_samples": -1}
            tuning["max_concurrent_trials"] = min(fitting, at_once or fitting)
        else:
            space["directory"] = tune.grid_search([str(place.absolute()) for place in folders])
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


def _check_storage(results: Path, data_dir: str | None, uri: str | None) -> None:
    """Raise ResourceError where a machine of the cluster does not share the results, or lacks the data."""
    for old in results.glob(f"{_SHARED}*"):  # of a driver that was killed
        old.unlink(missing_ok=True)
    marker = results.absolute() / f"{_SHARED}{time.time_ns()}"  # which no machine can have a copy of
    marker.touch()
    data = [Path(data_dir)] if data_dir and Path(data_dir).exists() else []
    try:
        check_storage(data if uri else [marker, *data], uri)
    finally:
        marker.unlink(missing_ok=True)
