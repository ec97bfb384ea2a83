"""Equilibrium layers and the proofs about them."""

from cerdeq.equilibrium import rules  # which registers them
from cerdeq.equilibrium.certificate import Contraction, NotContractiveError, contraction, verified_box, verify_inclusion
from cerdeq.equilibrium.layer import (
    Equilibrium,
    FixedPoint,
    NotConvergedError,
    fold,
    replace_fixed_points,
    restrict_solutions,
    set_progress,
    use_attack_solvers,
)
from cerdeq.equilibrium.methods import Implicit, PeacemanRachford, Picard, Unrolled
from cerdeq.equilibrium.solver import Solution
