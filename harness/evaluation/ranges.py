"""The evaluation of a trial's images, at the end of its training and by `harness.certify`: range by range, then joined.

A range of images is evaluated on its own and saved in one file. A command that was killed goes on from the ranges that
exist. `plan_ranges` divides the images; the rest divides the images of one range:

- single images, after an error or a timeout that the images of a range would share (`Ledger.answers`);
- what fits into the cache or the memory, in each bound (cerdeq/bounds/batch_sizes.py).

Numbers of an image depend on the other images of its range by rounding alone.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors.torch import save_file
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from cerdeq.equilibrium import NotConvergedError
from harness.attacks.objectives import objectives
from harness.common import names
from harness.config.trial import Trial
from harness.data import Split
from harness.evaluation.ibp import average_rows
from harness.evaluation.ledger import Proofs
from harness.evaluation.metrics import final_metrics, finite_or_none, warnings
from harness.evaluation.network import PreparedNetwork
from harness.evaluation.verdicts import EvaluationResult, evaluate_images
from harness.settings import Evaluation
from harness.storage import folder
from harness.storage.files import DamagedFileError, parse_file, write_atomically, write_bytes
from harness.storage.parquet import write_table
from harness.storage.ranges import range_path

_OPERATIONS = {"cpu": 4e11, "cuda": 2e14}
"""Of a range's attack: about as many as one thread of a CPU, or a GPU, computes in ten seconds."""
_FEWEST = 20  # images of a range
_BAB_SECONDS, _BAB_SHARE = 1200.0, 0.05
"""Of a range: the time that branch and bound takes, if it gets this share of the images."""


def plan_ranges(images: Split, network: nn.Module, classes: int, settings: Evaluation) -> list[range]:
    """Return the ranges of images: a batch of them each, or fewer where the attack or branch and bound is slow.

    A range is what a worker of `harness.certify` evaluates at a time, what a kill loses, and a step of progress. It
    does not depend on the speed of the machine.
    """
    starts = settings.attack_restarts * len(objectives(settings.attack, classes))
    operations = 3 * settings.attack_steps * starts * _operations(network, images.images.shape[1:])
    size = min(settings.batch_size, max(_FEWEST, int(_OPERATIONS[_device_of(network).type] / operations)))
    if names.BAB in settings.stages and settings.bab_seconds is not None:
        size = min(size, max(1, int(_BAB_SECONDS / (_BAB_SHARE * settings.bab_seconds))))
    return [range(first, min(first + size, len(images))) for first in range(0, len(images), size)]


@torch.no_grad()
def _operations(network: nn.Module, shape: torch.Size) -> int:
    """Return how many operations the network takes for an image; a gradient takes two more."""
    with FlopCounterMode(display=False) as counter, suppress(NotConvergedError):
        network(torch.zeros(1, *shape, dtype=torch.float64, device=_device_of(network)))
    return max(1, counter.get_total_flops())


def _device_of(network: nn.Module) -> torch.device:
    return next(network.parameters()).device


def hash_inputs(weights: bytes, key: str, config: Trial, environment: Mapping[str, str]) -> str:
    """Return 16 hex digits of a hash of all that verdicts follow from.

    key: of the trial, a hash of its data, too. config: with the settings of this evaluation. environment: as
    `describe_environment` returns it.
    """
    content = json.dumps([key, config.canonical(), dict(environment)], sort_keys=True)
    return hashlib.sha256(weights + content.encode()).hexdigest()[:16]


def limit_branch_and_bound(config: Trial, used: float) -> Trial:
    """Return the config for the next range, after branch and bound has used so many seconds of a trial's limit."""
    limit = config.evaluation.bab_trial_seconds
    if limit is None:
        return config
    return config.replace(evaluation=config.evaluation.replace(bab_trial_seconds=max(0.0, limit - used)))


