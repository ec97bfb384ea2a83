"""The checker on answers that the search over parts of the input box proved."""

from fractions import Fraction
from functools import partial

import pytest
from answers import TINY, tensors_of, with_bounds_raised
from enumeration import smallest_violation
from small_properties import network_of, property_of_seed, run

from harness.checker.proofs.parts import SPLITS
from harness.checker.properties import NotConfirmedError, confirm_unsat
from harness.storage.instances import UNSAT
from harness.vnnlib.solve import solve

BY_PARTS = (26, 36, 44, 53, 57, 67)  # seeds of answers that need parts of the box


def test_answers_by_parts_are_confirmed_and_prove_no_other_property():
    confirmed = 0
    for seed in BY_PARTS:
        network, weights = network_of(seed)
        property_ = property_of_seed(seed)
        answer = solve(property_, network, partial(run, network), 5, certificates=True)
        tensors = tensors_of(answer)
        if answer.status != UNSAT or not any(name.endswith(SPLITS) for name in tensors):
            continue
        confirm_unsat(property_, network, partial(run, network), tensors)
        confirmed += 1
        violation = min(smallest_violation(weights, case) for case in property_.cases)  # exact
        with pytest.raises(NotConfirmedError):
            confirm_unsat(
                with_bounds_raised(property_, Fraction(violation) + TINY), network, partial(run, network), tensors
            )
    assert confirmed >= 3
