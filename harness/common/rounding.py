"""Round exact numbers to floats in one direction."""

from fractions import Fraction

import numpy as np


def round_up(number: Fraction, kind: type[np.floating]) -> float:
    """Return the smallest float of a kind that is at least `number`."""
    rounded = kind(float(number))
    return float(rounded if Fraction(float(rounded)) >= number else np.nextafter(rounded, kind(np.inf)))
