"""Branch and bound of single images, whose answers are saved one by one until their range of images is."""

import math
import time
from contextlib import suppress
from io import BytesIO

import torch
from torch import Tensor

import cerdeq
from harness.evaluation.batch import Batch
from harness.storage.files import DamagedFileError, parse_file, write_bytes
from harness.storage.ranges import search_path


def search(batch: Batch, stage: str, example: Tensor, seconds: float = math.inf) -> cerdeq.Verification:
    """Return the answer of branch and bound about an example [1], within so many seconds and the limits of an image.

    An answer that was saved before a kill is read, and the seconds that it took are added to those of the stage.
    """
    if batch.ranges_dir is None:
        return _search(batch, example, seconds)
    path, started = search_path(batch.ranges_dir, batch.first + int(example)), time.perf_counter()
    with suppress(DamagedFileError):
        fields, taken = parse_file(path, lambda content: torch.load(BytesIO(content), weights_only=True))
        batch.ledger.seconds[stage] = batch.ledger.seconds.get(stage, 0.0) + taken
        return cerdeq.Verification(**fields)
    verification, content = _search(batch, example, seconds), BytesIO()
    torch.save((vars(verification), time.perf_counter() - started), content)
    write_bytes(path, content.getvalue())
    return verification


def _search(batch: Batch, example: Tensor, seconds: float) -> cerdeq.Verification:
    settings = batch.evaluation
    seconds = min(seconds, math.inf if settings.bab_seconds is None else settings.bab_seconds)
    budget = None if seconds == math.inf else seconds, settings.bab_branches
    return cerdeq.verify(batch.network.model, *batch.query(example), *budget, certificates=settings.certificates)
