"""Restores trial folders from an MLflow store: what tables need, without the machine that trained the trials.

trial.json, result.json, verdicts.parquet and chosen.json are the files that were logged, byte for byte. epochs.jsonl is
made from the histories of metrics, without values that were not finite. Certifications are not in MLflow.
"""

import json
from collections import defaultdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from harness.common import names
from harness.common.errors import InputError
from harness.common.masking import mask_secrets
from harness.storage import folder
from harness.storage.files import write_bytes, write_text
from harness.storage.lock import LOCK, lock_directory
from harness.tracking.address import resolve_uri
from harness.tracking.client import (
    MlflowClient,
    all_runs,
    entities,
    find_experiment,
    open_store,
    tracking_errors,
)
from harness.tracking.store import ERROR_TAG


def restore(sweep_dir: Path, uri: str) -> None:
    """Restore what is missing of the trial folders of the experiment that has the directory's name.

    Raises InputError if the store or the experiment does not exist, or the directory holds anything else.
    """
    uri, sweep = resolve_uri(uri), sweep_dir.resolve().name
    client = open_store(uri)
    with tracking_errors(uri):
        runs = all_runs(client, find_experiment(client, sweep).experiment_id)
        trials = {run.data.tags["trial"]: run for run in reversed(runs) if "trial" in run.data.tags}  # newest last
        if not trials:
            raise InputError(f"the experiment {sweep!r} in {mask_secrets(uri)} has no trials")
        _refuse_others(sweep_dir, set(trials))
        with lock_directory(sweep_dir):
            for key, run in trials.items():
                _restore_trial(client, run, folder.trial_dir(sweep_dir, key))


def _refuse_others(sweep_dir: Path, trials: set[str]) -> None:
    """Raise InputError if the directory holds other files, or trials that are not among these keys."""
    present = {trial_dir.name for trial_dir in folder.trial_folders(sweep_dir)}
    if not present and sweep_dir.exists() and {path.name for path in sweep_dir.iterdir()} - {LOCK}:
        raise InputError(f"{sweep_dir} contains other files: choose an empty directory")
    if others := sorted(present - trials):
        raise InputError(f"{sweep_dir} holds trials that MLflow does not have: {', '.join(others)}; name another")


def _restore_trial(client: MlflowClient, run: entities.Run, trial_dir: Path) -> None:
    run_id = run.info.run_id
    logged = {file.path for file in client.list_artifacts(run_id)}
    with TemporaryDirectory() as downloads:
        for name in (folder.TRIAL, folder.VERDICTS, folder.RESULT, folder.CHOSEN):
            if name in logged:
                _write(trial_dir / name, Path(client.download_artifacts(run_id, name, downloads)).read_bytes())
    if not (trial_dir / folder.EPOCHS).exists() and (rows := _epochs(client, run)):
        write_text(trial_dir / folder.EPOCHS, "".join(json.dumps(row) + "\n" for row in rows))
    if ERROR_TAG in run.data.tags and folder.RESULT not in logged:
        folder.write_failure(trial_dir, run.data.tags[ERROR_TAG])


def _write(path: Path, content: bytes) -> None:
    """Write a file that does not exist. Raises InputError if it exists with another content."""
    if path.exists() and path.read_bytes() != content:
        raise InputError(f"{path} is not what MLflow has: name another directory")
    if not path.exists():
        write_bytes(path, content)


def _epochs(client: MlflowClient, run: entities.Run) -> list[dict[str, Any]]:
    rows: dict[int, dict[str, Any]] = defaultdict(dict)
    for name in sorted(name for name in run.data.metrics if name.startswith(names.in_training(""))):
        for point in client.get_metric_history(run.info.run_id, name):
            rows[point.step][name] = point.value
    return [{names.EPOCH: epoch, **rows[epoch]} for epoch in sorted(rows)]
