"""Decide a property of a network: sat, unsat, unknown or timeout."""

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from fractions import Fraction
from importlib import import_module
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch import nn

from cerdeq import OnnxError, bound, verify
from cerdeq.bounds import UnsupportedOperator
from cerdeq.deadline import DeadlineError, stop_at
from cerdeq.onnx import RunInFloat32
from harness.attacks.exact import NoExactRuleError, exact_outputs_at
from harness.common.errors import InputError
from harness.storage.instances import SAT, TIMEOUT, UNKNOWN, UNSAT
from harness.vnnlib.boundary import likely_corners, likely_vertices
from harness.vnnlib.counterexample import NoDecimalError, decimals_inside, exact_outputs, why_not_confirmed
from harness.vnnlib.files import load_instance, read_network, read_vnnlib
from harness.vnnlib.properties import Case, Counterexample, Property
from harness.vnnlib.query import query_of_boxes, region_of, with_flat_outputs, with_violations

_BOXES_AT_ONCE, _ROWS_AT_ONCE = 1024, 2**14
_REASONS = {"unknown": "nothing is left to split", "out of memory": "out of memory"}


@dataclass(frozen=True)
class Result:
    """The result of an instance.

    status: SAT if an input satisfies the property, a counterexample; UNSAT if none does; UNKNOWN or TIMEOUT if neither
        is proved.
    seconds: that it took. branches: leaves that were bounded. detail: why the status is UNKNOWN.
    certificate: of UNSAT, if requested: the certificate of each box, whose tensors begin with `<number of the box>/`.
    """

    status: str
    seconds: float = 0.0
    branches: int = 0
    detail: str = ""
    counterexample: Counterexample | None = None
    certificate: dict[str, torch.Tensor] = field(default_factory=dict)

    @property
    def counterexample_text(self) -> str:
        """The counterexample as the competition writes it; empty if there is none."""
        return self.counterexample.to_text() if self.counterexample else ""

    def to_text(self) -> str:
        """Return the result as the competition writes it: the status, then the counterexample."""
        return "".join(f"{line}\n" for line in (self.status, self.counterexample_text) if line)


def solve_files(network_path: Path, property_path: Path, seconds: float, certificates: bool = False) -> Result:
    """Return the result of an instance of an ONNX and a VNN-LIB file, whose loading counts, unlike that of packages.

    Raises InputError for files that cannot be read.
    """
    import_module("torch._dynamo")  # torch.func and the device "meta" import it late, which takes seconds
    began = time.monotonic()
    contents = read_network(network_path), read_vnnlib(property_path)
    try:
        with stop_at(began + seconds):
            property_, loaded = load_instance(contents, (network_path, property_path))
        result = solve(property_, loaded.network, loaded.run_file, seconds - (time.monotonic() - began), certificates)
    except DeadlineError:
        return Result(TIMEOUT, time.monotonic() - began)
    except (UnsupportedOperator, OnnxError) as error:
        raise InputError(f"{network_path}: {error}") from None
    return replace(result, seconds=time.monotonic() - began)


def solve(
    property_: Property, network: nn.Module, run: RunInFloat32, seconds: float, certificates: bool = False
) -> Result:  # fmt: skip
    """Return the result. Linear bounds of many boxes at once come first; the other boxes are then searched one by one.

    Each of these has its share of the time that is left.

    network: with an attribute `input_shape`, of one input. run: of its file, with a last Softmax that it is without.
    Raises InputError for coefficients with too many digits.
    """
    began, results, certificate, groups = time.monotonic(), [Result(UNSAT)], dict[str, torch.Tensor](), property_.groups
    undecided = _undecided_boxes(groups, network, property_.outputs, began + seconds / 2)
    for count, number in enumerate(undecided):
        left = seconds - (time.monotonic() - began)
        if left <= 0:
            results.append(Result(TIMEOUT))
            break
        share = left / (len(undecided) - count)
        results.append(_solve_box(groups[number], network, property_.outputs, run, share, certificates))
        certificate |= {f"{number}/{name}": tensor for name, tensor in results[-1].certificate.items()}
        if results[-1].status == SAT:
            break
    worst, branches = min(results, key=_rank), sum(result.branches for result in results)
    certificate = certificate if worst.status == UNSAT else {}
    found = worst.counterexample and replace(worst.counterexample, declared=property_.declared)
    seconds = time.monotonic() - began
    return replace(worst, seconds=seconds, branches=branches, counterexample=found, certificate=certificate)


def _rank(result: Result) -> int:
    return [SAT, TIMEOUT, UNKNOWN, UNSAT].index(result.status)


