"""`verify`: decide whether a specification holds over a region, by cheap bounds, an attack, then branch and bound."""

import copy
import math
import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from cerdeq.bounds import check_arguments, check_columns, trace
from cerdeq.bounds.agreement import points_of, refuse_another_function, refuse_other_outputs
from cerdeq.bounds.batch_sizes import default_memory
from cerdeq.bounds.crown import linear_bounds, tighten
from cerdeq.bounds.float32 import in_float32
from cerdeq.bounds.ibp import values_of
from cerdeq.bounds.methods import lower_bounds
from cerdeq.bounds.query import Query
from cerdeq.boxes import Box
from cerdeq.branch.attack import first_attack
from cerdeq.branch.leaves import SearchQuery
from cerdeq.branch.monotone_search import MonotoneSearch
from cerdeq.branch.schedule import decide
from cerdeq.branch.search import CERTIFIED, FALSIFIED, OUT_OF_MEMORY, TIMEOUT, UNKNOWN, Budget, Decision, Problem
from cerdeq.deadline import DeadlineError, stop_at
from cerdeq.equilibrium.monotone.network import equilibrium_network
from cerdeq.equilibrium.solver import NotConvergedError
from cerdeq.errors import UnsupportedOperator, is_out_of_memory
from cerdeq.operators.interval import Context, Interval, PrecisionError
from cerdeq.precision import counted_rounding, uncompiled
from cerdeq.tracing.precisions import refuse_other_precision, with_constants_of
from cerdeq.tracing.program import Program


@dataclass(frozen=True)
class Verification:
    """The result of `verify` for B examples.

    status: of each example "certified", "falsified", "unknown", "timeout" or "out of memory".
    lower: [B, K] in float64, proved lower bounds of the specification over the region.
    counterexample: [B, ...] in float64: if falsified, a point of the region at which a row is proved to be negative;
        else NaN.
    branches: [B], the number of leaves that were bounded.
    certificates: of each example the `certificate` of its `Decision`; empty if they were not requested, if linear
        bounds were enough, or if the leaves do not fit into memory.
    """

    status: list[str]
    lower: Tensor
    counterexample: Tensor
    branches: Tensor
    certificates: list[dict[str, Tensor]]


@uncompiled
def verify(
    model: nn.Module, region: Box, spec: Tensor, seconds: float | None = 60.0, branches: int | None = None,
    certificates: bool = False,
) -> Verification:  # fmt: skip
    """Decide whether all rows of `spec`, applied to the model's outputs, are positive for all inputs in `region`.

    An example is certified when a lower bound above 0 is proved for each row, in float64 with rounding counted
    outwards. It is falsified when a point of the region is proved to make a row negative. All are unknown if the
    model's equilibria miss their tolerance.

    Args:
        model: as in `bound`.
        region: the inputs, a Box [B, ...].
        spec: [B, K, N], rows of coefficients of the N outputs.
        seconds, branches: limits of each example; None for no limit. The first bounds, of all examples at once, may
            take the seconds of all.
        certificates: whether to return certificates.

    Raises:
        ValueError: if neither seconds nor branches is given, for limits below 0, if spec has no rows, and as `bound`
            does.
    """
    _check_limits(seconds, branches)
    began, seconds = time.monotonic(), math.inf if seconds is None else seconds
    check_arguments(model, region, spec)
    if spec is None or spec.shape[1] < 1:
        raise ValueError("spec has no rows: there is nothing to prove")
    with torch.inference_mode(False), torch.no_grad():  # copies: the caller may have made them in inference mode
        region, spec = Box(region.center.clone(), region.radius.clone()), spec.clone().double()
        x = Interval(*(end.double() for end in (region.center, region.radius)))
        lower = torch.full_like(spec[:, :, 0], -torch.inf)
        budgets = [Budget(branches) for _ in spec]
        try:
            with stop_at(began + seconds * len(spec)):
                program, float32 = _programs(model, region, spec)
                lower = lower_bounds(program, x, spec, "crown-ibp", target=0.0, float32=float32)
        except (DeadlineError, NotConvergedError) as error:
            status = TIMEOUT if isinstance(error, DeadlineError) else UNKNOWN
            return _verification(x, lower, [Decision(status, rows) for rows in lower], budgets)
        decisions = [Decision(CERTIFIED, rows) for rows in lower]
        left = seconds - (time.monotonic() - began) / max(1, len(spec))
        for example in (~(lower > 0).all(1)).nonzero()[:, 0].tolist():
            one, budget = slice(example, example + 1), budgets[example]
            with stop_at(time.monotonic() + left):
                decisions[example] = _decide_one(
                    program, float32, x.of(one), spec[one], lower[example], budget, certificates
                )
        return _verification(x, lower, decisions, budgets)


