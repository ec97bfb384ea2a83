"""A trial judged further, in shards: what makes a certification, the work of one shard, and its end."""

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
from safetensors.torch import load_file, save_file

from harness.config.plugins import load_for
from harness.config.settings import BAB
from harness.config.trial import TrialConfig, digest_content
from harness.data import Data, Split, load
from harness.device import best_device
from harness.environment import describe_environment
from harness.errors import require
from harness.evaluation.evidence import write_evidence
from harness.evaluation.metrics import final_metrics, finite_or_none, warnings
from harness.evaluation.network import load_network
from harness.evaluation.verdicts import Judgement, Ready, judge_part, mean, ready, total
from harness.memory import kept_memory
from harness.storage import certification, folder, names
from harness.storage.certification import Certification
from harness.storage.folder import Trial, TrialResult
from harness.storage.parquet import write_table

_PER_SHARD, _PER_SHARD_BRANCHED = 200, 20  # images; of the latter each may take as long as branch and bound may
_OF_THE_NETWORK = (  # metrics that are the trial's, however it is judged
    *(names.PARAMETERS, names.TRAIN_SECONDS, names.GAIN, names.MARGIN, names.RHO_BOUND),
    *(names.ITERATIONS, names.RESIDUAL, names.NOT_CONVERGED),
)


def judged_images(data: Data, config: TrialConfig) -> Split:
    """The images that a certification with this config judges: the first ones, held out of training where some are.

    Raises InputError where there are not so many.
    """
    _, held_out = data.training_images(config.train_images, config.validation_images)
    wanted = config.evaluation.test_images
    if held_out is None:
        return data.test_images(wanted)
    require("images", wanted, wanted is None or wanted <= len(held_out), f"at most the {len(held_out)} held out")
    return held_out.part(0, len(held_out) if wanted is None else wanted)


def certification_of(place: Path, config: TrialConfig, data: Data) -> tuple[Trial, Certification]:
    """The certification of the finished trial in a folder that judges it as `config` says."""
    trial = replace(folder.read_trial(place / folder.TRIAL), config=config)
    settled = json.dumps([digest_content(config), data.fingerprint, trial.recipe_version, trial.key], sort_keys=True)
    stands_for = hashlib.sha256((place / folder.WEIGHTS).read_bytes() + settled.encode()).hexdigest()
    versions = {name: value for name, value in describe_environment(best_device()).items() if name != "threads"}
    digest = hashlib.sha256("\n".join([stands_for, *versions.values()]).encode()).hexdigest()
    per_shard = _PER_SHARD_BRANCHED if BAB in config.evaluation.stages else _PER_SHARD
    return trial, Certification(len(judged_images(data, config)), per_shard, stands_for, digest)


def certify_shard(directory: Path, number: int, data_dir: str | None) -> dict[str, int]:
    """Judge a shard of the certification in a folder and write it; how many examples have each verdict.

    On one thread, so that it does not matter where it is done. Raises SoundnessError, and InputError where weights,
    data or versions are not those that the certification was begun with.
    """
    begun = certification.read_certification(directory)
    with _one_thread(), kept_memory():
        config, network, test = _opened(directory, begun.digest, data_dir)
        first, stop = begun.images_of(number)
        return evaluate_shard(directory, number, network, test.part(first, stop), first, config, begun.digest)


def evaluate_shard(
    directory: Path, number: int, network: Ready, part: Split, first: int, config: TrialConfig, digest: str
) -> dict[str, int]:
    """Evaluate images, of which the first has the number `first`, and write the shard; count each verdict.

    Raises SoundnessError.
    """
    device = next(network.model.parameters()).device
    judgement = judge_part(network, part.images.to(device), part.labels.to(device), first, config)
    spread = finite_or_none({"clean_mean": judgement.clean_mean, "clean_spread": judgement.clean_spread})
    metrics = {"seconds": judgement.seconds, "layers": finite_or_none(judgement.layers), **spread}
    write_evidence = partial(save_file, judgement.evidence)
    certification.write_shard(directory, number, judgement.verdicts, write_evidence, digest=digest, **metrics)
    return judgement.verdicts[names.VERDICT].value_counts().to_dict()


def merge_shards(directory: Path, count: int) -> Judgement:
    """Return what all shards in a folder say together. Raises DamagedFileError."""
    shards = [certification.read_shard(directory, number) for number in range(count)]
    parts = [certification.read_shard_verdicts(directory, number) for number in range(count)]
    verdicts, images = pd.concat(parts, ignore_index=True), [len(part) for part in parts]
    centre, spread = _pooled([(shard.clean_mean, shard.clean_spread) for shard in shards], images)
    widths = [{name: math.inf if value is None else value for name, value in shard.layers.items()} for shard in shards]
    files = [load_file(certification.evidence_of(directory, number)) for number in range(count)]
    evidence = {name: tensor for file in files for name, tensor in file.items()}
    return Judgement(verdicts, mean(widths, images), centre, spread, total(shard.seconds for shard in shards), evidence)


@lru_cache(maxsize=1)  # shards of one certification follow each other
def _opened(directory: Path, digest: str, data_dir: str | None) -> tuple[TrialConfig, Ready, Split]:
    config = folder.read_certified_trial(directory / certification.CERTIFICATION).config
    load_for(config)
    place, data = certification.trial_of(directory), load(config.dataset, data_dir)
    _, mine = certification_of(place, config, data)
    require("digest", mine.digest, mine.digest == digest, f"{digest}: the same weights, data and versions everywhere")
    model = load_network(config, place / folder.WEIGHTS).to(best_device())
    return config, ready(model, config.evaluation.stages), judged_images(data, config)


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def finish(directory: Path, data: Data) -> TrialResult:
    """Put the shards of a certification together, all of which are there: its table, its timings and its result."""
    begun = certification.read_certification(directory)
    trial = folder.read_certified_trial(directory / certification.CERTIFICATION)
    shards = [certification.read_shard(directory, number) for number in range(begun.shards)]
    judgement = merge_shards(directory, begun.shards)
    own = folder.read_result(certification.trial_of(directory))
    metrics = finite_or_none(
        {
            **final_metrics(judgement, trial.config.evaluation.stages),
            names.EVALUATION_SECONDS: sum(judgement.seconds.values()),
        }
    )
    metrics |= {name: value for name, value in (own.metrics if own else {}).items() if name in _OF_THE_NETWORK}
    told = warnings(judgement, metrics)
    rows = [(number, stage, took) for number, shard in enumerate(shards) for stage, took in shard.seconds.items()]
    timings = pd.DataFrame(rows, columns=["shard", "stage", "seconds"])
    write_evidence(directory, judgement.evidence)
    write_table(directory / folder.VERDICTS, judgement.verdicts)
    write_table(directory / certification.TIMINGS, timings)
    environment = describe_environment(best_device()) | {"threads": "1"}  # a worker's
    result = TrialResult(trial.key, metrics, environment, data.summary(), told)
    folder.write_result(directory, result)
    certification.remove_shards(directory)
    return result


def _pooled(known: list[tuple[float | None, float | None]], images: list[int]) -> tuple[float, float]:
    """Mean and deviation of all numbers, from those of parts of so many images; NaN where one lacks them."""
    if any(None in pair for pair in known):
        return math.nan, math.nan
    shares = [count / sum(images) for count in images]
    centre = sum(share * float(part or 0) for share, (part, _) in zip(shares, known, strict=True))
    squares = (float(spread or 0) ** 2 + (float(part or 0) - centre) ** 2 for part, spread in known)
    return centre, math.sqrt(sum(share * square for share, square in zip(shares, squares, strict=True)))
