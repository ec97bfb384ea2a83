"""A trial's network as an MLflow model, and the best one of a sweep in the model registry.

`mlflow.pyfunc.log_model` is not used: it needs an active run, whose status it changes, and sets the tracking URI of the
whole process, whose environment passes it on to all children.
"""

import shutil
from collections.abc import Collection
from pathlib import Path
from platform import python_version
from tempfile import TemporaryDirectory

from harness.common import names
from harness.storage import folder
from harness.tracking.client import MlflowClient, entities, mlflow

BEST = "best"  # the alias of a registered model's version
_NAME, _DATA = "network", "data"
_LOADER = "harness.evaluation.served"
_DESCRIPTION = f"""The best network of a sweep. To load it, install this project, and the plugins that the trial names:

    network = mlflow.pyfunc.load_model("models:/cifar10@best")
    logits = network.predict(images)        # NumPy, [N, C, H, W] with pixels in [0, 1] -> [N, classes], float64

See {_LOADER}.
"""
_READY = entities.LoggedModelStatus.READY


def log_network(client: MlflowClient, run: entities.Run, trial_dir: Path) -> None:
    """Log the network of a finished trial with its run, in place of one that was logged before."""
    if not (trial_dir / folder.WEIGHTS).exists():
        return
    run_id = run.info.run_id
    for logged in _models(client, run):
        client.delete_logged_model(logged.model_id)
    created = client.create_logged_model(run.info.experiment_id, _NAME, run_id)
    with TemporaryDirectory() as directory:
        (Path(directory) / _DATA).mkdir()
        for name in (folder.TRIAL, folder.WEIGHTS):
            shutil.copy(trial_dir / name, Path(directory) / _DATA)
        model = mlflow.models.Model(model_id=created.model_id, run_id=run_id)
        model.add_flavor("python_function", loader_module=_LOADER, data=_DATA, python_version=python_version())
        model.save(str(Path(directory) / "MLmodel"))
        client.log_model_artifacts(created.model_id, directory)
    client.log_outputs(run_id, [entities.LoggedModelOutput(created.model_id, 0)])
    client.finalize_logged_model(created.model_id, _READY)


def _models(client: MlflowClient, run: entities.Run) -> list[entities.LoggedModel]:
    return client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run.info.run_id}'")


def register_best(client: MlflowClient, sweep: str, runs: Collection[entities.Run]) -> str | None:
    """Register the network of the best of these runs, once, as the model `sweep` with the alias `best`.

    The best run has the lowest certified error, then the lowest standard error. Returns the model's address, None if no
    run has a network.
    """
    errors = names.CERTIFIED_ERROR, names.STANDARD_ERROR
    finished = [run for run in runs if run.info.status == "FINISHED" and run.data.metrics.keys() >= set(errors)]
    best = min(finished, key=lambda run: [run.data.metrics[name] for name in errors], default=None)
    model = next((each for each in _models(client, best) if each.status == _READY), None) if best else None
    if best is None or model is None:
        return None
    if not client.search_registered_models(f"name = '{sweep}'"):
        client.create_registered_model(sweep, description=_DESCRIPTION)
    source = model.artifact_location
    versions = [each for each in client.search_model_versions(f"name = '{sweep}'") if each.source == source]
    if not versions:
        versions = [client.create_model_version(sweep, source, best.info.run_id, model_id=model.model_id)]
    version = str(versions[0].version)
    if client.get_registered_model(sweep).aliases.get(BEST) != version:
        client.set_registered_model_alias(sweep, BEST, version)
    return f"models:/{sweep}@{BEST}"
