"""Trial folders made again from an MLflow store: what tables need of them, without the machine that trained them.

trial.json, result.json and verdicts.parquet are the files that were logged, byte for byte. epochs.jsonl is written anew
from metrics' histories: values that were not finite are missing. What certifications found is not in MLflow.
"""

import json
from collections import defaultdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from harness.errors import InputError
from harness.masking import masked
from harness.storage import folder, names
from harness.storage.files import write_atomically, write_text
from harness.storage.lease import locked
from harness.tracking.client import (
    MlflowClient,
    TrackingError,
    entities,
    experiment_of,
    failures,
    located,
    read_store,
    runs_of,
)
from harness.tracking.store import ERROR_TAG


def restore(directory: Path, uri: str) -> None:
    """Make the folders of all trials of the experiment that is called like `directory`, whatever of them is missing.

    Raises InputError where the store or the experiment is not there, or the directory holds anything else.
    """
    uri, sweep = located(uri), directory.resolve().name
    client = read_store(uri)
    try:
        with failures(uri):
            runs = runs_of(client, experiment_of(client, sweep).experiment_id)
            trials = {run.data.tags["trial"]: run for run in reversed(runs) if "trial" in run.data.tags}  # newest last
            if not trials:
                raise InputError(f"the experiment {sweep!r} in {masked(uri)} has no trials")
            _refuse_others(directory, set(trials))
            with locked(directory):
                for key, run in trials.items():
                    _restore(client, run, folder.place(directory, key))
    except TrackingError as error:
        raise InputError(str(error)) from None


def _refuse_others(directory: Path, trials: set[str]) -> None:
    held = {place.name for place in folder.trial_folders(directory)}
    free = not directory.exists() or (directory.is_dir() and all(path.name == ".lock" for path in directory.iterdir()))
    if not held and not free:
        raise InputError(f"{directory} is neither empty nor absent, and holds no trials: name another")
    if others := sorted(held - trials):
        raise InputError(f"{directory} holds trials that MLflow does not have: {', '.join(others)}; name another")


def _restore(client: MlflowClient, run: entities.Run, place: Path) -> None:
    run_id = run.info.run_id
    logged = {file.path for file in client.list_artifacts(run_id)}
    with TemporaryDirectory() as downloads:
        for name in (folder.TRIAL, folder.VERDICTS, folder.RESULT, folder.CHOSEN):
            if name in logged:
                _put(place / name, Path(client.download_artifacts(run_id, name, downloads)).read_bytes())
    if not (place / folder.EPOCHS).exists() and (rows := _epochs(client, run)):
        write_text(place / folder.EPOCHS, "".join(json.dumps(row) + "\n" for row in rows))
    if ERROR_TAG in run.data.tags and folder.RESULT not in logged:
        folder.write_failure(place, run.data.tags[ERROR_TAG])


def _put(path: Path, content: bytes) -> None:
    """Write a file that is not there. Raises InputError where another is."""
    if path.exists() and path.read_bytes() != content:
        raise InputError(f"{path} is not what MLflow has: name another directory")
    if not path.exists():
        write_atomically(path, lambda temporary: temporary.write_bytes(content))


def _epochs(client: MlflowClient, run: entities.Run) -> list[dict[str, Any]]:
    rows: dict[int, dict[str, Any]] = defaultdict(dict)
    for name in sorted(name for name in run.data.metrics if name.startswith(names.in_training(""))):
        for point in client.get_metric_history(run.info.run_id, name):
            rows[point.step][name] = point.value
    return [{names.EPOCH: epoch, **rows[epoch]} for epoch in sorted(rows)]
