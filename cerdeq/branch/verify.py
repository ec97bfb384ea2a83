"""`verify`: is a specification true over a whole region? Cheap bounds first, then branch and bound."""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cerdeq.bounds import check_question, trace
from cerdeq.bounds.bounds import Question, linear, lower_bounds, tightened
from cerdeq.bounds.forward import values_of
from cerdeq.bounds.graph import Program, refuse_another_function
from cerdeq.bounds.interval import Context, Interval, PrecisionError
from cerdeq.bounds.memory import default_memory, is_out_of_memory
from cerdeq.bounds.narrow import in_float32, rounded
from cerdeq.bounds.precision import counted_rounding
from cerdeq.boxes import Box
from cerdeq.branch.decide import CERTIFIED, OUT_OF_MEMORY, Budget, Decision, decide
from cerdeq.branch.leaves import Side


@dataclass(frozen=True)
class Verification:
    """What `verify` found of B examples.

    status: of each "certified", "attacked", "unknown", "timeout" or "out of memory".
    lower: [B, K] in float64, proved lower bounds of the specification over the region.
    counterexample: [B, ...] in float64, where attacked a point of the region at which a row is proved to be negative;
        not a number elsewhere.
    branches: [B], how many leaves were bounded.
    certificates: of each example, where certificates were wanted and linear bounds did not do, what
        `cerdeq.branch.leaves.certificate` says of its leaves; else empty.
    """

    status: list[str]
    lower: Tensor
    counterexample: Tensor
    branches: Tensor
    certificates: list[dict[str, Tensor]]


def verify(
    model: nn.Module, region: Box, spec: Tensor, seconds: float | None = 60.0, branches: int | None = None,
    certificates: bool = False,
) -> Verification:  # fmt: skip
    """Whether all rows of `spec` [B, K, N], applied to the model's outputs, are positive for all inputs in `region`.

    An example is certified when a lower bound above 0 is proved of each row, in float64 with rounding counted outwards,
    attacked when a point of the region is proved to make one negative. seconds, branches: what an example may take once
    linear bounds leave it open; the bounding under way ends first. certificates: whether to keep them. Raises
    ValueError where neither seconds nor branches is given, and as `bound` does.
    """
    if seconds is None and branches is None:
        raise ValueError("give seconds, branches or both: branch and bound may go on for ever")
    check_question(model, region, spec)
    with torch.inference_mode(False), torch.no_grad():  # and nothing of the caller's that was made in inference mode
        wide = copy.deepcopy(model).double()
        x = Interval(region.center.clone().double(), region.radius.clone().double())
        return _verified(wide, x, spec.clone().double(), seconds, branches, certificates)


def _verified(
    wide: nn.Module, x: Interval, spec: Tensor, seconds: float | None, branches: int | None, certificates: bool
) -> Verification:
    program, narrow = trace(wide, linear=True), in_float32(wide, linear=True)
    lower = lower_bounds(program, x, spec, "crown-ibp", target=0.0, narrow=narrow)
    refuse_another_function(wide, program, x.center)
    status = [CERTIFIED] * len(spec)
    points, used = torch.full_like(x.center, torch.nan), torch.zeros(len(spec), dtype=torch.long)
    known: list[dict[str, Tensor]] = [{} for _ in status]
    for example in (~(lower > 0).all(1)).nonzero()[:, 0].tolist():
        one, budget = slice(example, example + 1), Budget(seconds, branches)
        decision = decide_one(program, narrow, x.of(one), spec[one], lower[example], budget, certificates)
        status[example], lower[example], used[example] = decision.status, decision.lower, budget.used
        known[example] = decision.certificate
        if decision.point is not None:
            points[example] = decision.point[0]
    return Verification(status, lower, points, used, known)


def decide_one(
    program: Program, narrow: Program | None, x: Interval, spec: Tensor, lower: Tensor, budget: Budget,
    certified: bool = False,
) -> Decision:  # fmt: skip
    """Branch and bound of one example, over boxes that CROWN has tightened.

    x: [1, ...] and spec [1, K, N], float64; lower: [K], what is proved so far. certified: whether a certificate
    is wanted.
    """
    memory = default_memory(x.center.device)
    try:
        with counted_rounding(x.center.device.type):
            asked = Question(program, values_of(program, x, Context(sound=True)), spec, 0.0, memory, narrow)
            tight = tightened(asked, program if narrow is None else narrow)
            lower = tight.raised(lower[None].clone(), linear)[0]
            proof = Side(program, tight.values, spec[0])
            search = proof if narrow is None else Side(narrow, rounded(narrow, tight.values), spec[0].float())
            return decide(proof, search, lower, budget, memory, certified)
    except PrecisionError:
        if narrow is None:
            raise
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            return Decision(OUT_OF_MEMORY, lower)
        raise
    return decide_one(program, None, x, spec, lower, budget, certified)  # sums too long for float32
