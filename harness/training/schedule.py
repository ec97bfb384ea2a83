"""Schedules: the ramp of eps and the learning rate."""

from dataclasses import dataclass

from harness.settings import RampShape

EPS_FLOOR = 1e-6


@dataclass(frozen=True)
class Ramp:
    """The ramp of eps. 'smooth': a quartic up to a quarter of the way, then straight, slopes matching (Xu et al. 2020).

    start: its first epoch, counted from 1. length: in epochs. steps: optimiser steps an epoch. shape: the setting.
    """

    eps: float
    start: int
    length: int
    steps: int
    shape: RampShape = "smooth"

    def __call__(self, step: int) -> float:
        """Return eps at `step`, in pixel units; at least EPS_FLOOR, since regularisers divide by radii."""
        first = (self.start - 1) * self.steps
        last = first + self.length * self.steps
        if step >= last:
            return self.eps
        middle = first + int(0.25 * (last - first))
        done = max(step - first, 0)
        if middle == first or self.shape == "linear":
            return max(EPS_FLOOR, self.eps * done / max(1, last - first))  # without a ramp, before its start: 0
        cube = (middle - first) ** 3
        slope = self.eps / (4 * cube * (last - middle) + cube * (middle - first))
        value = slope * done**4 if step < middle else slope * cube * ((middle - first) + 4 * (step - middle))
        return max(EPS_FLOOR, value)


def learning_rate(base: float, decay_epochs: tuple[int, ...], factor: float, epoch: int) -> float:
    """Return the learning rate in `epoch` (from 1): `base` multiplied by `factor` once each decay epoch has passed."""
    return base * factor ** sum(epoch > decay for decay in decay_epochs)
