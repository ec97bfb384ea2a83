"""How often the host reads from a GPU which rows of an iteration have stopped."""

import torch


def is_host_reading(step: int, device: torch.device) -> bool:
    """Return whether the host reads, at this step of an iteration, which of its rows have stopped.

    A CPU reads at every step, which costs nothing there. The host of a GPU waits at each reading for all work that it
    launched. So it reads more and more seldom; less than a quarter of the steps are wasted.
    """
    return device.type == "cpu" or step < 8 or step % 2 ** (step.bit_length() - 3) == 0
