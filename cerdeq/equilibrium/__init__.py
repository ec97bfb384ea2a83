"""Equilibrium layers and the proofs about them."""

from cerdeq.equilibrium import rules  # which registers them
from cerdeq.equilibrium.certificate import (
    Contraction,
    NotContractiveError,
    contraction,
    interval_equilibrium,
    verified_box,
    verify_inclusion,
)
from cerdeq.equilibrium.layer import Equilibrium, FixedPoint, NotConvergedError, advance, fold, keep, use_attack_solvers
from cerdeq.equilibrium.solver import Solution
