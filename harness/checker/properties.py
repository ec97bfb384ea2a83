"""Prove the result of a property again: that no input satisfies it, or that its counterexample does."""

import re
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from fractions import Fraction

import numpy as np
from torch import nn

from cerdeq.onnx.layers import RunInFloat32
from harness.attacks.exact import NoExactRuleError, exact_outputs_at
from harness.checker.bounds.boxes import Array, Box, between
from harness.checker.bounds.linear import lower_bounds
from harness.checker.bounds.maps import UnknownLayerError
from harness.checker.bounds.network import Step, boxes_of, read_steps
from harness.checker.bounds.regions import tight_region
from harness.checker.proofs.certificates import Tensors, split_by_example
from harness.checker.proofs.example import CERTIFICATE, LINEAR, prove_rows
from harness.checker.violations import enclosing_box, round_down, violations_network
from harness.vnnlib.properties import NUMBER, Case, Counterexample, Property

_AGREEMENT = 1e-4  # of outputs in float32, relative to 1 + their size, beside their proved boxes
_LARGEST = float(np.finfo(np.float32).max)
_POINTS = 8  # random points of a box
_VALUE = re.compile(r"\([XY]_\d+ ([^ ()]+)\)")


class NotConfirmedError(Exception):
    """The result is not proved; the message says why."""


def confirm_unsat(property_: Property, model: nn.Module, run: RunInFloat32, tensors: Tensors) -> str:
    """Prove that no input satisfies the property; return what proved it.

    tensors: the certificates of its groups, each by the number of its group of cases.

    Raises:
        NotConfirmedError: without a proof.
        UnknownLayerError: for a layer without a rule.
    """
    certificates, ways = split_by_example(tensors), list[str]()
    steps = read_steps(nn.Sequential(OrderedDict(network=model)).eval())  # by this, they have the names of the query's
    for number, cases in enumerate(property_.groups):
        box = enclosing_box(cases[0].box, model.input_shape)  # type: ignore[arg-type]
        points = _points_of(box)
        exact = boxes_of(steps, Box(points.astype(np.float64), np.zeros(points.shape)))[-1]
        _refuse_other_outputs(exact, run(points).ravel())
        if not all(case.constraints for case in cases):
            raise NotConfirmedError("a case has no constraints on outputs: every input of its box satisfies it")
        certificate = certificates.get(str(number))
        if certificate is None and _is_refuted_by_single_constraints(steps, cases, box, property_.outputs):
            ways.append(LINEAR)
            continue
        network = violations_network(steps, box, cases, property_.outputs)
        proof = prove_rows(network, box, np.eye(len(cases)), certificate)
        if proof.refused:
            raise NotConfirmedError(f"certificate refused: {proof.refused}")
        if not proof.proved_by:
            raise NotConfirmedError(f"the violation of a case has the bound {proof.minimum:.6g}, allowed: above 0")
        ways.append(proof.proved_by)
    return max(ways, key=CERTIFICATE.__eq__)


def _is_refuted_by_single_constraints(steps: Sequence[Step], cases: Sequence[Case], box: Box, outputs: int) -> bool:
    """Return whether linear bounds prove that in each case one constraint, the same at all inputs, is violated."""
    single = [Case(case.box, (constraint,)) for case in cases for constraint in case.constraints]
    network = violations_network(steps, box, single, outputs)
    lower = lower_bounds(network, tight_region(network, box), {len(network.steps): np.eye(len(single))}, {})
    parts = np.split(lower, np.cumsum([len(case.constraints) for case in cases])[:-1])
    return all((part > 0).any() for part in parts)


def refuse_other_than_order(property_: Property) -> None:
    """Raise NotConfirmedError if a constraint is not Y_i <= Y_j: a softmax may change whether it holds."""
    for case in property_.cases:
        for constraint in case.constraints:
            low, *others = sorted(constraint.coefficients.values())
            if constraint.bound != 0 or others != [-low]:
                raise NotConfirmedError("a constraint that does not compare two outputs, for a file ending in Softmax")


