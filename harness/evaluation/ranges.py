"""The evaluation of a network's images: range by range, then joined.

A range of images is evaluated on its own, by any worker, and saved in one file. A command that was killed goes on from
the ranges that exist, and in a range from the answers of branch and bound (`stages.py`). `plan_ranges` divides the
images; the rest divides the images of one range:

- single images, after an error or a timeout that the images of a range would share (`Ledger.answers`);
- what fits into the cache or the memory, in each bound (cerdeq/bounds/batch_sizes.py).

Numbers of an image depend on the other images of its range by rounding alone.
"""

import hashlib
import json
import logging
import math
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from io import BytesIO
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors.torch import save_file
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from baselines import build
from baselines.datasets import Dataset
from cerdeq.equilibrium import NotConvergedError
from harness.attacks.objectives import objectives
from harness.common import names
from harness.common.errors import require
from harness.config.plugins import load_for
from harness.config.training import Training
from harness.data import Data, Split, load
from harness.evaluation import equilibria
from harness.evaluation.equilibria import Recurrence
from harness.evaluation.ibp import average_rows
from harness.evaluation.ledger import Proofs
from harness.evaluation.metrics import final_metrics, finite_or_none, warnings
from harness.evaluation.network import PreparedNetwork, load_network, prepare_network
from harness.evaluation.taken_over import Answers, find_answers, find_contradictions
from harness.evaluation.verdicts import EvaluationResult, evaluate_images, refuse_contradictions
from harness.machine.device import best_device
from harness.machine.environment import describe_environment
from harness.settings import EVALUATION_VERSION, Evaluation
from harness.storage import folder, ranges
from harness.storage.files import DamagedFileError, parse_file, remove_unfinished, write_atomically, write_bytes
from harness.storage.parquet import write_table
from harness.storage.ranges import range_path, search_path
from harness.storage.records import Result, TrainingRecord
from harness.storage.state import State, count_wrongly_right, read_state

_log = logging.getLogger(__name__)

_OPERATIONS = {"cpu": 4e11, "cuda": 2e14}
"""Of a range's attack: about as many as one thread of a CPU, or a GPU, computes in ten seconds."""
_FEWEST = 20  # images of a range
_BAB_SECONDS, _BAB_SHARE, _NO_LIMIT = 1200.0, 0.05, 300.0
"""Of a range: the time that branch and bound takes, if it gets this share of the images; an image without limit."""


def plan_ranges(config: Training, evaluation: Evaluation, count: int, device: str) -> list[range]:
    """Return the ranges of images: a batch of them each, or fewer where the attack or branch and bound is slow.

    A range is what a worker evaluates at a time, what a kill loses but for branch and bound's answers, and a step of
    progress. It does not depend on the speed of the machine. The network need not be trained.

    count: of all images. device: on which they are evaluated, "cpu" or "cuda".
    """
    starts = evaluation.attack_restarts * len(objectives(evaluation.attack, config.data_info.classes))
    network = config.model, config.width, json.dumps(config.options, sort_keys=True), config.data_info
    operations = 3 * evaluation.attack_steps * starts * _operations(*network)
    size = min(evaluation.batch_size, max(_FEWEST, int(_OPERATIONS[device] / operations)))
    if names.BAB in evaluation.stages:
        size = min(size, max(1, int(_BAB_SECONDS / (_BAB_SHARE * (evaluation.bab_seconds or _NO_LIMIT)))))
    return [range(first, min(first + size, count)) for first in range(0, count, size)]