def _undecided_boxes(
    groups: Sequence[Sequence[Case]], network: nn.Module, outputs: int, deadline: float
) -> list[int]:  # fmt: skip
    """Return the numbers of the boxes that linear bounds do not decide, those with the smallest bounds first.

    A conjunction is decided if one of its constraints is. A box alone is left to the search.
    """
    bounds = np.full(len(groups), -np.inf)
    constrained = [number for number, cases in enumerate(groups) if all(case.constraints for case in cases)]
    rows_of_a_box = max(sum(len(case.constraints) for case in cases) for cases in groups)
    count = max(1, min(_BOXES_AT_ONCE, _ROWS_AT_ONCE // max(1, rows_of_a_box)))
    model = with_flat_outputs(network)
    with suppress(DeadlineError), stop_at(deadline):
        for method in ("crown-ibp", "crown") if len(groups) > 1 else ():
            unproved = [number for number in constrained if not bounds[number] > 0]
            for start in range(0, len(unproved), count):
                numbers = unproved[start : start + count]
                boxes, shape = [groups[number] for number in numbers], network.input_shape
                region, spec, least, rows = query_of_boxes(model, boxes, shape, outputs)  # type: ignore[arg-type]
                lower, _ = bound(model, region, method, spec)
                of_cases = torch.full((len(boxes), int(rows.max()) + 1), torch.inf, dtype=torch.float64)
                # a difference is rounded, but has the right sign
                of_cases.scatter_reduce_(1, rows, lower - least, "amax", include_self=False)
                bounds[numbers] = of_cases.amin(1)
    order = bounds.argsort(kind="stable")
    return order[: np.count_nonzero(~(bounds > 0))].tolist()


def _solve_box(
    cases: Sequence[Case], network: nn.Module, outputs: int, run: RunInFloat32, seconds: float, certificates: bool
) -> Result:  # fmt: skip
    """Return the result of cases that share a box."""
    began, region = time.monotonic(), region_of(cases[0].box, network.input_shape)  # type: ignore[arg-type]
    if not all(case.constraints for case in cases):  # every input of the box satisfies such a case
        return _confirm(cases, network, run, region.center, 0)
    deadline = began + seconds
    try:
        with stop_at(deadline):
            extended = with_violations(network, region, cases, outputs)
    except DeadlineError:
        return Result(TIMEOUT)
    with suppress(DeadlineError), stop_at(began + seconds / 10):
        for likely in chain(likely_corners(extended, region), likely_vertices(extended, cases, region, region.center)):
            if (result := _confirm(cases, network, run, likely, 0)).status == SAT:
                return result
    spec, left = torch.eye(len(cases), dtype=torch.float64)[None], max(0.0, deadline - time.monotonic())
    outcome = verify(extended, region, spec, seconds=left, certificates=certificates)
    branches, status = int(outcome.branches[0]), outcome.status[0]
    if status == "certified":
        return Result(UNSAT, branches=branches, certificate=outcome.certificates[0])
    is_falsified = status == "falsified"
    result = Result(TIMEOUT if status == "timeout" else UNKNOWN, branches=branches, detail=_REASONS.get(status, ""))
    point = outcome.counterexample if is_falsified else outcome.closest
    if not bool(point.isfinite().all()):
        return result
    confirmed = _confirm(cases, network, run, point, branches)
    if confirmed.status == SAT:
        return confirmed
    with suppress(DeadlineError), stop_at(deadline):  # the point may meet the constraints with equality
        for vertex in likely_vertices(extended, cases, region, point):
            if (at_vertex := _confirm(cases, network, run, vertex, branches)).status == SAT:
                return at_vertex
    return confirmed if is_falsified else result


def _confirm(
    cases: Sequence[Case], network: nn.Module, run: RunInFloat32, point: torch.Tensor, branches: int
) -> Result:  # fmt: skip
    """Return SAT with a counterexample near a point of the box, or UNKNOWN with the reason why the first is none."""
    reasons, shape = list[str](), tuple(point.shape[1:])
    try:
        for inputs in decimals_inside(point, cases[0].box):
            rounded = np.array([np.float32(text) for text in inputs]).reshape(1, *shape)
            float32 = run(rounded).ravel()
            reasons.append(why_not_confirmed(cases, _exact_outputs(cases, network, inputs, shape), float32.tolist()))
            if not reasons[-1]:
                found = Counterexample(inputs, [str(value) for value in float32])
                return Result(SAT, branches=branches, counterexample=found)
    except NoDecimalError as error:
        reasons.append(str(error))
    return Result(UNKNOWN, branches=branches, detail=reasons[0])


def _exact_outputs(
    cases: Sequence[Case], network: nn.Module, inputs: Sequence[str], shape: tuple[int, ...]
) -> tuple[Sequence[float | Fraction], Sequence[float | Fraction]]:  # fmt: skip
    """Return bounds of the outputs at these decimals in real arithmetic, equal ones if it depends on them."""
    bounds = exact_outputs(network, inputs, shape)
    if not any(case.holds(*bounds) for case in cases) and any(case.holds(*bounds[::-1]) for case in cases):
        with suppress(NoExactRuleError):
            exact = exact_outputs_at(network, [Fraction(text) for text in inputs], shape)
            return exact, exact
    return bounds
