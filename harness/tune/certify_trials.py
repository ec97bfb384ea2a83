"""Evaluate finished trials by other stages, as `harness.certify` does: each range of images is an item of work."""

import sys
from collections import Counter
from contextlib import ExitStack
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from harness.common import names
from harness.common.errors import InputError
from harness.common.masking import mask_secrets
from harness.common.terminal import one_line, say
from harness.config import plugins
from harness.data import load
from harness.evaluation.ledger import SoundnessError
from harness.evaluation.network import PreparedNetwork, load_network, prepare_network
from harness.evaluation.ranges import evaluate_range, finish_evaluation, missing_ranges, read_range
from harness.machine.device import best_device
from harness.machine.environment import data_directory, device_name
from harness.machine.freed_memory import reuse_freed_memory
from harness.pretrained.network_file import digest_of
from harness.storage import certification, folder, ranges
from harness.storage.lock import lock_directory
from harness.storage.state import State, read_state
from harness.training.trial import Report
from harness.tune.certify_plan import Certification
from harness.tune.items import Item, run_items
from harness.tune.machines import share_machine
from harness.tune.progress import Progress

_UNSOUND = "unsound"  # in a report: which bound is wrong
_NETWORK_METRICS = (  # which a certification copies from its trial
    *(names.PARAMETERS, names.TRAIN_SECONDS, names.GAIN, names.MARGIN, names.RHO_BOUND),
    *(names.ITERATIONS, names.RESIDUAL, names.NOT_CONVERGED),
)


def certify(planned: list[Certification], data_dir: str | None, workers: int | None, console: Console) -> bool:
    """Evaluate the images that are left, and print what came of each trial; return True if all are complete.

    data_dir, workers: options of `harness.certify`. Raises InputError for a certification that another run works on.
    """
    with ExitStack() as locks:
        for each in planned:
            locks.enter_context(lock_directory(each.directory))
        unfinished = [each for each in planned if _begin(each, console)]
        if unfinished:
            console.print(f"device: {device_name(best_device())}")
        try:
            errors = _evaluate(unfinished, data_dir, workers, console)
        except SoundnessError as error:
            say(f"failed: a bound is wrong, and nothing here can be trusted: {error}", file=sys.stderr)
            return False
        for each in planned:
            for line in _describe_outcome(each, errors):
                console.print(f"{each.trial.label} -> {each.directory}: {line}")
    return not errors


def _begin(each: Certification, console: Console) -> bool:
    """Make the folder of a certification, and return whether it lacks a result of these weights."""
    is_new = certification.begin_certification(each.directory, each.record, digest_of(each.weights))
    is_unfinished = read_state(each.directory).state is not State.FINISHED
    if is_unfinished:
        is_new |= ranges.begin_ranges(each.ranges_dir)
    if is_new:
        message = "begun anew: what was there is of other weights, versions or another device"
        console.print(f"{each.trial.label} -> {each.directory}: {message}")
    return is_unfinished


def _evaluate(
    unfinished: list[Certification], data_dir: str | None, workers: int | None, console: Console
) -> dict[Path, str]:
    """Evaluate the missing ranges; return the first error of each certification that lacks some, by its folder.

    Raises SoundnessError at the first one of a range.
    """
    items = [
        Item(each.directory, each.trial.label, each.trial.model_dump(mode="json"), images)
        for each in unfinished
        for images in missing_ranges(each.ranges_dir, each.ranges)
    ]
    work = partial(evaluate_item, data_dir=str(data_directory(data_dir).absolute()))  # workers have another directory
    with _RangeListener(unfinished, items, console) as listener:
        run_items(items, work, listener, share_machine(len(items), workers))
    return listener.errors


