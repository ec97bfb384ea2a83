"""A network as an MLflow model, runs:/<run>/network, and the best one of a sweep in the model registry.

`mlflow.pyfunc.log_model` is not used: it sets the tracking URI of the whole process and of its children.
"""

import math
from pathlib import Path
from platform import python_version

from harness.common import names
from harness.storage import folder
from harness.tracking.client import MlflowClient, entities, models

_LOADER = "harness.evaluation.served"


def log_network(client: MlflowClient, run_id: str, network_dir: Path) -> None:
    """Log a trained network with its run, over one that was logged before."""
    flavors = {"python_function": {"loader_module": _LOADER, "python_version": python_version()}}
    client.log_text(run_id, models.Model(run_id=run_id, flavors=flavors).to_yaml(), "network/MLmodel")
    for name in (folder.TRAINING, folder.WEIGHTS):
        client.log_artifact(run_id, str(network_dir / name), "network")


def register_best(client: MlflowClient, sweep: str, runs: list[entities.Run]) -> None:
    """Register the network of the run with the lowest errors, once, as the model `sweep` with the alias `best`."""
    errors = names.CERTIFIED_ERROR, names.STANDARD_ERROR
    finished = [run for run in runs if all(math.isfinite(run.data.metrics.get(name, math.nan)) for name in errors)]
    finished = [run for run in finished if client.list_artifacts(run.info.run_id, "network")]
    for best in sorted(finished, key=lambda run: [run.data.metrics[name] for name in errors])[:1]:
        if not client.search_registered_models(f"name = '{sweep}'"):
            client.create_registered_model(sweep, description=f"To load it, see {_LOADER}.")
        versions = [
            each for each in client.search_model_versions(f"name = '{sweep}'") if each.run_id == best.info.run_id
        ]
        source = f"{best.info.artifact_uri}/network"
        version = versions[0] if versions else client.create_model_version(sweep, source, best.info.run_id)
        client.set_registered_model_alias(sweep, "best", str(version.version))
