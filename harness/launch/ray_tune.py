"""Runs trials side by side under Ray Tune. The only module that imports Ray; ray_tasks.py has it from here.

Ray places trials and retries those whose worker died; it keeps nothing that matters. A trial's own folder is the truth,
and a retry, or a later run of the same sweep, goes on from the checkpoint there. On several machines the results
directory must therefore lie on storage that all of them share.
"""

import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

os.environ.update(
    {
        "RAY_AIR_NEW_OUTPUT": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C stops the command instead of ending each trial as if it were done
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # workers use this very environment; Ray would pack and rebuild it
        # A worker runs many trials, each in a thread of its own. An arena a thread would keep what ended trials had
        # (seen: 7 GB for 4 of them), and `kept_memory` speeds up the first arena alone.
        "MALLOC_ARENA_MAX": "1",
    }
    | os.environ
)

import ray
import torch
from ray import tune
from ray.tune import FailureConfig, RunConfig, TuneConfig, Tuner
from ray.tune.progress_reporter import TrialProgressCallback

from harness.clock import OutOfTime
from harness.environment import source_digest
from harness.errors import InputError
from harness.memory import free_memory
from harness.storage import folder, names
from harness.training import run_folder
from harness.training.trial import REPEATED

MAX_RETRIES = 2
HOPELESS = (InputError, *REPEATED)  # trying again at once repeats them


class ResourceError(InputError):
    """What trials ask for is not there; Ray would leave them waiting for ever."""


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


def train_folder(config: dict[str, Any]) -> None:
    """What a worker runs: the trial whose folder is config's `directory`, on as many threads as it was given CPUs and
    in its share of a GPU's memory."""
    directory = Path(config["directory"])
    if folder.stop_file(directory).exists():
        return
    given = ray.get_runtime_context().get_assigned_resources()
    torch.set_num_threads(max(1, int(given.get("CPU", 1))))
    if (share := given.get("GPU", 0)) > 0:
        if not torch.cuda.is_available():
            raise RuntimeError(f"trial {directory.name} was given a GPU that torch does not see")
        torch.cuda.set_per_process_memory_fraction(min(1.0, share))  # the rest is of those it shares the GPU with
    with suppress(*HOPELESS, OutOfTime):  # failure.json tells; or the sweep is asked to stop
        run_folder(directory, tune.report, config["data_dir"], _report_judged, config.get("code"))
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


def cluster_has_gpu(address: str) -> bool:
    """Whether the Ray cluster at `address` has a GPU."""
    with cluster(address) as resources:
        return resources.get("GPU", 0) > 0


def run_folders(
    folders: list[Path],
    data_dir: str | None,
    cpu: int,
    gpu: float,
    storage: Path,
    on_report: Callable[[Path, dict[str, Any]], None],
    on_end: Callable[[Path, str | None], None],
    address: str | None = None,
    worker: Callable[[dict[str, Any]], None] = train_folder,
) -> None:
    """Run the trial of every folder (each with its trial.json), as many at a time as fit.

    on_report: told a trial's folder and an epoch's row, or how many images are judged, and of how many.
    cpu, gpu: what each trial reserves; trials with a fraction of a GPU share it. storage: where Ray may keep its own
    state meanwhile. address: of a running cluster; else one is started here, unless this process has Ray up already.
    Returns when all have ended, well or not: their folders tell.
    Raises ResourceError where CUDA is there and Ray does not see it, or no machine has what a trial asks for.
    """
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    with cluster(address) as resources:
        check_resources(resources, cpu, gpu)
        directories = tune.grid_search([str(place.absolute()) for place in folders])
        tuner = Tuner(
            tune.with_resources(worker, {"cpu": cpu, "gpu": gpu}),
            param_space={"directory": directories, "data_dir": data_dir, "code": source_digest()},
            tune_config=TuneConfig(reuse_actors=True, trial_name_creator=_name, trial_dirname_creator=_name),
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


def check_resources(resources: dict[str, float], cpu: int, gpu: float) -> None:
    """Raise ResourceError where a piece of work would wait for ever."""
    if torch.cuda.is_available() and not resources.get("GPU", 0):
        raise ResourceError(
            "torch sees a GPU on this machine and Ray does not; look at CUDA_VISIBLE_DEVICES and at the cluster's start"
        )
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    for name, wanted in (("CPU", cpu), ("GPU", gpu)):
        if not any(wanted <= machine.get(name, 0) for machine in machines):
            raise ResourceError(
                f"a trial asks for {wanted:g} {name} and Ray has {resources.get(name, 0):g}; "
                "lower `resources` in the sweep file"
            )


@contextmanager
def cluster(address: str | None) -> Iterator[dict[str, float]]:
    """Ray's resources; Ray is started and stopped again unless it was up already."""
    started = not ray.is_initialized()
    if started:
        dashboard = None if address else False
        try:
            ray.init(address or "local", include_dashboard=dashboard, logging_level=logging.ERROR, log_to_driver=False)
        except ConnectionError as error:
            raise ResourceError(f"no Ray cluster answers at {address}: {error}") from None
    try:
        yield ray.cluster_resources()
    finally:
        if started:
            ray.shutdown()
