"""The evaluation of images in shards, a part each: of a trial, and of a certification, which evaluates it further."""

import hashlib
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save_file

from harness.config.plugins import load_for
from harness.config.trial import TrialConfig, digest_content
from harness.data import Data, Split, load
from harness.device import best_device
from harness.environment import describe_environment
from harness.errors import require
from harness.evaluation.batch import write_evidence
from harness.evaluation.ibp import average_rows, sum_rows
from harness.evaluation.metrics import final_metrics, finite_or_none, warnings
from harness.evaluation.network import PreparedNetwork, load_network, prepare_network
from harness.evaluation.stages import images_at_once
from harness.evaluation.verdicts import Evaluation, evaluate_part
from harness.memory import reuse_freed_memory
from harness.storage import certification, folder, names
from harness.storage.certification import Certification
from harness.storage.files import read_bytes
from harness.storage.folder import Trial, TrialResult
from harness.storage.parquet import write_table

_PER_SHARD = 200  # images
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
    per_shard = images_at_once(config.evaluation, _PER_SHARD)
    return trial, Certification(len(certified_images(data, config)), per_shard, input_digest, digest)


def certify_shard(directory: Path, number: int, data_dir: str | None) -> None:
    """Evaluate and write a shard of the certification in a folder.

    It runs on one thread, so that the result is the same on every machine.

    Raises:
        SoundnessError: an example is both certified and falsified.
        InputError: the weights, data or versions differ from those that the certification began with.
    """
    stored = certification.read_certification(directory)
    with _one_thread(), reuse_freed_memory():
        config, network, test = _load(directory, stored.digest, data_dir)
        first, stop = stored.images_of(number)
        evaluate_shard(directory, number, network, test.part(first, stop), first, config, stored.digest)


def evaluate_shard(
    directory: Path, number: int, network: PreparedNetwork, part: Split, first: int, config: TrialConfig, digest: str
) -> None:
    """Evaluate images, the first of which has the index `first`, and write the shard.

    Raises:
        SoundnessError: an example is both certified and falsified.
    """
    device = next(network.model.parameters()).device
    evaluation = evaluate_part(network, part.images.to(device), part.labels.to(device), first, config)
    spread = finite_or_none({"clean_mean": evaluation.clean_mean, "clean_spread": evaluation.clean_spread})
    metrics = {"seconds": evaluation.seconds, "layers": finite_or_none(evaluation.layers), **spread}
    save_evidence = partial(save_file, evaluation.evidence)
    certification.write_shard(directory, number, evaluation.verdicts, save_evidence, digest=digest, **metrics)


def merge_shards(directory: Path, count: int) -> Evaluation:
    """Return the evaluation that all shards in a folder make up, and write its verdicts and evidence there.

    Raises:
        DamagedFileError: a shard cannot be read.
        FileNotFoundError: the folder is gone.
    """
    shards = [certification.read_shard(directory, number) for number in range(count)]
    contents = [certification.read_content(directory, number, shard) for number, shard in enumerate(shards)]
    parts = [certification.read_shard_verdicts(directory, number, table) for number, (table, _) in enumerate(contents)]
    verdicts, images = pd.concat(parts, ignore_index=True), [len(part) for part in parts]
    centre, spread = _pool([(shard.clean_mean, shard.clean_spread) for shard in shards], images)
    widths = [{name: math.inf if value is None else value for name, value in shard.layers.items()} for shard in shards]
    files = [load_tensors(evidence) for _, evidence in contents]
    evidence = {name: tensor for file in files for name, tensor in file.items()}
    folder.require_there(directory)
    write_evidence(directory, evidence)
    write_table(directory / folder.VERDICTS, verdicts)
    seconds = sum_rows(shard.seconds for shard in shards)
    return Evaluation(verdicts, average_rows(widths, images), centre, spread, seconds, evidence)


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
    trial = folder.read_certified_trial(directory / certification.CERTIFICATION)
    shards = [certification.read_shard(directory, number) for number in range(stored.shards)]
    evaluation = merge_shards(directory, stored.shards)
    own = folder.read_result(certification.trial_of(directory))
    metrics = finite_or_none(
        {
            **final_metrics(evaluation, trial.config.evaluation.stages),
            names.EVALUATION_SECONDS: sum(evaluation.seconds.values()),
        }
    )
    metrics |= {name: value for name, value in (own.metrics if own else {}).items() if name in _NETWORK_METRICS}
    messages = warnings(evaluation, metrics)
    rows = [(number, stage, seconds) for number, shard in enumerate(shards) for stage, seconds in shard.seconds.items()]
    timings = pd.DataFrame(rows, columns=["shard", "stage", "seconds"])
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
