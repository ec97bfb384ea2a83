"""One trial from config to result: train, save, evaluate. Needs neither Ray nor MLflow."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from cerdeq.equilibrium import fold
from cerdeq.errors import is_out_of_memory
from cerdeq.precision import counted_rounding
from harness.common import names
from harness.common.errors import require
from harness.config.plugins import load_for
from harness.config.trial import Trial
from harness.data import Data, Split, load
from harness.evaluation.equilibria import recurrence_report
from harness.evaluation.ledger import SoundnessError
from harness.evaluation.metrics import finite_or_none, missing_classes
from harness.evaluation.network import load_network, prepare_network
from harness.evaluation.ranges import (
    evaluate_range,
    finish_evaluation,
    hash_inputs,
    limit_branch_and_bound,
    plan_ranges,
    saved_ranges,
)
from harness.machine.device import best_device
from harness.machine.environment import describe_environment, source_digest
from harness.machine.freed_memory import free_memory, reuse_freed_memory
from harness.pretrained.weights import read_weights
from harness.storage import folder, ranges, training_record
from harness.storage.files import read_bytes, remove_unfinished, write_atomically
from harness.storage.training_record import log_to_folder
from harness.training.checkpoint import SAVE_SECONDS, Clock
from harness.training.loop import NonFiniteLossError, Report
from harness.training.monitor import parametrisation_metrics
from harness.training.smaller_batches import describe_smaller_batches, train_within_memory

_log = logging.getLogger(__name__)

DETERMINISTIC_ERRORS = (NonFiniteLossError, SoundnessError)
"""Errors of a trial itself: it would end with them on any machine."""


def train_and_certify(
    trial: Trial,
    directory: Path,
    report: Report = lambda row: None,
    data_dir: str | None = None,
    save_seconds: float = SAVE_SECONDS,
    code: str | None = None,
) -> folder.TrialResult:
    """Train and evaluate a trial in its folder `directory`, and return the result; go on from what is saved there.

    The folder of a network that was trained elsewhere must hold its checkpoint (`folder.copy_network_file`).

    Args:
        report: called with each epoch's row, then with the numbers of evaluated and of all images, {"evaluated": ...,
            "images": ...}, before the first range of the evaluation and after each. Before steps are compiled, it is
            called with {"activity": ...}. An exception that it raises ends the trial.
        data_dir: as --data-dir.
        save_seconds: how long after a checkpoint the next one is saved, at the end of an epoch.
        code: the `source_digest()` of the machine that asks for it.

    Raises:
        SettingError: the folder holds another trial, the data or a plugin has changed, or the code here is another one.
        InputError, NonFiniteLossError, SoundnessError: these and any other error also leave failure.json.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with _log_and_record_failure(directory):
        if code is not None:
            own = source_digest()
            require("code", own, own == code, f"the driver's, {code}: the same version on every machine")
        load_for(trial)
        data = load(trial.data_source, data_dir)
        record = folder.make_trial(trial, data.fingerprint)
        folder.take_over(directory, record)
        remove_unfinished(directory)
        if (result := folder.read_result(directory)) is None:
            with reuse_freed_memory():
                result = _train_and_evaluate(record, data, directory, report, Clock(save_seconds))
            folder.write_result(directory, result)
        (directory / folder.FAILURE).unlink(missing_ok=True)  # last: a trial counts as failed until it is done
        (directory / folder.TRAINING_WARNINGS).unlink(missing_ok=True)
        ranges.remove_ranges(directory)
        return result


def split_images(trial: Trial, data: Data) -> tuple[Split, Split]:
    """Return the images that the trial is trained on, none if that was elsewhere, and those that it is evaluated on.

    Raises InputError if there are fewer than the trial asks for.
    """
    evaluated = data.evaluated_images(trial.validation_images, trial.trial_image_count)
    if trial.is_trained_elsewhere:
        return data.train.part(0, 0), evaluated
    training = data.training_images(trial.train_images, trial.validation_images)
    batch, available = trial.train.batch_size, len(training)
    require("train.batch_size", batch, batch <= available, f"at most the {available} training images")
    return training, evaluated


@contextmanager
def _log_and_record_failure(trial_dir: Path) -> Iterator[None]:
    """Write a log file within the block, and failure.json for an error."""
    with log_to_folder(trial_dir):
        try:
            yield
        except Exception as error:
            message, repeats = f"{type(error).__name__}: {error}", isinstance(error, DETERMINISTIC_ERRORS)
            if is_out_of_memory(error):
                message = f"out of memory; on a GPU, raise resources.gpu: {message}"
            with suppress(OSError):  # of a full disk, say
                folder.write_failure(trial_dir, message, getattr(error, "last_finite", None), repeats)
            raise


