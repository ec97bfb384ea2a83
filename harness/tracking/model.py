"""A trial's network as an MLflow model, and the best one of a sweep in the model registry."""

import json
import shutil
from collections.abc import Collection
from pathlib import Path
from platform import python_version
from tempfile import TemporaryDirectory
from typing import Any

from harness.evaluation import served
from harness.storage import folder, names
from harness.tracking.client import MlflowClient, entities, mlflow

BEST = "best"  # the alias of a registered model's version
_DIGEST_TAG = "result"  # of which result the model is the network
_NAME, _DATA = "network", "data"
_READY = entities.LoggedModelStatus.READY


def log_network(client: MlflowClient, run: entities.Run, place: Path, digest: str) -> None:
    """Log the network of the finished trial in a folder with its run, where it is not there, or is of another result.

    digest: of the result.
    """
    if not (place / folder.WEIGHTS).exists():
        return
    run_id, experiment_id = run.info.run_id, run.info.experiment_id
    for known in _models(client, run):
        if known.status == _READY and known.tags.get(_DIGEST_TAG) == digest:
            return
        client.delete_logged_model(known.model_id)
    made = client.create_logged_model(experiment_id, _NAME, run_id, tags={_DIGEST_TAG: digest})
    with TemporaryDirectory() as directory:
        _write(Path(directory), place, made.model_id, run_id)
        client.log_model_artifacts(made.model_id, directory)
    client.log_outputs(run_id, [entities.LoggedModelOutput(made.model_id, 0)])
    client.finalize_logged_model(made.model_id, _READY)


def _models(client: MlflowClient, run: entities.Run) -> list[entities.LoggedModel]:
    return client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run.info.run_id}'")


def _write(directory: Path, place: Path, model_id: str, run_id: str) -> None:
    (directory / _DATA).mkdir()
    for name in (folder.TRIAL, folder.WEIGHTS):
        shutil.copy(place / name, directory / _DATA)
    model = mlflow.models.Model(model_id=model_id, run_id=run_id)
    model.add_flavor("python_function", loader_module=served.__name__, data=_DATA, python_version=python_version())
    model.save(str(directory / "MLmodel"))


def register_best(client: MlflowClient, sweep: str, runs: Collection[entities.Run]) -> str | None:
    """Register the network of the best of these runs as the model `sweep`, with the alias `best`; returns its address.

    The best has the lowest certified error, then the lowest standard error. None where no run has a network.
    A network is registered once.
    """
    errors = names.CERTIFIED_ERROR, names.STANDARD_ERROR
    finished = [run for run in runs if run.info.status == "FINISHED" and run.data.metrics.keys() >= set(errors)]
    best = min(finished, key=lambda run: [run.data.metrics[name] for name in errors], default=None)
    model = next((model for model in _models(client, best) if model.status == _READY), None) if best else None
    if best is None or model is None:
        return None
    known = client.search_registered_models(f"name = '{sweep}'")
    registered = known[0] if known else client.create_registered_model(sweep, description=served.__doc__)
    source, run_id = model.artifact_location, best.info.run_id
    versions = [made for made in client.search_model_versions(f"name = '{sweep}'") if made.source == source]
    if not versions:
        versions = [client.create_model_version(sweep, source, run_id, _told_of(best), model_id=model.model_id)]
    if str(registered.aliases.get(BEST)) != str(versions[0].version):
        client.set_registered_model_alias(sweep, BEST, str(versions[0].version))
    return f"models:/{sweep}@{BEST}"


def _told_of(run: entities.Run) -> dict[str, Any]:
    """What a version's tags say of it."""
    stages = ",".join(json.loads(run.data.params["evaluation.stages"]))
    told = {"eps": run.data.params["eps"], "stages": stages, "trial": run.data.tags["trial"]}
    return {names.CERTIFIED_ERROR: f"{run.data.metrics[names.CERTIFIED_ERROR]:g}", **told}
