"""The evaluation of images in parts, each of which is saved once it is done.

What divides images, from the largest to the smallest:

- a shard, the job of a worker of `harness.certify`: `certification_of` in certification_shards.py sets its size; a
  trial has none;
- a part, after which a stop, a save and a report of progress come: what takes about ten seconds if each stage gets the
  share of images that it got of earlier parts, `images_per_part`;
- single images, after an error or a timeout that the images of a part would share (`Ledger.answers`);
- what fits into the cache or the memory, in each bound (cerdeq/bounds/batch_sizes.py).

Numbers of an image depend on the other images of its part by rounding alone.
"""

import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save_file
from torch.utils.flop_counter import FlopCounterMode

from cerdeq.bounds.batch_sizes import bytes_per_example
from cerdeq.bounds.ibp import values_of
from cerdeq.operators.interval import Context, Interval
from harness.common import names
from harness.config.trial import Trial
from harness.data import Split
from harness.evaluation.batch import write_proofs
from harness.evaluation.ibp import average_rows
from harness.evaluation.metrics import finite_or_none
from harness.evaluation.network import PreparedNetwork
from harness.evaluation.verdicts import EvaluationResult, evaluate_part
from harness.settings import Evaluation
from harness.storage import certification, folder
from harness.storage.files import DamagedFileError
from harness.storage.parquet import write_table

_OPERATIONS = {"cpu": 4e11, "cuda": 2e14}
"""Of a part: about as many as one thread of a CPU, or a GPU, computes in ten seconds."""
_PASSES = {names.CROWN: 0.1, names.ALPHA_CROWN: 0.3, names.BAB: 1.0}
"""About how many backward passes a stage takes for each value of a forward pass."""
_BAB_SECONDS = 600.0  # that branch and bound takes of a part, at most; mostly far less


def evaluate_in_parts(
    directory: Path, network: PreparedNetwork, images: Split, first: int, config: Trial, digest: str
) -> Iterator[int]:
    """Evaluate images, the first of which has the index `first`, and write each part once it is done.

    Yields:
        How many images are evaluated: first those of saved parts, then after each part.

    Raises:
        SoundnessError: an example is both certified and falsified.
    """
    saved = certification.saved_parts(directory, first, first + len(images), digest)
    tables = [certification.read_content(directory, *item)[0] for item in saved.items()]
    done = sum(map(len, tables))
    used = sum(part.seconds.get(names.BAB, 0.0) for part in saved.values())
    yield done
    operations = operations_per_image(network, images, config.evaluation) if done < len(images) else {}
    while done < len(images):
        per_part = images_per_part(operations, tables, config.evaluation, device_of(network))
        part = images.part(done, min(done + per_part, len(images)))
        evaluation = _evaluate_and_save(directory, network, part, first + done, _limited(config, used), digest)
        tables.append(evaluation.verdicts)
        used += evaluation.seconds.get(names.BAB, 0.0)
        done += len(part)
        yield done


def device_of(network: PreparedNetwork) -> torch.device:
    """Return where a network's parameters lie."""
    return next(network.model.parameters()).device


def operations_per_image(network: PreparedNetwork, images: Split, settings: Evaluation) -> dict[str, float]:
    """Return about how many operations each stage and the attack take for an image that reaches it."""
    x = images.images[:1].to(device_of(network)).float() / 255
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.attack_model(x)
    point = Interval(x.double(), torch.zeros_like(x, dtype=torch.float64))
    values = bytes_per_example(values_of(network.program, point, Context(sound=False))) // x.double().element_size()
    passes = {names.ATTACK: 3.0 * settings.attack_steps * settings.attack_restarts}  # a gradient costs two
    passes |= {stage: values * _PASSES.get(stage, 0.0) for stage in settings.stages}
    return {stage: number * max(1, counter.get_total_flops()) for stage, number in passes.items()}


def images_per_part(
    operations: dict[str, float], tables: list[pd.DataFrame], settings: Evaluation, device: torch.device
) -> int:
    """Return how many images to evaluate next: stops, saves and reports of progress wait for the end of a part.

    It follows from the network, the stages, the kind of device and the verdicts of earlier parts, not from the speed of
    the machine. operations: of each stage, as `operations_per_image` returns them. tables: verdicts of earlier parts.
    """
    share = {stage: _share_left_to(stage, tables, settings) for stage in operations}
    most = _OPERATIONS[device.type] / sum(operations[stage] * share[stage] for stage in operations)
    if names.BAB in settings.stages and settings.bab_seconds is not None:
        most = min(most, _BAB_SECONDS / (settings.bab_seconds * share[names.BAB]))
    return max(1, min(int(most), settings.batch_size))


def _share_left_to(stage: str, tables: list[pd.DataFrame], settings: Evaluation) -> float:
    """Return the share of images that earlier stages left to this one, as if one more had come so far."""
    if stage not in _PASSES:
        return 1.0
    later = settings.stages[settings.stages.index(stage) :]
    left = [table[names.STAGE].isin(later) | table[names.VERDICT].isin(names.UNDECIDED) for table in tables]
    return (1 + sum(int(each.sum()) for each in left)) / (1 + sum(map(len, left)))


def _evaluate_and_save(
    directory: Path, network: PreparedNetwork, part: Split, first: int, config: Trial, digest: str
) -> EvaluationResult:
    """Evaluate a part and write its files."""
    device = device_of(network)
    evaluation = evaluate_part(network, part.images.to(device), part.labels.to(device), first, config)
    spread = finite_or_none({"clean_mean": evaluation.clean_mean, "clean_spread": evaluation.clean_spread})
    metrics = {"seconds": evaluation.seconds, "layers": finite_or_none(evaluation.layers), **spread}
    save_proofs = partial(save_file, evaluation.proofs)
    certification.write_part(directory, first, evaluation.verdicts, save_proofs, digest=digest, **metrics)
    return evaluation


def _limited(config: Trial, used: float) -> Trial:
    """Return the config for the next part after branch and bound has used so many seconds of its limit for a trial."""
    limit = config.evaluation.bab_trial_seconds
    if limit is None:
        return config
    return config.replace(evaluation=config.evaluation.replace(bab_trial_seconds=max(0.0, limit - used)))


def merge_parts(directory: Path, images: int, digest: str) -> EvaluationResult:
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
    seconds = pd.DataFrame([part.seconds for part in parts.values()]).sum().to_dict()
    return EvaluationResult(verdicts, average_rows(widths, counts), centre, spread, seconds, proofs)


def _pool(moments: list[tuple[float | None, float | None]], images: list[int]) -> tuple[float, float]:
    """Return the mean and deviation of all numbers from those of each part; NaN if a part lacks them."""
    if any(None in pair for pair in moments):
        return math.nan, math.nan
    shares = [count / sum(images) for count in images]
    centre = sum(share * float(part or 0) for share, (part, _) in zip(shares, moments, strict=True))
    squares = (float(spread or 0) ** 2 + (float(part or 0) - centre) ** 2 for part, spread in moments)
    return centre, math.sqrt(sum(share * square for share, square in zip(shares, squares, strict=True)))
