"""Compute without subnormal numbers where nothing is proved."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def without_subnormals() -> Iterator[None]:
    """Treat subnormal numbers as 0 on a CPU within the block, for training steps and attacks; never for bounds.

    They are many times slower, and an equilibrium whose W has entries near 0 makes thousands of them. With several
    threads nothing changes: the switch is one of each thread, and a thread made within the block would keep it.
    """
    try:
        torch.set_flush_denormal(torch.get_num_threads() == 1)
        yield
    finally:
        torch.set_flush_denormal(False)
