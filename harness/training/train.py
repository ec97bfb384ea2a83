"""One network from config to weights, in its folder. Needs neither Ray nor MLflow."""

import logging
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file, save_model

from cerdeq.bounds import Program
from cerdeq.equilibrium import fold
from cerdeq.precision import counted_rounding
from harness.common import names
from harness.common.errors import located, require
from harness.config.plugins import load_for
from harness.config.training import Training
from harness.data import Data, Split, load
from harness.evaluation.metrics import finite_or_none, missing_classes
from harness.evaluation.network import load_network
from harness.machine.device import best_device
from harness.machine.environment import describe_environment
from harness.methods import make_teacher
from harness.pretrained.weights import read_weights
from harness.storage import folder, training_progress
from harness.storage.files import remove_unfinished, write_atomically
from harness.storage.records import Result, TrainingRecord, make_record
from harness.training import loop
from harness.training.checkpoint import SAVE_SECONDS, Clock
from harness.training.monitor import parametrisation_metrics

_log = logging.getLogger(__name__)


def train(
    record: TrainingRecord,
    network_dir: Path,
    report: names.Report = lambda row: None,
    data_dir: str | None = None,
    save_seconds: float = SAVE_SECONDS,
) -> Result:
    """Train a network in its folder, unless it is trained, and return the result; go on from what is saved there.

    The folder of a network that was trained elsewhere must hold its checkpoint (`folder.copy_network_file`).

    Args:
        report: called with each epoch's row. Before and after steps are compiled, it is called with {"activity": ...}.
            An exception that it raises ends the training.
        data_dir: as --data-dir.
        save_seconds: how long after a checkpoint the next one is saved, at the end of an epoch.

    Raises:
        InputError: the folder holds another network, the data or a plugin has changed, the data has fewer images than
            the training asks for, or its teacher is not trained.
        NonFiniteLossError: the loss became infinite or NaN.
    """
    load_for(record.config)
    data = load(record.config.data_source, data_dir)
    folder.begin_network(network_dir, make_record(record.config, data.fingerprint))
    remove_unfinished(network_dir)
    with counted_rounding(best_device().type):
        pass  # raises InexactProductsError now rather than after training
    if (trained := folder.read_trained(network_dir)) is not None and (network_dir / folder.WEIGHTS).exists():
        (network_dir / folder.FAILURE).unlink(missing_ok=True)  # of an earlier attempt
        return trained
    (network_dir / folder.TRAINED).unlink(missing_ok=True)  # of weights that are lost: new ones may differ
    config, images, device = record.config, training_images(record.config, data), best_device()
    environment = describe_environment(device)
    _log.debug("%s: %s", config.label, environment)
    if config.is_trained_elsewhere:
        metrics, environment = _copy_weights(config, network_dir), {}
    else:
        teacher = _load_teacher(record, network_dir, device)
        metrics = _train(config, images, network_dir, device, report, Clock(save_seconds), teacher)
        environment["device"] = ", ".join(training_progress.read_lines(network_dir / folder.TRAINED_ON))
        decisions = training_progress.read_decisions(network_dir)
        assert decisions is not None
        environment["steps"] = f"{'compiled' if decisions.compile else 'eager'}, {decisions.precision}"
    epochs = training_progress.read_epochs(network_dir)
    metrics[names.TRAIN_SECONDS] = sum(row.get(names.TRAIN_EPOCH_SECONDS, 0.0) for row in epochs)
    missing = missing_classes(images.labels.tolist(), "training images", data.info) if len(images) else []
    warnings = [*data.warnings, *missing]
    warnings += training_progress.read_lines(network_dir / folder.TRAINING_WARNINGS)
    for message in warnings:
        _log.debug("warning: %s", message)
    result = Result(record.key, finite_or_none(metrics), environment, data.summary(), warnings)
    folder.write_trained(network_dir, result)
    for name in (folder.TRAINING_WARNINGS, folder.FAILURE):
        (network_dir / name).unlink(missing_ok=True)
    return result


def check_images(config: Training, data: Data) -> None:
    """Raise InputError if there are fewer images than a network's training, or its teacher's, asks for."""
    training_images(config, data)
    if config.own_teacher is not None:
        with located("method_options.teacher."):
            training_images(config.own_teacher, data)


def training_images(config: Training, data: Data) -> Split:
    """Return the images that a network is trained on, none if that was elsewhere.

    Raises InputError if there are fewer than the training asks for.
    """
    if config.is_trained_elsewhere:
        data.held_out_images(config.validation_images)
        return data.train.part(0, 0)
    images = data.training_images(config.train_images, config.validation_images)
    batch, available = config.train.batch_size, len(images)
    require("train.batch_size", batch, batch <= available, f"at most the {available} training images")
    return images


def _load_teacher(record: TrainingRecord, network_dir: Path, device: torch.device) -> Program | None:
    """Load the trained teacher, whose folder lies beside the network's; None for a method without one."""
    if (training := record.config.own_teacher) is None:
        return None
    directory = network_dir.with_name(training.key(record.fingerprint))
    failure = folder.read_failure(directory)
    found = f"{training.label}, untrained{f': {failure.error}' if failure else ''}"
    require("teacher", found, folder.is_trained(directory), f"a trained network in {directory}")
    load_for(training)
    path = directory / folder.WEIGHTS
    model = load_network(training, path, folder.read_trained_weights(directory)[0]).float()
    return make_teacher(model.to(device).to(memory_format=torch.channels_last))


def _train(
    config: Training, images: Split, network_dir: Path, device: torch.device, report: names.Report, clock: Clock,
    teacher: Program | None,
) -> dict[str, float]:  # fmt: skip
    """Train, fold parametrisations and write the weights; return metrics of the network before it is folded."""

    def log_and_report(row: dict[str, Any]) -> None:
        if names.EPOCH in row:
            _log.debug("%s", ", ".join(f"{name} {value:.5g}" for name, value in row.items() if value is not None))
        report(row)

    on_device = images.images.to(device), images.labels.to(device)
    trained = loop.train(config, *on_device, network_dir, log_and_report, clock, teacher)
    metrics = parametrisation_metrics(trained)
    metrics[names.PARAMETERS] = sum(parameter.numel() for parameter in trained.parameters())
    fold(trained.eval())
    write_atomically(network_dir / folder.WEIGHTS, lambda path: save_model(trained, str(path)))
    return metrics


def _copy_weights(config: Training, network_dir: Path) -> dict[str, float]:
    """Write the weights of a network trained elsewhere, from the checkpoint in its folder; return its metrics."""
    state = read_weights(network_dir / folder.NETWORK_FILE, config)
    write_atomically(network_dir / folder.WEIGHTS, lambda path: save_file(state, path))
    model = load_network(config, network_dir / folder.WEIGHTS)
    return {names.PARAMETERS: sum(parameter.numel() for parameter in model.parameters())}
