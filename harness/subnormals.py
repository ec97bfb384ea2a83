"""What subnormal numbers cost, spared where nothing is proved."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def without_subnormals() -> Iterator[None]:
    """Within, a CPU takes subnormal numbers for 0, in this thread; after it, as IEEE 754 has it.

    It takes many times as long over them, and an equilibrium whose W has entries near 0 makes them by the thousand. For
    steps of training and searches of attacks; bounds are computed outside.
    """
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
