"""One trial from config to result: train, fold, save, judge. Needs neither Ray nor MLflow nor pydantic."""

import hashlib
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from cerdeq.bounds.memory import is_out_of_memory
from cerdeq.equilibrium import FixedPoint, fold
from harness.clock import Clock
from harness.config.plugins import load_for
from harness.config.trial import TrialConfig
from harness.data import Data, Split, load
from harness.device import best_device
from harness.environment import describe_environment, source_digest
from harness.errors import require
from harness.evaluation.equilibria import recurrence_report
from harness.evaluation.evidence import write_evidence
from harness.evaluation.kept import KeptBatches
from harness.evaluation.metrics import final_metrics, finite_or_none, warnings
from harness.evaluation.network import load_network
from harness.evaluation.verdicts import SoundnessError, judge
from harness.memory import free_memory, kept_memory
from harness.storage import folder, names
from harness.storage.files import remove_unfinished, write_atomically
from harness.storage.parquet import write_table
from harness.training.log import logged
from harness.training.loop import NonFiniteLossError, train
from harness.training.monitor import parametrised
from harness.training.out_of_memory import divides

_log = logging.getLogger(__name__)

REPEATED = (NonFiniteLossError, SoundnessError)
"""Errors that the same trial would end with again."""

Report = Callable[[dict[str, Any]], None]
Judged = Callable[[int, int], None]
_SPLIT = 2  # what parts of a batch are divided by where memory runs out


def run_trial(
    config: TrialConfig,
    directory: Path,
    report: Report = lambda row: None,
    data_dir: str | None = None,
    judged: Judged = lambda done, images: None,
    clock: Clock | None = None,
) -> folder.TrialResult:
    """Train and evaluate `config` in its folder `directory`, going on from what is kept there.

    report: called with each epoch's row. data_dir: as --data-dir. judged: called with how many images are judged, and
    of how many, before the first batch and after each. clock: when to stop and when to keep what is done; by default
    never, and twice a minute. A finished folder's result is returned as it is.
    Raises SettingError where the folder holds another trial or a plugin is another, DataError, NonFiniteLossError and
    SoundnessError; any error in training or evaluation also leaves failure.json. Raises Stopped as the clock says.
    """
    load_for(config)
    data = load(config.dataset, data_dir)
    trial = folder.make_trial(config, data.fingerprint)
    folder.claim(directory, trial)
    with _failure_written(directory), logged(Path(directory)):
        return _finished(trial, data, Path(directory), report, judged, clock or Clock())


def run_folder(
    directory: Path,
    report: Report,
    data_dir: str | None,
    judged: Judged = lambda done, images: None,
    until: int | None = None,
    code: str | None = None,
    asked: Callable[[], bool] | None = None,
) -> folder.TrialResult:
    """`run_trial` of the trial that has claimed the folder; whatever goes wrong leaves failure.json.

    until: an epoch to stop after. code: the source_digest() of who asks for it, where that may be another machine.
    asked: whether the sweep is asked to stop; by default the file in its directory says so.
    Raises Stopped there, and where the sweep is asked to stop, SettingError where the code here is another.
    """
    with _failure_written(directory), logged(directory):
        if code is not None:
            own = source_digest()
            require("code", own, own == code, f"the driver's, {code}: the same version on every machine")
        trial = folder.read_trial(directory / folder.TRIAL)
        load_for(trial.config)
        data = load(trial.config.dataset, data_dir)
        fits = data.fingerprint == trial.fingerprint
        require("data", data.fingerprint, fits, f"the data this trial was made for, {trial.fingerprint}")
        clock = Clock(asked=asked or folder.stop_file(directory).exists, until=until)
        return _finished(trial, data, directory, report, judged, clock)


