"""The verdicts of a batch as its stages give them: every example gets one, and keeps it."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from cerdeq.bounds.memory import is_out_of_memory
from harness.memory import free_memory
from harness.storage import names

T = TypeVar("T")

NO_STAGE = "none"  # of an example that every stage left open
_LONGEST_REASON = 300


class SoundnessError(AssertionError):
    """An example is certified and yet misclassified or broken: a bound is wrong, and no number here can be trusted."""


@contextmanager
def timed(seconds: dict[str, float], stage: str, device: torch.device) -> Iterator[None]:
    """Add what happens within, on the device too, to the seconds of a stage."""
    started = time.perf_counter()
    try:
        yield
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    finally:
        seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - started


class Ledger:
    """What is decided of B examples, and what kept the others from it.

    The first decision on an example stays. Where there is none, the first thing that kept a stage from an answer is its
    verdict; where nothing did, it is unknown.
    seconds: what each stage took.
    """

    def __init__(self, examples: int):
        self.verdict, self.stage, self.reason = (np.full(examples, "", dtype=object) for _ in range(3))
        self.decided = torch.zeros(examples, dtype=torch.bool)
        self.seconds: dict[str, float] = {}

    @property
    def open(self) -> Tensor:
        """Which examples are not decided: [B], on the CPU."""
        return ~self.decided

    def decide(self, stage: str, verdict: str, which: Tensor) -> None:
        """The stage misclassifies, attacks or certifies these examples [B] of those that are open."""
        new = which.cpu() & self.open
        self._write(new, verdict, stage, "")
        self.decided |= new

    def note(self, stage: str, verdict: str, example: int, reason: str = "") -> None:
        """Something kept the stage from an answer on an example: what it is if no later stage decides it."""
        if self.open[example] and not self.verdict[example]:
            place = torch.zeros_like(self.decided)
            place[example] = True
            self._write(place, verdict, stage, reason)

    def columns(self) -> dict[str, np.ndarray]:
        """Verdicts, the stages they came of, and reasons, by the names of their columns."""
        silent = self.verdict == ""
        return {
            names.VERDICT: np.where(silent, names.UNKNOWN, self.verdict),
            names.STAGE: np.where(silent, NO_STAGE, self.stage),
            names.REASON: self.reason.copy(),
        }

    def answers(self, stage: str, ask: Callable[[Tensor], T], examples: Tensor) -> list[tuple[Tensor, T]]:
        """What `ask` says of examples [n], by their numbers: of all together or, where that raises, of each alone.

        Those of which it raises alone too are noted as out of memory or failed, and are in no answer. SoundnessError is
        passed on.
        """
        waiting, found = ([examples] if len(examples) else []), []
        while waiting:
            part = waiting.pop()
            try:
                with timed(self.seconds, stage, part.device):
                    found.append((part, ask(part)))
                continue
            except SoundnessError:
                raise
            except Exception as error:  # whatever it is, it is of these examples alone
                kind = names.OUT_OF_MEMORY if is_out_of_memory(error) else names.FAILED
                reason = " ".join(f"{type(error).__name__}: {error}".split())[:_LONGEST_REASON]
            if kind == names.OUT_OF_MEMORY:
                free_memory()  # here, where the error no longer holds what it ran out with
            if len(part) > 1:
                waiting += reversed(part.split(1))
            else:
                self.note(stage, kind, int(part), reason)
        return found

    def figures(self, stage: str, ask: Callable[[Tensor], Tensor], which: Tensor) -> Tensor:
        """A number from `ask` for each of the examples `which` [B]; NaN for the others, and where there is none."""
        found = torch.full(which.shape, torch.nan, dtype=torch.float64, device=which.device)
        for part, answer in self.answers(stage, ask, which.nonzero()[:, 0]):
            found[part] = answer.to(found)
        return found

    def _write(self, which: Tensor, verdict: str, stage: str, reason: str) -> None:
        place = which.numpy()
        self.verdict[place], self.stage[place], self.reason[place] = verdict, stage, reason