def _train_and_evaluate(
    record: folder.TrialRecord, data: Data, trial_dir: Path, report: Report, clock: Clock
) -> folder.TrialResult:
    training, test = split_images(record.config, data)
    device = best_device()
    with counted_rounding(device.type):
        pass  # raises InexactProductsError now rather than after training
    environment = describe_environment(device)
    _log.debug("%s: %s", record.config.label, environment)
    if record.config.is_trained_elsewhere:
        network_metrics = _copy_weights(record.config, trial_dir)
    else:
        network_metrics = _train(record.config, training, trial_dir, device, report, clock)
    free_memory()
    devices = training_record.read_lines(trial_dir / folder.TRAINED_ON)
    if devices not in ([], [environment["device"]]):
        environment["trained_on"] = ", ".join(devices)
    metrics, messages = _evaluate(record, test, trial_dir, device, environment, network_metrics, report)
    if len(training):
        messages = missing_classes(training.labels.tolist(), "training images", data.info) + messages
    return folder.TrialResult(record.key, metrics, environment, data.summary(), [*data.warnings, *messages])


def _train(
    trial: Trial, images: Split, trial_dir: Path, device: torch.device, report: Report, clock: Clock
) -> dict[str, float]:
    """Train, fold parametrisations and write the weights; return metrics of the network before it is folded."""

    def log_and_report(row: dict[str, Any]) -> None:
        if names.EPOCH in row:
            _log.debug("%s", ", ".join(f"{name} {value:.5g}" for name, value in row.items() if value is not None))
        report(row)

    trained = train_within_memory(trial, images.images, images.labels, trial_dir, device, log_and_report, clock)
    metrics = parametrisation_metrics(trained)
    metrics[names.PARAMETERS] = sum(parameter.numel() for parameter in trained.parameters())
    fold(trained.eval())
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in trained.state_dict().items()}
    write_atomically(trial_dir / folder.WEIGHTS, lambda path: save_file(state, path))
    return metrics


def _copy_weights(trial: Trial, trial_dir: Path) -> dict[str, float]:
    """Write the weights of a network trained elsewhere, from the checkpoint in its folder; return its metrics."""
    state = read_weights(trial_dir / folder.NETWORK_FILE, trial)
    write_atomically(trial_dir / folder.WEIGHTS, lambda path: save_file(state, path))
    model = load_network(trial, trial_dir / folder.WEIGHTS)
    return {names.PARAMETERS: sum(parameter.numel() for parameter in model.parameters())}


def _evaluate(
    record: folder.TrialRecord,
    test: Split,
    trial_dir: Path,
    device: torch.device,
    environment: dict[str, str],
    network_metrics: dict[str, float],
    report: Report,
) -> tuple[dict[str, float | None], list[str]]:
    """Evaluate the network whose weights the folder holds, write verdicts and proofs, return metrics and warnings."""
    trial, path = record.config, trial_dir / folder.WEIGHTS
    _log.debug("evaluating %d images by %s", len(test), ", ".join(trial.evaluation.stages))
    weights = read_bytes(path)
    model = load_network(trial, path, weights).to(device)
    network = prepare_network(model, trial.evaluation.stages)
    planned = plan_ranges(test, model, trial.data_info.classes, trial.evaluation)
    ranges_dir = ranges.ranges_dir(trial_dir, hash_inputs(weights, record.key, trial, environment))
    ranges.begin_ranges(ranges_dir)
    saved = saved_ranges(ranges_dir, planned)
    used = sum(evaluation.seconds.get(names.BAB, 0.0) for evaluation in saved.values())
    done = sum(map(len, saved))
    report({names.EVALUATED: done, names.IMAGES: len(test)})
    try:
        for images in [images for images in planned if images not in saved]:
            evaluation = evaluate_range(ranges_dir, images, network, test, limit_branch_and_bound(trial, used))
            used += evaluation.seconds.get(names.BAB, 0.0)
            done += len(images)
            report({names.EVALUATED: done, names.IMAGES: len(test)})
    except SoundnessError:
        ranges.remove_ranges(trial_dir)
        raise
    started, epochs = time.monotonic(), training_record.read_epochs(trial_dir)
    of_recurrence = recurrence_report(model, test.images.to(device), test.labels.to(device), trial)
    further = finite_or_none(network_metrics | of_recurrence)
    metrics, messages = finish_evaluation(trial_dir, ranges_dir, planned, trial, further)
    metrics[names.TRAIN_SECONDS] = sum(row.get(names.TRAIN_EPOCH_SECONDS, 0.0) for row in epochs)
    metrics[names.EVALUATION_SECONDS] = (metrics[names.EVALUATION_SECONDS] or 0.0) + time.monotonic() - started
    messages += [
        *describe_smaller_batches(trial, epochs),
        *training_record.read_lines(trial_dir / folder.TRAINING_WARNINGS),
    ]
    for message in messages:
        _log.debug("warning: %s", message)
    _log.debug("done: certified error %.2f %%", metrics[names.CERTIFIED_ERROR])
    return metrics, messages
