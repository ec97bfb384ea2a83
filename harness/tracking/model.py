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
_LOADER = "harness.evaluation.served"
_DESCRIPTION = f"""The best network of a sweep. To load it, install this project, and the plugins that the trial names:

    network = mlflow.pyfunc.load_model("models:/cifar10@best")
    logits = network.predict(images)        # NumPy, [N, C, H, W] with pixels in [0, 1] -> [N, classes], float64

See {_LOADER}.
"""
_READY = entities.LoggedModelStatus.READY


def log_network(client: MlflowClient, experiment_id: str, run_id: str, trial_dir: Path) -> None:
    """Log the network of a finished trial with its run, in place of one that was logged before."""
    if not (trial_dir / folder.WEIGHTS).exists():
        return
    for logged in _models(client, experiment_id, run_id):
        client.delete_logged_model(logged.model_id)
    model_id = client.create_logged_model(experiment_id, "network", run_id).model_id
    with TemporaryDirectory() as directory:
        (Path(directory) / "data").mkdir()
        for name in (folder.TRIAL, folder.WEIGHTS):
            shutil.copy(trial_dir / name, Path(directory) / "data")
        model = mlflow.models.Model(model_id=model_id, run_id=run_id)
        model.add_flavor("python_function", loader_module=_LOADER, data="data", python_version=python_version())
        model.save(str(Path(directory) / "MLmodel"))
        client.log_model_artifacts(model_id, directory)
    client.log_outputs(run_id, [entities.LoggedModelOutput(model_id, 0)])
    client.finalize_logged_model(model_id, _READY)


def register_best(client: MlflowClient, sweep: str, runs: Collection[entities.Run]) -> None:
    """Register the network of the best of these runs, once, as the model `sweep` with the alias `best`.

    The best run has the lowest certified error, then the lowest standard error. Without a network none is registered.
    """
    errors = names.CERTIFIED_ERROR, names.STANDARD_ERROR
    finished = [run for run in runs if run.info.status == "FINISHED" and run.data.metrics.keys() >= set(errors)]
    best = min(finished, key=lambda run: [run.data.metrics[name] for name in errors], default=None)
    own = _models(client, best.info.experiment_id, best.info.run_id) if best else []
    for model in [each for each in own if each.status == _READY][:1]:
        if not client.search_registered_models(f"name = '{sweep}'"):
            client.create_registered_model(sweep, description=_DESCRIPTION)
        source = model.artifact_location
        versions = [each for each in client.search_model_versions(f"name = '{sweep}'") if each.source == source]
        versions = versions or [
            client.create_model_version(sweep, source, model.source_run_id, model_id=model.model_id)
        ]
        client.set_registered_model_alias(sweep, BEST, str(versions[0].version))


def _models(client: MlflowClient, experiment_id: str, run_id: str) -> list[entities.LoggedModel]:
    return list(client.search_logged_models([experiment_id], f"source_run_id = '{run_id}'"))
