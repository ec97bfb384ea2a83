"""The checker on results that the search over parts of the input box proved."""

from fractions import Fraction

from small_results import TINY, proved_by, solved, tensors_of, with_bounds_raised

from harness.checker.proofs.box_parts import SPLITS

BY_PARTS = (36, 44, 57, 67)  # seeds of results that need parts of the box


def test_results_by_parts_are_confirmed_and_prove_no_other_property():
    for seed in BY_PARTS:
        network, _, property_, result, violation = solved(seed)
        tensors = tensors_of(result)
        assert result.status == "unsat" and violation > -1e-9 and any(name.endswith(SPLITS) for name in tensors)
        assert proved_by(network, property_, tensors), seed
        assert not proved_by(network, with_bounds_raised(property_, Fraction(violation) + TINY), tensors), seed
