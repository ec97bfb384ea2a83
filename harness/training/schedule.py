"""Schedules as functions of the optimiser step, counted from 0."""

from dataclasses import dataclass

EPS_FLOOR = 1e-6


@dataclass(frozen=True)
class Ramp:
    """The smoothed ramp of eps (Xu et al. 2020): a quartic up to a quarter of the way, then straight, slopes matching.

    start: its first epoch, counted from 1. length: in epochs. steps: optimiser steps an epoch.
    """

    eps: float
    start: int
    length: int
    steps: int

    def __call__(self, step: int) -> float:
        """Return eps at `step`, in pixel units; at least EPS_FLOOR, since regularisers divide by radii."""
        first = (self.start - 1) * self.steps
        last = first + self.length * self.steps
        if step >= last:
            return self.eps
        middle = first + int(0.25 * (last - first))
        done = max(step - first, 0)
        if middle == first:
            return max(EPS_FLOOR, self.eps * done / (last - first))
        cube = (middle - first) ** 3
        slope = self.eps / (4 * cube * (last - middle) + cube * (middle - first))
        value = slope * done**4 if step < middle else slope * cube * ((middle - first) + 4 * (step - middle))
        return max(EPS_FLOOR, value)


def learning_rate(base: float, decay_epochs: tuple[int, ...], factor: float, epoch: int) -> float:
    """Return the learning rate in `epoch` (from 1): `base` multiplied by `factor` once each decay epoch has passed."""
    return base * factor ** sum(epoch > decay for decay in decay_epochs)