def evaluate_range(
    ranges_dir: Path, images: range, network: PreparedNetwork, split: Split, config: Trial
) -> EvaluationResult:
    """Evaluate a range of the images of a split, and write its file.

    Raises SoundnessError if an example is both certified and falsified.
    """
    device = _device_of(network.model)
    part = split.part(images.start, images.stop)
    result = evaluate_images(network, part.images.to(device), part.labels.to(device), images.start, config)
    content = BytesIO()
    torch.save({**vars(result), "verdicts": result.verdicts.to_dict("list")}, content)
    write_bytes(range_path(ranges_dir, images), content.getvalue())
    return result


def read_range(ranges_dir: Path, images: range) -> EvaluationResult:
    """Return the evaluation of a range. Raises DamagedFileError if there is none that can be read."""

    def parse(content: bytes) -> EvaluationResult:
        fields: dict[str, Any] = torch.load(BytesIO(content), weights_only=True)  # no code in the file runs
        if fields["verdicts"][names.INDEX] != list(images):
            raise ValueError("it holds other images")
        return EvaluationResult(**fields | {"verdicts": pd.DataFrame(fields["verdicts"])})

    return parse_file(range_path(ranges_dir, images), parse)


def saved_ranges(ranges_dir: Path, planned: list[range]) -> dict[range, EvaluationResult]:
    """Return the evaluations that can be read."""
    saved = {}
    for images in planned:
        with suppress(DamagedFileError):
            saved[images] = read_range(ranges_dir, images)
    return saved


def missing_ranges(ranges_dir: Path, planned: list[range]) -> list[range]:
    """Return the ranges that are left to evaluate."""
    saved = saved_ranges(ranges_dir, planned)
    return [images for images in planned if images not in saved]


def finish_evaluation(
    directory: Path, ranges_dir: Path, planned: list[range], config: Trial, further: Mapping[str, float | None]
) -> tuple[dict[str, float | None], list[str]]:
    """Join the ranges, write verdicts and proofs to a directory, and return metrics and warnings.

    further: metrics that do not follow from the verdicts. Raises DamagedFileError if a range cannot be read.
    """
    evaluation = join_ranges([read_range(ranges_dir, images) for images in planned])
    _write_proofs(directory, evaluation.proofs)
    write_table(directory / folder.VERDICTS, evaluation.verdicts)
    seconds = {names.EVALUATION_SECONDS: sum(evaluation.seconds.values())}
    metrics = finite_or_none(final_metrics(evaluation, config.evaluation.stages) | seconds) | dict(further)
    return metrics, warnings(evaluation, metrics, config.data_info)


def _write_proofs(directory: Path, proofs: Proofs) -> None:
    """Write counterexamples to their file and, if there are any, certificates to theirs; else none of before stay."""
    points = {name: tensor for name, tensor in proofs.items() if "/" not in name}
    write_atomically(directory / folder.COUNTEREXAMPLES, partial(save_file, points))
    (directory / folder.CERTIFICATES).unlink(missing_ok=True)
    if certificates := {name: tensor for name, tensor in proofs.items() if "/" in name}:
        write_atomically(directory / folder.CERTIFICATES, partial(save_file, certificates))


def join_ranges(results: list[EvaluationResult]) -> EvaluationResult:
    """Return the evaluation of the images of all ranges."""
    counts = [len(result.verdicts) for result in results]
    centre, spread = _pool([(result.clean_mean, result.clean_spread) for result in results], counts)
    return EvaluationResult(
        verdicts=pd.concat([result.verdicts for result in results], ignore_index=True),
        layers=average_rows([result.layers for result in results], counts),
        clean_mean=centre,
        clean_spread=spread,
        seconds=pd.DataFrame([result.seconds for result in results]).sum().to_dict(),
        proofs={name: tensor for result in results for name, tensor in result.proofs.items()},
    )


def _pool(moments: list[tuple[float, float]], counts: list[int]) -> tuple[float, float]:
    """Return the mean and deviation of all numbers from those of each range; NaN if a range has NaN."""
    shares = [count / sum(counts) for count in counts]
    centre = sum(share * mean for share, (mean, _) in zip(shares, moments, strict=True))
    squares = (spread**2 + (mean - centre) ** 2 for mean, spread in moments)
    return centre, math.sqrt(sum(share * square for share, square in zip(shares, squares, strict=True)))