class _RangeListener(Progress):
    """Counts verdicts, and writes the result of each certification after its last range.

    items: the ranges that these certifications still need.
    """

    def __init__(self, unfinished: list[Certification], items: list[Item], console: Console):
        super().__init__(console, "images", sum(item.size for item in items))
        self.by_directory = {each.directory: each for each in unfinished}
        self.missing = Counter(item.directory for item in items)
        self.verdicts, self.errors = Counter[str](), dict[Path, str]()
        self.unsound: str | None = None
        for each in unfinished:
            self.finish_if_complete(each)

    def on_report(self, item: Item, row: dict[str, Any]) -> None:
        """Show what an item does, and remember a wrong bound, after which nothing can be trusted."""
        super().on_report(item, row)
        self.unsound = self.unsound or row.get(_UNSOUND)

    def on_end(self, item: Item, error: str | None) -> None:
        """Count the verdicts of a range; after the last one, finish its certification. Raises SoundnessError."""
        if self.unsound:
            raise SoundnessError(self.unsound)
        if error is not None:
            self.errors.setdefault(item.directory, mask_secrets(error))
        else:
            assert item.images is not None
            each = self.by_directory[item.directory]
            self.verdicts.update(read_range(each.ranges_dir, item.images).verdicts[names.VERDICT])
            certified, falsified = self.verdicts[names.CERTIFIED], self.verdicts[names.FALSIFIED]
            undecided = sum(self.verdicts[kind] for kind in names.UNDECIDED)
            self.note = f"{certified:,} certified, {falsified:,} falsified, {undecided:,} undecided"
            self.missing[item.directory] -= 1
            self.finish_if_complete(each)
        self.end(item)

    def finish_if_complete(self, each: Certification) -> None:
        """Write the result of a certification that lacks no range."""
        if self.missing[each.directory]:
            return
        trained = folder.read_result(each.trial_dir)
        assert trained is not None
        copied = {name: value for name, value in trained.metrics.items() if name in _NETWORK_METRICS}
        metrics, warnings = finish_evaluation(each.directory, each.ranges_dir, each.ranges, each.trial, copied)
        result = folder.TrialResult(each.record.key, metrics, each.environment, each.data.summary(), warnings)
        folder.write_result(each.directory, result)
        ranges.remove_ranges(each.directory)


def evaluate_item(item: Item, report: Report, data_dir: str) -> dict[str, Any]:
    """Evaluate a range of a certification, on one thread. Raises as `evaluate_range` and `_open` do."""
    assert item.images is not None
    torch.set_num_threads(1)
    certified, network = _open(item.directory, data_dir)
    report({names.ACTIVITY: f"evaluates images {item.images.start} to {item.images.stop - 1}"})
    try:
        with reuse_freed_memory():
            evaluate_range(certified.ranges_dir, item.images, network, certified.images, certified.trial)
    except SoundnessError as error:
        report({_UNSOUND: str(error)})
        raise
    return {}


@lru_cache(maxsize=1)  # ranges of one certification follow each other
def _open(directory: Path, data_dir: str) -> tuple[Certification, PreparedNetwork]:
    """Return the certification in a folder, and its network.

    Raises InputError if this machine has other data, weights, devices or versions than the one of the command.
    """
    record = certification.read_record(directory)
    trial_dir = certification.trial_of(directory)
    plugins.load_for(record.config)
    certified = Certification(trial_dir, record, load(record.config.data_source, data_dir))
    if not certified.ranges_dir.is_dir() or certified.data.fingerprint != record.fingerprint:
        raise InputError(
            f"{certified.ranges_dir} is gone, or data, weights, devices or versions differ between machines"
        )
    model = load_network(record.config, trial_dir / folder.WEIGHTS, certified.weights).to(best_device())
    return certified, prepare_network(model, record.config.evaluation.stages)


def _describe_outcome(each: Certification, errors: dict[Path, str]) -> list[str]:
    """Return the error of a trial, or its certified error and warnings."""
    result = folder.read_result(each.directory)
    if result is None:
        return [f"failed: {errors[each.directory]}; what is evaluated is saved"]
    metrics = {name: float(value or 0) for name, value in result.metrics.items()}
    shares = {kind: metrics[names.share_of(kind)] for kind in names.UNDECIDED}
    undecided = ", ".join(f"{kind} {share:.2f}" for kind, share in shares.items() if share)
    summary = f"certified error {metrics[names.CERTIFIED_ERROR]:.2f} %, at least {metrics[names.ATTACK_ERROR]:.2f}"
    summary += f" (undecided: {undecided})" if undecided else ""
    return [summary, *(one_line(f"warning: {warning}") for warning in result.warnings)]