@contextmanager
def _failure_written(directory: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        said, repeats = f"{type(error).__name__}: {error}", isinstance(error, REPEATED)
        with suppress(OSError):  # of a full disk, say, or a folder that is gone
            folder.require_there(directory)
            folder.write_failure(directory, said, getattr(error, "last_finite", None), repeats)
        raise


def _finished(
    trial: folder.Trial, data: Data, directory: Path, report: Report, judged: Judged, clock: Clock
) -> folder.TrialResult:
    """The trial's result, from its folder or by work that begins where it stopped."""
    remove_unfinished(directory)
    if (result := folder.read_result(directory)) is None:
        with kept_memory():
            result = _run(trial, data, directory, report, judged, clock)
        folder.write_result(directory, result)
    (directory / folder.FAILURE).unlink(missing_ok=True)  # last: a trial that once failed is known until it is done
    for name in (folder.JUDGED, folder.PREVIOUS, folder.WITHOUT):
        (directory / name).unlink(missing_ok=True)
    return result


def _run(
    trial: folder.Trial, data: Data, directory: Path, report: Report, judged: Judged, clock: Clock
) -> folder.TrialResult:
    config = trial.config
    device = best_device()
    environment = describe_environment(device)
    _log.debug("%s: %s", config.label, ", ".join(f"{name} {value}" for name, value in environment.items()))
    training, held_out = data.training_images(config.train_images, config.validation_images)
    test = held_out or data.test_images(config.evaluation.test_images)
    batch, available = config.train.batch_size, len(training.images)
    require("batch_size", batch, batch <= available, f"at most the {available} training images")
    before_folding = _train(config, training, directory, device, _also_logged(report), clock)
    free_memory()
    _log.debug("judging %d images by %s", len(test), ", ".join(config.evaluation.stages))

    weights = directory / folder.WEIGHTS
    judged_alike = [trial.key, *environment.values()]
    digest = hashlib.sha256(weights.read_bytes() + "\n".join(judged_alike).encode()).hexdigest()
    model = load_network(config, weights).to(device)
    images, labels = test.images.to(device), test.labels.to(device)
    kept = KeptBatches(directory / folder.JUDGED, digest, len(images), device, clock, judged)
    try:
        judgement = judge(model, images, labels, config, kept)
    except SoundnessError:
        (directory / folder.JUDGED).unlink(missing_ok=True)
        raise
    folder.require_there(directory)
    write_evidence(directory, judgement.evidence)
    write_table(directory / folder.VERDICTS, judgement.verdicts)
    if any(isinstance(module, FixedPoint) for module in model.modules()):
        clock.check()
    started, rows = time.monotonic(), folder.read_epochs(directory)
    metrics = {
        **final_metrics(judgement, config.evaluation.stages),
        **before_folding,
        **recurrence_report(model, images, labels, config),
        names.TRAIN_SECONDS: sum(row.get(names.TRAIN_EPOCH_SECONDS, 0.0) for row in rows),
        names.EVALUATION_SECONDS: kept.seconds + time.monotonic() - started,
    }
    finite = finite_or_none(metrics)
    told = warnings(judgement, finite) + _divided_batches(config, rows) + folder.read_without(directory)
    for warning in told:
        _log.debug("warning: %s", warning)
    _log.debug("done: certified error %.2f %%", metrics[names.CERTIFIED_ERROR])
    return folder.TrialResult(trial.key, finite, environment, data.summary(), told)


def _also_logged(report: Report) -> Report:
    """Each epoch's numbers in the log, too."""

    def told(row: dict[str, Any]) -> None:
        numbers = ", ".join(f"{name} {value:.5g}" for name, value in row.items() if value is not None)
        _log.debug("%s", numbers)
        report(row)

    return told


def _train(
    config: TrialConfig, training: Split, directory: Path, device: torch.device, report: Report, clock: Clock
) -> dict[str, float]:
    """Train, fold and write the weights; what is known of the network before it is folded."""
    trained = _trained(config, training, directory, device, report, clock)
    found = parametrised(trained)
    found[names.PARAMETERS] = sum(parameter.numel() for parameter in trained.parameters())
    fold(trained.eval())
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in trained.state_dict().items()}
    write_atomically(directory / folder.WEIGHTS, lambda path: save_file(state, path))
    return found


def _trained(
    config: TrialConfig, training: Split, directory: Path, device: torch.device, report: Report, clock: Clock
) -> torch.nn.Sequential:
    """The trained network; where memory runs out, once more from the checkpoint with every part of a batch divided."""
    given = config, training.images, training.labels, directory, device, report, clock
    if not _divided_batches(config, folder.read_epochs(directory)):
        try:
            return train(*given)
        except RuntimeError as error:
            if not (is_out_of_memory(error) and divides(config, _SPLIT)):
                raise
        free_memory()  # here, where the error no longer holds what it ran out with
    return train(*given, split=_SPLIT)


def _divided_batches(config: TrialConfig, rows: list[dict[str, Any]]) -> list[str]:
    """The warning that epochs had their batches in more parts than the recipe says; none where they had not."""
    parts = [row[names.TRAIN_ACCUMULATE] for row in rows if names.TRAIN_ACCUMULATE in row]
    usual = config.train.accumulate
    return [f"accumulate {parts[-1]} instead of {usual} after running out of memory"] if parts else []
