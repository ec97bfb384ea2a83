"""The evaluation of a trial's or a certification's images in parts that end in seconds.

Numbers of an image depend on the other images of its part by rounding alone.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save_file
from torch.utils.flop_counter import FlopCounterMode

from cerdeq.bounds.ibp import values_of
from cerdeq.bounds.memory import bytes_per_example
from cerdeq.operators.interval import Context, Interval
from harness.common import names
from harness.common.errors import require
from harness.data import Data, Split, load
from harness.evaluation.batch import write_proofs
from harness.evaluation.ibp import average_rows, sum_rows
from harness.evaluation.metrics import final_metrics, finite_or_none, warnings
from harness.evaluation.network import PreparedNetwork, load_network, prepare_network
from harness.evaluation.verdicts import Evaluation, evaluate_part
from harness.machine.device import best_device
from harness.machine.environment import describe_environment
from harness.machine.memory import reuse_freed_memory
from harness.settings import STAGES, EvaluationSettings
from harness.storage import certification, folder
from harness.storage.certification import Certification
from harness.storage.files import DamagedFileError, read_bytes
from harness.storage.folder import Trial, TrialResult
from harness.storage.parquet import write_table
from harness.sweep.plugins import load_for
from harness.sweep.trial_config import TrialConfig, digest_content

_OPERATIONS = {"cpu": 4e11, "cuda": 2e14}
"""Of a part: about as many as one thread of a CPU, or a GPU, computes in ten seconds."""
_PASSES = {names.CROWN: 0.1, names.ALPHA_CROWN: 0.3, names.BAB: 1.0}
"""About how many backward passes a stage takes for each value of a forward pass."""
_PER_SHARD, _PER_SLOW_SHARD = 200, 20  # images
_BAB_SECONDS = 600.0  # that branch and bound takes of a part, at most; mostly far less
_NETWORK_METRICS = (  # which a certification copies from its trial
    *(names.PARAMETERS, names.TRAIN_SECONDS, names.GAIN, names.MARGIN, names.RHO_BOUND),
    *(names.ITERATIONS, names.RESIDUAL, names.NOT_CONVERGED),
)


def certified_images(data: Data, config: TrialConfig) -> Split:
    """Return the images that a certification evaluates. Raises InputError if there are too few."""
    return data.evaluated_images(config.validation_images, config.evaluation.test_images)


def certification_of(trial_dir: Path, config: TrialConfig, data: Data, weights: bytes) -> tuple[Trial, Certification]:
    """Return a finished trial with another config, and the certification that evaluates it by that config.

    weights: the content of the trial's file.
    """
    trial = replace(folder.read_trial(trial_dir / folder.TRIAL), config=config)
    content = json.dumps([digest_content(config), data.fingerprint, trial.recipe_version, trial.key], sort_keys=True)
    input_digest = hashlib.sha256(weights + content.encode()).hexdigest()
    versions = {name: value for name, value in describe_environment(best_device()).items() if name != "threads"}
    digest = hashlib.sha256("\n".join([input_digest, *versions.values()]).encode()).hexdigest()
    per_shard = _PER_SLOW_SHARD if any(STAGES[stage].slow for stage in config.evaluation.stages) else _PER_SHARD
    return trial, Certification(len(certified_images(data, config)), per_shard, input_digest, digest)


def certify_shard(directory: Path, number: int, report: Callable[[dict[str, Any]], None], data_dir: str | None) -> None:
    """Evaluate and write a shard of the certification in a folder, going on after its saved parts.

    It runs on one thread, so that the result is the same on every machine.

    Args:
        report: called with the number of evaluated images of the shard, {"evaluated": ...}, as `evaluate_in_parts`
            yields it.

    Raises:
        SoundnessError: an example is both certified and falsified.
        InputError: the weights, data or versions differ from those that the certification began with.
    """
    stored = certification.read_certification(directory)
    with _one_thread(), reuse_freed_memory():
        config, network, test = _load(directory, stored.digest, data_dir)
        first, stop = stored.images_of(number)
        for done in evaluate_in_parts(directory, network, test.part(first, stop), first, config, stored.digest):
            report({names.EVALUATED: done})


def evaluate_in_parts(
    directory: Path, network: PreparedNetwork, images: Split, first: int, config: TrialConfig, digest: str
) -> Iterator[int]:
    """Evaluate images, the first of which has the index `first`, and write each part once it is done.

    Yields:
        How many images are evaluated: first those of saved parts, then after each part.

    Raises:
        SoundnessError: an example is both certified and falsified.
    """
    saved = certification.saved_parts(directory, first, first + len(images), digest)
    done = sum(part.images for part in saved.values())
    yield done
    per_part = images_per_part(network, images, config.evaluation) if done < len(images) else 0
    while done < len(images):
        part = images.part(done, min(done + per_part, len(images)))
        _evaluate_and_save(directory, network, part, first + done, config, digest)
        done += len(part)
        yield done


def images_per_part(network: PreparedNetwork, images: Split, settings: EvaluationSettings) -> int:
    """Return how many images to evaluate at a time: stops, saves and reports of progress wait for the end of a part.

    It follows from the network, the stages and the kind of device, not from the speed of the machine.
    """
    device = next(network.model.parameters()).device
    x = images.images[:1].to(device).float() / 255
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.attack_model(x)
    point = Interval(x.double(), torch.zeros_like(x, dtype=torch.float64))
    values = bytes_per_example(values_of(network.program, point, Context(sound=False))) // x.double().element_size()
    passes = 3.0 * settings.attack_steps * settings.attack_restarts  # a gradient costs two
    passes += values * sum(_PASSES.get(stage, 0.0) for stage in settings.stages)
    most = _OPERATIONS[device.type] / (passes * max(1, counter.get_total_flops()))
    if names.BAB in settings.stages and settings.bab_seconds is not None:
        most = min(most, _BAB_SECONDS / settings.bab_seconds)
    return max(1, min(int(most), settings.batch_size))


def _evaluate_and_save(
    directory: Path, network: PreparedNetwork, part: Split, first: int, config: TrialConfig, digest: str
) -> None:
    device = next(network.model.parameters()).device
    evaluation = evaluate_part(network, part.images.to(device), part.labels.to(device), first, config)
    spread = finite_or_none({"clean_mean": evaluation.clean_mean, "clean_spread": evaluation.clean_spread})
    metrics = {"seconds": evaluation.seconds, "layers": finite_or_none(evaluation.layers), **spread}
    save_proofs = partial(save_file, evaluation.proofs)
    certification.write_part(directory, first, evaluation.verdicts, save_proofs, digest=digest, **metrics)


def merge_parts(directory: Path, images: int, digest: str) -> Evaluation:
    """Return the evaluation that all parts in a folder make up, and write its verdicts and proofs there.

    Raises:
        DamagedFileError: a part is missing or cannot be read.
        FileNotFoundError: the folder is gone.
    """
    parts = certification.saved_parts(directory, 0, images, digest)
    counts = [part.images for part in parts.values()]
    if sum(counts) < images:
        raise DamagedFileError(f"{directory / folder.SHARDS}: the verdicts of image {sum(counts)} cannot be read")
    tables, proof_files = zip(*(certification.read_content(directory, *item) for item in parts.items()), strict=True)
    verdicts = pd.concat(tables, ignore_index=True)
    centre, spread = _pool([(part.clean_mean, part.clean_spread) for part in parts.values()], counts)
    widths = [
        {name: math.inf if value is None else value for name, value in part.layers.items()} for part in parts.values()
    ]
    files = map(load_tensors, proof_files)
    proofs = {name: tensor for file in files for name, tensor in file.items()}
    folder.require_there(directory)
    write_proofs(directory, proofs)
    write_table(directory / folder.VERDICTS, verdicts)
    seconds = sum_rows(part.seconds for part in parts.values())
    return Evaluation(verdicts, average_rows(widths, counts), centre, spread, seconds, proofs)


@lru_cache(maxsize=1)  # shards of one certification follow each other
def _load(directory: Path, digest: str, data_dir: str | None) -> tuple[TrialConfig, PreparedNetwork, Split]:
    """Return the config, the network and the images of a certification, after checking its digest."""
    config = folder.read_certified_trial(directory / certification.CERTIFICATION).config
    load_for(config)
    trial_dir, data = certification.trial_of(directory), load(config.dataset, data_dir)
    weights = read_bytes(trial_dir / folder.WEIGHTS)
    _, own = certification_of(trial_dir, config, data, weights)
    require(
        "digest",
        own.digest,
        own.digest == digest,
        f"{digest}; weights, data or package versions differ between machines",
    )
    model = load_network(config, trial_dir / folder.WEIGHTS, weights).to(best_device())
    return config, prepare_network(model, config.evaluation.stages), certified_images(data, config)


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def finish_certification(directory: Path, data: Data) -> None:
    """Write the table, the timings and the result of a certification whose shards are all there."""
    stored = certification.read_certification(directory)
    parts = certification.saved_parts(directory, 0, stored.images, stored.digest)
    trial = folder.read_certified_trial(directory / certification.CERTIFICATION)
    evaluation = merge_parts(directory, stored.images, stored.digest)
    own = folder.read_result(certification.trial_of(directory))
    metrics = finite_or_none(
        {
            **final_metrics(evaluation, trial.config.evaluation.stages),
            names.EVALUATION_SECONDS: sum(evaluation.seconds.values()),
        }
    )
    metrics |= {name: value for name, value in (own.metrics if own else {}).items() if name in _NETWORK_METRICS}
    messages = warnings(evaluation, metrics)
    rows = [(first, stage, seconds) for first, part in parts.items() for stage, seconds in part.seconds.items()]
    timings = pd.DataFrame(rows, columns=["first_image", "stage", "seconds"])
    write_table(directory / certification.TIMINGS, timings)
    environment = describe_environment(best_device()) | {"threads": "1"}  # a worker's
    folder.write_result(directory, TrialResult(trial.key, metrics, environment, data.summary(), messages))
    certification.remove_shards(directory)


def _pool(moments: list[tuple[float | None, float | None]], images: list[int]) -> tuple[float, float]:
    """Return the mean and deviation of all numbers from those of each part; NaN if a part lacks them."""
    if any(None in pair for pair in moments):
        return math.nan, math.nan
    shares = [count / sum(images) for count in images]
    centre = sum(share * float(part or 0) for share, (part, _) in zip(shares, moments, strict=True))
    squares = (float(spread or 0) ** 2 + (float(part or 0) - centre) ** 2 for part, spread in moments)
    return centre, math.sqrt(sum(share * square for share, square in zip(shares, squares, strict=True)))
