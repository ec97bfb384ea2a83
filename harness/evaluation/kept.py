"""The batches of a judgement that are done, kept so that another call goes on from there."""

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from harness.clock import Clock, Stopped
from harness.evaluation.evidence import Evidence
from harness.storage import folder
from harness.storage.files import DamagedFileError
from harness.storage.tensors import read_tensors, write_tensors

_log = logging.getLogger(__name__)


class KeptBatches:
    """What `judge` begins with, and whom it tells after each batch.

    path: the file. stands_for: a digest of all that verdicts depend on, weights, images, settings and code;
        batches of anything else are not gone on from.
    images: how many there are to judge. tell: is told (done, images) at the start and after each batch.
    """

    def __init__(
        self,
        path: Path,
        stands_for: str,
        images: int,
        device: torch.device,
        clock: Clock,
        tell: Callable[[int, int], None],
    ):
        self.path, self.stands_for, self.images, self.device = path, stands_for, images, device
        self.clock, self.tell = clock, tell
        self.seconds = 0.0
        self.began = time.monotonic()

    def restored(self) -> tuple[list[pd.DataFrame], list[dict[str, Any]], Evidence]:
        """Tables and fields of bounds, one a batch that is done, and the evidence found in them.

        Raises Stopped if the trial was asked to stop.
        """
        tables, bounds, found, self.seconds = self._read()
        done = sum(map(len, tables))
        if done < self.images:
            self.tell(done, self.images)
            self.clock.check()
        self.began = time.monotonic()
        return tables, bounds, found

    def after_batch(self, tables: list[pd.DataFrame], bounds: list[Any], found: Evidence) -> None:
        """Save what is done when that is due. Raises Stopped if the trial was asked to stop."""
        now = time.monotonic()
        self.seconds += now - self.began
        self.began = now
        done = sum(map(len, tables))
        stop = done < self.images and self.clock.asked()
        if done == self.images or stop or self.clock.due():
            content = {"stands_for": self.stands_for, "seconds": self.seconds, "found": found}
            content["tables"] = [table.to_dict("list") for table in tables]
            content["bounds"] = [vars(batch) for batch in bounds]
            folder.require_there(self.path.parent)
            write_tensors(self.path, content)
        self.tell(done, self.images)
        if stop:
            raise Stopped

    def _read(self) -> tuple[list[pd.DataFrame], list[dict[str, Any]], Evidence, float]:
        """What is kept; nothing where that is of something else, or cannot be read, which is logged."""
        nothing: Any = [], [], {}, 0.0
        if not self.path.exists():
            return nothing

        def parse(state: dict[str, Any]) -> Any:
            if state["stands_for"] != self.stands_for:
                return nothing
            tables = [pd.DataFrame(table) for table in state["tables"]]
            found = {name: tensor.cpu() for name, tensor in state["found"].items()}
            return tables, state["bounds"], found, float(state["seconds"])

        try:
            return read_tensors(self.path, self.device, parse)
        except DamagedFileError as error:
            _log.info("%s; judging begins anew", error)
            return nothing
