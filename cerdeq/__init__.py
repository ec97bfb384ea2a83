"""Certified bounds of neural networks, explicit and equilibrium. Needs torch alone."""

from cerdeq.bounds import bound, margin_spec
from cerdeq.boxes import Box, LinfBall
from cerdeq.equilibrium import Equilibrium
from cerdeq.verify import Verification, verify

__all__ = ["Box", "Equilibrium", "LinfBall", "Verification", "bound", "margin_spec", "verify"]
