"""Results of small random properties, with what is exactly true of them."""

import functools
from dataclasses import replace
from fractions import Fraction
from functools import partial

from enumeration import smallest_violation
from small_properties import network_of, property_of_seed, run

from harness.checker.properties import NotConfirmedError, confirm_unsat
from harness.common.properties import MOST_TOGETHER, Case, Constraint
from harness.vnnlib.solve import solve

SECONDS = 60
TINY = Fraction(1, 10**6)


@functools.cache
def solved(seed, together=MOST_TOGETHER):
    """Return a network, its weights, a property, its result and the exact smallest violation; None for empty boxes.

    together: the number of constraints of a group of cases, which the caller has set.
    """
    network, weights = network_of(seed)
    property_ = property_of_seed(seed)
    if property_ is None:
        return None
    violation = min(smallest_violation(weights, case) for case in property_.cases)
    return network, weights, property_, solve_small(property_, network), violation


def solve_small(property_, network):
    return solve(property_, network, partial(run, network), SECONDS, certificates=True)


def tensors_of(result):
    return {name: tensor.numpy() for name, tensor in result.certificate.items()}


def proved_by(network, property_, tensors):
    """Return what proves that no input satisfies the property; "" if nothing does."""
    try:
        return confirm_unsat(property_, network, partial(run, network), tensors)
    except NotConfirmedError:
        return ""


def with_bounds_raised(property_, by):
    """Return the property with all bounds of constraints raised: every violation is smaller by as much."""
    cases = tuple(
        Case(case.box, tuple(Constraint(c.coefficients, c.bound + by) for c in case.constraints))
        for case in property_.cases
    )
    return replace(property_, cases=cases)


@functools.cache
def certified_result(seed):
    """Return network, property, tensors and exact smallest violation of a result that needs leaves.

    Bounds are moved until the smallest violation is about 0.01.
    """
    network, _, property_, _, violation = solved(seed)
    by = Fraction(round(violation, 6)).limit_denominator(10**6) - Fraction(1, 100)
    property_ = with_bounds_raised(property_, by)
    tensors = tensors_of(solve_small(property_, network))
    assert any(name.endswith("/signs") and tensor.any() for name, tensor in tensors.items())
    assert not proved_by(network, property_, {}) and proved_by(network, property_, tensors) == "certificate"
    return network, property_, tensors, violation - float(by)


def certified_results():
    return [certified_result(seed) for seed in (0, 1, 4, 5, 8)]  # others need no leaves
