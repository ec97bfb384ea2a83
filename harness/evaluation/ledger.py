"""What stages answer about a batch, and its ledger: each example gets one verdict, from the first that decides it."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from cerdeq.deadline import DeadlineError, stop_at
from cerdeq.equilibrium import NotConvergedError
from cerdeq.errors import UnsupportedOperator, is_out_of_memory
from harness.common import names
from harness.common.errors import error_line
from harness.common.names import Verdict
from harness.machine.freed_memory import free_memory

T = TypeVar("T")

Proofs = dict[str, Tensor]
"""What proves verdicts: a counterexample by its image's index, a certificate's tensors by "<index>/<name>"."""

NO_STAGE = "none"  # of an example that no stage decided
_LONGEST_REASON = 300


class SoundnessError(AssertionError):
    """Answers contradict each other, such as certified and falsified: a bound is wrong, no result can be trusted."""


@dataclass(frozen=True)
class StageResult:
    """The result of a stage of the verifier; tensors are [B], NaN for examples that it has no answer for.

    verdicts: of the examples, by their numbers, about which the stage has one.
    lower: lower bounds of the smallest margin. counterexample_margin: of examples that the stage falsified, proved
    upper bounds of the margin at a counterexample; the attack's have the smallest margin that it reached, too.
    columns: further columns of the table of verdicts. proofs: counterexamples and certificates.
    unproved: the numbers of examples for which a certificate was searched and not found.
    """

    verdicts: dict[int, Verdict]
    lower: Tensor
    counterexample_margin: Tensor
    columns: dict[str, Tensor] = field(default_factory=dict)
    proofs: Proofs = field(default_factory=dict)
    unproved: list[int] = field(default_factory=list)


def verdict_where(examples: Tensor, verdict: Verdict) -> dict[int, Verdict]:
    """Return the verdict on examples, bool [B], by their numbers."""
    return dict.fromkeys(examples.nonzero()[:, 0].tolist(), verdict)


@contextmanager
def add_seconds(seconds: dict[str, float], stage: str, device: torch.device) -> Iterator[None]:
    """Add the time of the block, including its work on the device, to the seconds of a stage."""
    started = time.perf_counter()
    try:
        yield
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    finally:
        seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - started


class Ledger:
    """The verdicts on B examples.

    The first decision on an example stays. Without a decision, its verdict is the first problem that a stage noted, and
    without a problem it is unknown.
    limit: the time limit of each stage per example in seconds, infinity for none. Branch and bound has its own, and
    the clean stage none: whether a prediction is right must not depend on the speed of the machine.
    undecided: the examples without a decision, bool [B] on the CPU. seconds: the seconds of each stage.
    contradicted: the examples that one stage certified and another one refuted.
    """

    def __init__(self, examples: int, limit: float = math.inf):
        self.limit = limit
        self.verdict, self.stage, self.reason = (np.full(examples, "", dtype=object) for _ in range(3))
        self.undecided = torch.ones(examples, dtype=torch.bool)
        self.seconds: dict[str, float] = {}
        self.contradicted: list[int] = []

    def record(self, stage: str, verdicts: Mapping[int, Verdict]) -> None:
        """Record a stage's verdicts, by the numbers of the examples; those that say nothing, as `note` does."""
        for example, verdict in verdicts.items():
            if verdict in names.UNDECIDED:
                if verdict != names.UNKNOWN:
                    self.note(stage, verdict, example)
            elif self.undecided[example]:
                self.verdict[example], self.stage[example], self.reason[example] = verdict, stage, ""
                self.undecided[example] = False
            elif names.CERTIFIED in {verdict, self.verdict[example]} and verdict != self.verdict[example]:
                self.contradicted.append(example)

    def note(self, stage: str, verdict: Verdict, example: int, reason: str = "") -> None:
        """Note that a stage could not answer: the example's verdict if no later stage decides it."""
        if self.undecided[example] and not self.verdict[example]:
            self.verdict[example], self.stage[example], self.reason[example] = verdict, stage, reason

    def record_without_prediction(self) -> None:
        """Record the examples that the clean stage has no answer for as misclassified, with its problem as the reason.

        Nothing is proved of their prediction, so they count as errors.
        """
        for example in map(int, np.flatnonzero(self.verdict != "")):
            reason = ": ".join(filter(None, [self.verdict[example], self.reason[example]]))
            self.record(names.CLEAN, {example: names.MISCLASSIFIED})
            self.reason[example] = reason

    def note_unproved(self, stage: str, examples: list[int]) -> None:
        """Note the examples that a stage certified and has no certificate for."""
        for example in examples:
            if (self.verdict[example], self.stage[example]) == (names.CERTIFIED, stage):
                self.reason[example] = names.NO_CERTIFICATE

    def columns(self) -> dict[str, np.ndarray]:
        """Return verdicts, their stages and reasons, by the names of their columns."""
        empty = self.verdict == ""
        return {
            names.VERDICT: np.array([str(verdict or names.UNKNOWN) for verdict in self.verdict], dtype=object),
            names.STAGE: np.where(empty, NO_STAGE, self.stage),
            names.REASON: self.reason.copy(),
        }

    def answers(self, stage: str, ask: Callable[[Tensor], T], examples: Tensor) -> list[tuple[Tensor, T]]:
        """Ask about examples [n] together or, if that raises an error or takes too long, one by one.

        Four kinds of errors concern examples: a lack of memory, a deadline, a solver that does not converge, and an
        operator without a rule. An example that raises one alone is noted as out of memory, timeout or failed, and is
        in no answer. Every other error is raised.

        Returns:
            The numbers of examples with what `ask` returned for them.
        """
        queue, results = ([examples] if len(examples) else []), []
        while queue:
            part = queue.pop()
            try:
                limit = math.inf if stage in (names.CLEAN, names.BAB) else self.limit * len(part)
                with add_seconds(self.seconds, stage, part.device), stop_at(time.monotonic() + limit):
                    results.append((part, ask(part)))
                continue
            except DeadlineError:
                kind, reason = names.TIMEOUT, ""
            except (NotConvergedError, UnsupportedOperator) as error:
                kind, reason = names.FAILED, error_line(error)
            except SoundnessError:
                raise
            except Exception as error:
                is_memory, reason = is_out_of_memory(error), error_line(error)
                if len(part) == 1 and not is_memory:  # of several, some kernels refuse what one may ask
                    raise
                kind = names.OUT_OF_MEMORY if is_memory else names.FAILED
            if kind == names.OUT_OF_MEMORY:
                free_memory()  # here, where the error no longer holds the tensors
            if len(part) > 1:
                queue += reversed(part.split(1))
            else:
                self.note(stage, kind, int(part), reason[:_LONGEST_REASON])
        return results