def confirm_sat(
    property_: Property, model: nn.Module, run: RunInFloat32, text: str, run_file: RunInFloat32 | None = None
) -> None:  # fmt: skip
    """Prove that the point of a counterexample, as the competition writes it, satisfies the property.

    A case must hold for the exact outputs, and for those of the file's own runtime. Raises as `confirm_unsat`.

    run_file: runs the file with a last Softmax that the model is without; default: run.
    """
    inputs, outputs = _point(text, property_)
    lower, upper = (
        np.array([sign * round_down(sign * x, np.float64) for x in inputs]).reshape(1, *model.input_shape)  # type: ignore[misc]
        for sign in (1, -1)
    )
    cases = [case for case in property_.cases if case.box.contains(inputs)]
    if not cases:
        raise NotConfirmedError("the counterexample lies in the box of no case")
    exact = boxes_of(read_steps(model), between(lower, upper))[-1]
    point = np.array([np.float32(float(x)) for x in inputs]).reshape(lower.shape)
    _refuse_other_outputs(exact, run(point).ravel())
    float32 = (run_file or run)(point).ravel()
    if not _agree(Box(float32, np.zeros(len(float32))), np.array([float(y) for y in outputs])):
        raise NotConfirmedError("the stored outputs are not the network's")
    ends = exact.lower.ravel().tolist(), exact.upper.ravel().tolist()
    if not any(case.holds(*ends) for case in cases):
        with suppress(NoExactRuleError):
            values = exact_outputs_at(model, inputs, model.input_shape)  # type: ignore[arg-type]
            ends = values, values
    if not any(case.holds(*ends) and case.holds(float32.tolist(), float32.tolist()) for case in cases):
        raise NotConfirmedError("no case is proved to hold at the counterexample, in exact arithmetic and in float32")


def _points_of(box: Box) -> Array:
    """Return points of a box [1, *shape] in float32: its lowest and its highest corner, and random ones."""
    shares = np.random.default_rng(0).random((_POINTS, *box.center.shape[1:]))
    points = box.center + box.radius * (2 * shares - 1)
    return np.concatenate([box.lower, box.upper, points]).astype(np.float32)


def _point(text: str, property_: Property) -> tuple[list[Fraction], list[Fraction]]:
    """Return the inputs and outputs of a counterexample, which has each once, in order, and nothing else."""
    if property_.declared is None:
        values = _VALUE.findall(str(text))
    else:
        lines = str(text).split("\n")
        values = lines[1 : 1 + property_.inputs] + lines[2 + property_.inputs :]
    inputs, outputs = values[: property_.inputs], values[property_.inputs :]
    expected = Counterexample(inputs, outputs, property_.declared).to_text()
    is_complete = len(outputs) == property_.outputs and expected == text
    if not is_complete or not all(map(NUMBER.fullmatch, values)):
        counts = f"{property_.inputs} inputs and {property_.outputs} outputs"
        raise NotConfirmedError(f"the counterexample is malformed, allowed: the decimals of {counts} in order alone")
    numbers = [Fraction(value) for value in values]
    if max(map(abs, numbers)) > _LARGEST:
        raise NotConfirmedError("the counterexample has numbers beyond those of float32")
    return numbers[: property_.inputs], numbers[property_.inputs :]


def _refuse_other_outputs(exact: Box, outputs: Array) -> None:
    """Raise UnknownLayerError if the network's own runtime computes other outputs than the checker's steps."""
    if not _agree(exact, outputs):
        raise UnknownLayerError("this network: its outputs in float32 differ from the checker's")


def _agree(exact: Box, outputs: Array) -> bool:
    """Return whether outputs in float32 are near the exact ones."""
    center, radius = exact.center.ravel(), exact.radius.ravel()
    return bool((np.abs(outputs - center) <= radius + _AGREEMENT * (1 + np.abs(center))).all())
