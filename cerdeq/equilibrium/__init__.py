"""Equilibrium layers and the proofs about them."""

from cerdeq.equilibrium.certificate import Contraction, NotContractiveError, contraction, verified_box, verify_inclusion
from cerdeq.equilibrium.layer import Equilibrium, FixedPoint, NotConvergedError, fold
from cerdeq.equilibrium.solver import Solution

__all__ = [
    "Contraction",
    "Equilibrium",
    "FixedPoint",
    "NotContractiveError",
    "NotConvergedError",
    "Solution",
    "contraction",
    "fold",
    "verified_box",
    "verify_inclusion",
]
