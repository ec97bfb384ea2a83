"""A network from config to verdicts, in its folder. Needs neither Ray nor MLflow."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

from cerdeq.errors import is_out_of_memory
from cerdeq.precision import counted_rounding
from harness.common import names
from harness.common.errors import require
from harness.config.plugins import line_in, load_for
from harness.config.training import Training
from harness.data import Data, load
from harness.evaluation.ledger import SoundnessError
from harness.evaluation.ranges import OpenEvaluation, open_evaluation
from harness.machine.device import best_device
from harness.machine.environment import source_digest
from harness.machine.freed_memory import free_memory, reuse_freed_memory
from harness.settings import Evaluation
from harness.storage import folder, ranges
from harness.storage.files import remove_unfinished
from harness.storage.records import make_record
from harness.storage.training_progress import log_to_folder
from harness.training.checkpoint import SAVE_SECONDS
from harness.training.loop import NonFiniteLossError, Report
from harness.training.train import train

_log = logging.getLogger(__name__)

DETERMINISTIC_ERRORS = (NonFiniteLossError, SoundnessError)
"""Errors of a network or an evaluation itself: it would end with them on any machine."""
_MOST_RANGES = 4
"""An evaluation of more ranges, or of several with branch and bound, is long: other workers take part in it."""


def train_and_evaluate(
    training: Training,
    evaluations: Sequence[Evaluation],
    network_dir: Path,
    report: Report = lambda row: None,
    data_dir: str | None = None,
    save_seconds: float = SAVE_SECONDS,
    code: str | None = None,
    leaves_long: bool = False,
) -> list[range]:
    """Train a network in its folder, unless it is trained, and evaluate it; go on from what is saved there.

    The evaluations are done in their order, since each takes over what those before it have proved.

    Args:
        report: as in `train`; then called with the numbers of evaluated and of all images, {"evaluated": ...,
            "images": ..., "evaluation_eps": ...}, before the first range of an evaluation and after each.
        data_dir: as --data-dir.
        save_seconds: as in `train`.
        code: the `source_digest()` of the machine that asks for it.
        leaves_long: begin the first long evaluation, and leave its ranges to `evaluate_range`.

    Returns:
        The ranges that are left of the first evaluation without a result, none if all have one. A further call goes on
        once they are evaluated.

    Raises:
        SettingError: the folder holds another network, the data or a plugin has changed, or the code here is another.
        InputError, NonFiniteLossError, SoundnessError: these and any other error also leave failure.json, in the folder
            of the network or of the evaluation.
    """
    network_dir.mkdir(parents=True, exist_ok=True)
    with reuse_freed_memory():
        with _log_and_record_failure(network_dir, training):
            if code is not None:
                own = source_digest()
                require("code", own, own == code, f"the driver's, {code}: the same version on every machine")
            load_for(training)
            data = load(training.data_source, data_dir)
            record = make_record(training, data.fingerprint)
            folder.begin_network(network_dir, record)
            remove_unfinished(network_dir)
            with counted_rounding(best_device().type):
                pass  # raises InexactProductsError now rather than after training
            train(record, data, network_dir, report, save_seconds)
            (network_dir / folder.FAILURE).unlink(missing_ok=True)
        free_memory()
        for evaluation in evaluations:
            directory = folder.evaluation_dir(network_dir, evaluation)
            directory.mkdir(parents=True, exist_ok=True)
            remove_unfinished(directory)
            with _log_and_record_failure(directory, training):
                missing = _evaluate(network_dir, evaluation, data, report, leaves_long)
            if missing:
                return missing
    return []


def _evaluate(
    network_dir: Path, evaluation: Evaluation, data: Data, report: Report, leaves_long: bool
) -> list[range]:  # fmt: skip
    """Evaluate a trained network and write the result, or return the ranges that are left to others."""
    if (opened := open_evaluation(network_dir, evaluation, data)) is None:
        return []
    ranges.begin_ranges(opened.ranges_dir)
    missing = opened.missing()
    is_long = len(missing) > (1 if names.BAB in evaluation.stages else _MOST_RANGES)
    if leaves_long and is_long:
        return missing
    total, left = len(opened.images), sum(map(len, missing))
    _log.debug("evaluating %s", evaluation.description)
    at = {names.EVALUATION_EPS: str(evaluation.eps), names.IMAGES: total}
    report({names.EVALUATED: total - left, **at})
    for images in missing:
        opened.evaluate_range(images)
        left -= len(images)
        report({names.EVALUATED: total - left, **at})
    result = opened.finish()
    for message in result.warnings:
        _log.debug("warning: %s", message)
    _log.debug("done: certified error %.2f %%", result.metrics[names.CERTIFIED_ERROR])
    return []


def evaluate_range(
    training: Training, evaluation: Evaluation, network_dir: Path, images: range, data_dir: str | None
) -> None:  # fmt: skip
    """Evaluate a range that `train_and_evaluate` has left.

    Raises InputError if this machine has other data, weights, devices or versions than the one that began.
    SoundnessError, and any other error, also leaves failure.json.
    """
    load_for(training)
    directory = folder.evaluation_dir(network_dir, evaluation)
    with _log_and_record_failure(directory, training), reuse_freed_memory():
        opened = _open(network_dir, evaluation.model_dump_json(), data_dir)
        assert opened is not None, "its ranges are joined after the last one"
        found = str(opened.ranges_dir)
        allowed = "a folder that exists: data, weights, devices or versions differ between machines"
        require("ranges", found, opened.ranges_dir.is_dir(), allowed)
        opened.evaluate_range(images)


@lru_cache(maxsize=1)  # ranges of one evaluation follow each other
def _open(network_dir: Path, evaluation: str, data_dir: str | None) -> OpenEvaluation | None:
    training = folder.read_training(network_dir / folder.TRAINING).config
    data = load(training.data_source, data_dir)
    return open_evaluation(network_dir, Evaluation.model_validate_json(evaluation), data)


@contextmanager
def _log_and_record_failure(directory: Path, training: Training) -> Iterator[None]:
    """Write a log file within the block, and failure.json for an error; with the line of a plugin that raised it."""
    with log_to_folder(directory):
        try:
            yield
        except Exception as error:
            message, repeats = f"{type(error).__name__}: {error}", isinstance(error, DETERMINISTIC_ERRORS)
            if is_out_of_memory(error):
                message = f"out of memory; raise train.accumulate, or on a GPU resources.gpu: {message}"
            if line := line_in(training.plugins, error):
                message += f"{line}; the log: {directory / folder.LOG}"
            with suppress(OSError):  # of a full disk, say
                folder.write_failure(directory, message, getattr(error, "last_finite", None), repeats)
            raise
