"""Certified bounds of neural networks, explicit and equilibrium. Needs torch alone."""

from cerdeq.bounds import bound, margin_spec
from cerdeq.boxes import Box, LinfBall
from cerdeq.equilibrium import Equilibrium

__all__ = ["Box", "Equilibrium", "LinfBall", "bound", "margin_spec"]
