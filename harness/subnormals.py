"""What subnormal numbers cost, spared where nothing is proved."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def without_subnormals() -> Iterator[None]:
    """Within, a CPU takes subnormal numbers for 0; after it, as IEEE 754 has it.

    It takes many times as long over them, and an equilibrium whose W has entries near 0 makes them by the thousand. For
    steps of training and searches of attacks; bounds are computed outside. Where torch computes in several threads
    nothing changes: it is a switch of each thread, and one that is made within keeps it, whatever it computes later.
    """
    try:
        torch.set_flush_denormal(torch.get_num_threads() == 1)
        yield
    finally:
        torch.set_flush_denormal(False)
