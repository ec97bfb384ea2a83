"""The shards of a certification: evaluated by several workers, then merged to its result."""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from harness.common import names
from harness.common.errors import require
from harness.config.plugins import load_for
from harness.config.trial import Trial
from harness.data import Data, Split, load
from harness.evaluation.metrics import final_metrics, finite_or_none, warnings
from harness.evaluation.network import PreparedNetwork, load_network, prepare_network
from harness.evaluation.parts import evaluate_in_parts, merge_parts
from harness.machine.device import best_device
from harness.machine.environment import describe_environment
from harness.machine.freed_memory import reuse_freed_memory
from harness.storage import certification, folder
from harness.storage.certification import Certification
from harness.storage.files import read_bytes
from harness.storage.folder import TrialRecord, TrialResult
from harness.storage.parquet import write_table

FEWEST_PER_SHARD, MOST_PER_SHARD, SHARDS = 20, 200, 32
_NETWORK_METRICS = (  # which a certification copies from its trial
    *(names.PARAMETERS, names.TRAIN_SECONDS, names.GAIN, names.MARGIN, names.RHO_BOUND),
    *(names.ITERATIONS, names.RESIDUAL, names.NOT_CONVERGED),
)


def certified_images(data: Data, config: Trial) -> Split:
    """Return the images that a certification evaluates. Raises InputError if there are too few."""
    return data.evaluated_images(config.validation_images, config.evaluation.test_images)


def certification_of(trial_dir: Path, config: Trial, data: Data, weights: bytes) -> tuple[TrialRecord, Certification]:
    """Return a finished trial with another config, and the certification that evaluates it by that config.

    weights: the content of the trial's file.
    """
    trial = replace(folder.read_trial(trial_dir / folder.TRIAL), config=config)
    content = json.dumps([config.canonical(), data.fingerprint, trial.recipe_version, trial.key], sort_keys=True)
    input_digest = hashlib.sha256(weights + content.encode()).hexdigest()
    versions = {name: value for name, value in describe_environment(best_device()).items() if name != "threads"}
    digest = hashlib.sha256("\n".join([input_digest, *versions.values()]).encode()).hexdigest()
    images = len(certified_images(data, config))
    per_shard = min(MOST_PER_SHARD, max(FEWEST_PER_SHARD, images // SHARDS))
    return trial, Certification(images, per_shard, input_digest, digest)


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


@lru_cache(maxsize=1)  # shards of one certification follow each other
def _load(directory: Path, digest: str, data_dir: str | None) -> tuple[Trial, PreparedNetwork, Split]:
    """Return the config, the network and the images of a certification, after checking its digest."""
    config = folder.read_certified_trial(directory / certification.CERTIFICATION).config
    load_for(config)
    trial_dir, data = certification.trial_of(directory), load(config.data_source, data_dir)
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
    messages = warnings(evaluation, metrics, data.info)
    rows = [(first, stage, seconds) for first, part in parts.items() for stage, seconds in part.seconds.items()]
    timings = pd.DataFrame(rows, columns=["first_image", "stage", "seconds"])
    write_table(directory / certification.TIMINGS, timings)
    environment = describe_environment(best_device()) | {"threads": "1"}  # a worker's
    folder.write_result(directory, TrialResult(trial.key, metrics, environment, data.summary(), messages))
    certification.remove_shards(directory)