@lru_cache(maxsize=256)
@torch.no_grad()
def _operations(model: str, width: float, options: str, data: Dataset) -> int:
    """Return how many operations a network takes for an image; a gradient takes two more. options: JSON."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # how many iterations an equilibrium takes follows from its weights
        network = build(model, data, width, **json.loads(options)).eval()
    with FlopCounterMode(display=False) as counter, suppress(NotConvergedError):
        network(torch.zeros(1, *data.shape))
    return max(1, counter.get_total_flops())


def evaluate_range(
    record: TrainingRecord, network_dir: Path, evaluation: Evaluation, images: range, report: names.Report,
    data_dir: str | None,
) -> None:  # fmt: skip
    """Evaluate a range of images with the trained network in a folder, unless that is done, and write its file.

    report: then called with the numbers of evaluated and of all images. data_dir: as --data-dir.

    Raises InputError for fewer images than the evaluation asks for, and if weights or data are others; SoundnessError
    as `evaluate_images` does.
    """
    opened = _open(record, network_dir, evaluation, data_dir)
    if opened is None or _is_saved(opened.ranges_dir, images):
        return
    _log.debug("evaluating images %d to %d: %s", images.start, images.stop - 1, evaluation.description)
    opened.evaluate_range(images)
    evaluated, at = sum(map(len, ranges.saved_ranges(opened.ranges_dir))), str(evaluation.eps)
    report({names.EVALUATED: evaluated, names.IMAGES: len(opened.images), names.EVALUATION_EPS: at})


def join(record: TrainingRecord, network_dir: Path, evaluation: Evaluation, data_dir: str | None) -> None:
    """Join the ranges of an evaluation and write its files, the result last, unless that is done.

    Raises SettingError if ranges are missing, DamagedFileError if one cannot be read, and SoundnessError if an
    evaluation that has ended meanwhile contradicts this one.
    """
    if (opened := _open(record, network_dir, evaluation, data_dir)) is None:
        return
    remove_unfinished(opened.directory)
    result = opened.finish()
    for message in result.warnings:
        _log.debug("warning: %s", message)
    _log.debug("done: certified error %.2f %%", result.metrics[names.CERTIFIED_ERROR])


def _open(
    record: TrainingRecord, network_dir: Path, evaluation: Evaluation, data_dir: str | None
) -> "OpenEvaluation | None":  # fmt: skip
    """Return the evaluation of the trained network in a folder; None if it has a result."""
    load_for(record.config)
    trained_at = (network_dir / folder.WEIGHTS).stat().st_mtime_ns
    if read_state(folder.evaluation_dir(network_dir, evaluation)).state is State.FINISHED:
        return None
    return _open_cached(network_dir, evaluation.model_dump_json(), data_dir, trained_at)


@lru_cache(maxsize=1)  # ranges of one evaluation follow each other
def _open_cached(network_dir: Path, evaluation: str, data_dir: str | None, trained_at: int) -> "OpenEvaluation | None":
    config = folder.read_training(network_dir / folder.TRAINING).config
    return open_evaluation(network_dir, Evaluation.model_validate_json(evaluation), load(config.data_source, data_dir))


def _device_of(network: nn.Module) -> torch.device:
    return next(network.parameters()).device


@dataclass(frozen=True)
class OpenEvaluation:
    """An evaluation of a network that is under way.

    directory: its folder. weights: their SHA-256. images: all that are evaluated. ranges_dir: where ranges of these are
    saved that were evaluated with these weights, data, device and versions. others: other evaluations of the network.
    """

    training: TrainingRecord
    evaluation: Evaluation
    directory: Path
    weights: str
    images: Split
    data: dict[str, Any]
    environment: dict[str, str]
    network: PreparedNetwork
    ranges_dir: Path
    others: list[Answers]

    def evaluate_range(self, images: range) -> None:
        """Evaluate a range of the images, and write its file. Raises SoundnessError as `evaluate_images` does."""
        self.ranges_dir.mkdir(parents=True, exist_ok=True)
        part, device = self.images.part(images.start, images.stop), _device_of(self.network.model)
        x, labels, seed = part.images.to(device), part.labels.to(device), self.training.config.seed
        share = len(images) / len(self.images)
        result = evaluate_images(
            self.network, x, labels, images.start, self.evaluation, seed, self.others, share, self.ranges_dir
        )
        content = BytesIO()
        fields = {"verdicts": result.verdicts.to_dict("list"), "recurrence": asdict(result.recurrence)}
        torch.save({**vars(result), **fields}, content)
        write_bytes(range_path(self.ranges_dir, images), content.getvalue())
        for image in images:
            search_path(self.ranges_dir, image).unlink(missing_ok=True)

    def finish(self) -> Result:
        """Join the ranges and write the files of the evaluation, the result last.

        Raises as `join` does.
        """
        network_dir = folder.network_of(self.directory)
        trained = folder.read_trained(network_dir)
        assert trained is not None
        saved = ranges.saved_ranges(self.ranges_dir)
        whole = [number for images in saved for number in images] == list(range(len(self.images)))
        allowed = f"all {len(self.images)}; data, devices or versions may differ between machines"
        require("evaluated images", f"{sum(map(len, saved))} in {self.ranges_dir}", whole, allowed)
        joined = join_ranges([read_range(self.ranges_dir, images) for images in saved])
        others = find_answers(network_dir, self.evaluation, self.weights)
        refuse_contradictions(find_contradictions(self.evaluation, joined.verdicts, others))
        info = self.training.config.data_info
        seconds = {names.EVALUATION_SECONDS: sum(joined.seconds.values())}
        own = final_metrics(joined, self.evaluation.stages) | joined.recurrence.metrics() | seconds
        metrics = trained.metrics | finite_or_none(own)
        taken_over = joined.verdicts[names.TAKEN_FROM].value_counts().drop("", errors="ignore").to_dict()
        result = Result(
            key=f"{self.training.key}/{self.evaluation.key}",
            metrics=metrics,
            environment=self.environment,
            data=self.data,
            warnings=warnings(joined, metrics, info) + trained.warnings,
            weights=self.weights,
            taken_over={str(key): int(count) for key, count in taken_over.items()},
        )
        _write_proofs(self.directory, joined.proofs)
        write_table(self.directory / folder.VERDICTS, joined.verdicts)
        folder.write_result(self.directory, result)
        (self.directory / folder.FAILURE).unlink(missing_ok=True)
        ranges.remove_ranges(self.directory)
        return result


def open_evaluation(network_dir: Path, evaluation: Evaluation, data: Data) -> OpenEvaluation | None:
    """Return an evaluation of the trained network in a folder, after making its own; None if it has a result.

    Raises InputError for fewer images than it asks for, and if the weights cannot be read or are others.
    """
    weights, digest = folder.read_trained_weights(network_dir)
    directory = folder.begin_evaluation(network_dir, evaluation, digest)
    if (result := folder.read_result(directory)) is not None:
        if not count_wrongly_right(directory, folder.read_evaluation(directory), result):
            return None
        (directory / folder.RESULT).unlink()
    training = folder.read_training(network_dir / folder.TRAINING)
    allowed = f"{training.fingerprint}, that of the network's training"
    require("data", data.fingerprint, data.fingerprint == training.fingerprint, allowed)
    config, device = training.config, best_device()
    images = evaluated_images(data, config.validation_images, evaluation)
    environment = describe_environment(device)
    trained = folder.read_trained(network_dir)
    trained_on = trained.environment.get("device") if trained else None
    if trained_on not in (None, environment["device"]):
        environment["trained_on"] = trained_on
    model = load_network(config, network_dir / folder.WEIGHTS, weights).to(device)
    inputs = [digest, training.fingerprint, evaluation.key, EVALUATION_VERSION, config.seed, environment]
    digest_of_inputs = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]
    return OpenEvaluation(
        training=training,
        evaluation=evaluation,
        directory=directory,
        weights=digest,
        images=images,
        data=data.summary(),
        environment=environment,
        network=prepare_network(model, evaluation.stages, config.data_info.classes),
        ranges_dir=ranges.ranges_dir(directory, digest_of_inputs),
        others=find_answers(network_dir, evaluation, digest),
    )


def evaluated_images(data: Data, validation_images: int, evaluation: Evaluation) -> Split:
    """Return the images of an evaluation. validation_images: of the training. Raises InputError for too few images."""
    is_there = evaluation.split == "test" or validation_images > 0
    require("split", evaluation.split, is_there, "'test', since training held out no images")
    return data.evaluated_images(validation_images if evaluation.split == "validation" else 0, evaluation.test_images)


def _is_saved(ranges_dir: Path, images: range) -> bool:
    with suppress(DamagedFileError):
        read_range(ranges_dir, images)
        return True
    return False


def read_range(ranges_dir: Path, images: range) -> EvaluationResult:
    """Return the evaluation of a range. Raises DamagedFileError if there is none that can be read."""

    def parse(content: bytes) -> EvaluationResult:
        fields: dict[str, Any] = torch.load(BytesIO(content), weights_only=True)  # no code in the file runs
        if fields["verdicts"][names.INDEX] != list(images):
            raise ValueError("it holds other images")
        recurrence = Recurrence(**fields["recurrence"])
        return EvaluationResult(**fields | {"verdicts": pd.DataFrame(fields["verdicts"]), "recurrence": recurrence})

    return parse_file(range_path(ranges_dir, images), parse)


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
        recurrence=equilibria.join([result.recurrence for result in results]),
    )


def _pool(moments: list[tuple[float, float]], counts: list[int]) -> tuple[float, float]:
    """Return the mean and deviation of all numbers from those of each range; NaN if a range has NaN."""
    shares = [count / sum(counts) for count in counts]
    centre = sum(share * mean for share, (mean, _) in zip(shares, moments, strict=True))
    squares = (spread**2 + (mean - centre) ** 2 for mean, spread in moments)
    return centre, math.sqrt(sum(share * square for share, square in zip(shares, squares, strict=True)))