def _verification(x: Interval, lower: Tensor, decisions: list[Decision], budgets: list[Budget]) -> Verification:
    points = torch.full_like(x.center, torch.nan)
    for example, decision in enumerate(decisions):
        if decision.point is not None:
            points[example] = decision.point[0]
    lower = torch.cat([lower[:0], *[decision.lower[None] for decision in decisions]])
    branches = torch.tensor([budget.used for budget in budgets], dtype=torch.long)
    status, certificates = [d.status for d in decisions], [d.certificate for d in decisions]
    return Verification(status, lower, points, branches, certificates)


def _check_limits(seconds: float | None, branches: int | None) -> None:
    """Raise ValueError if neither limit is given, or one is not a number of at least 0."""
    if seconds is None and branches is None:
        raise ValueError("verify needs a limit: give seconds, branches or both")
    for name, limit, kinds in (("seconds", seconds, (int, float)), ("branches", branches, (int,))):
        if limit is not None and not (type(limit) in kinds and limit >= 0):
            raise ValueError(f"{name} must be None or a number of at least 0, found {limit!r}")


def _programs(model: nn.Module, region: Box, spec: Tensor) -> tuple[Program, Program | None]:
    """Return the programs of a copy of the model in float64, and in float32 if that may be used.

    The first has the constants that the model computes in its own precision. Raises UnsupportedOperator if they are
    another function than the model in that precision.
    """
    own, exact = trace(model, linear=True), copy.deepcopy(model).double()
    program, float32 = trace(exact, linear=True), in_float32(exact, linear=True)
    if region.center.dtype == torch.float64:
        check_columns(spec, refuse_another_function(model, own, region))
    else:
        if len(x := points_of(region)):
            refuse_other_outputs(model, own, x)
        try:
            output = refuse_another_function(exact, program, region.double())
        except ValueError as error:
            raise UnsupportedOperator(f"a float32 model is proved in float64, where it fails: {error}") from error
        check_columns(spec, output)
        program = with_constants_of(own, program, torch.float64)
    refuse_other_precision(own, program, region.center.new_zeros(1, *region.center.shape[1:]))
    return program, float32


def _decide_one(
    program: Program, float32: Program | None, x: Interval, spec: Tensor, lower: Tensor, budget: Budget,
    certificates: bool,
) -> Decision:  # fmt: skip
    """Attack one example, then run branch and bound on it, over boxes that CROWN tightens.

    x: [1, ...] and spec [1, K, N], float64. lower: [K], the bounds proved so far.
    """
    memory = default_memory(x.center.device)
    try:
        with counted_rounding(x.center.device.type):
            query = Query(program, values_of(program, x, Context(sound=True)), spec, 0.0, memory, float32)
            exact = SearchQuery(program, query.values, spec[0])
            if (network := equilibrium_network(program, query.values, spec[0])) is not None:
                return MonotoneSearch(network, exact, lower, certificates).advance(budget)
            fast = exact.in_float32(float32)
            rows = (~(lower > 0)).nonzero()[:, 0]
            if (point := first_attack(exact, fast, rows)) is not None:
                return Decision(FALSIFIED, lower, point)
            query = tighten(query, program)  # in float64, also for the search: float32's are wider
            lower = query.raise_bounds(lower[None].clone(), linear_bounds)[0]
            exact = replace(exact, values=query.values)
            problem = Problem(exact, exact.in_float32(float32), lower, memory, certificates)
            return decide(problem, budget)
    except DeadlineError:
        return Decision(TIMEOUT, lower)
    except NotConvergedError:
        return Decision(UNKNOWN, lower)
    except PrecisionError:
        if float32 is None:
            raise
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            return Decision(OUT_OF_MEMORY, lower)
        raise
    return _decide_one(program, None, x, spec, lower, budget, certificates)  # sums too long for float32
