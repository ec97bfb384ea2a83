"""How often the host looks at what an iteration on a GPU has reached."""

import torch


def is_read(step: int, device: torch.device) -> bool:
    """Return whether the host reads, at this step of an iteration, which of its rows have stopped.

    A CPU reads at every step: that costs nothing there, and no step is in vain. The host of a GPU waits at each reading
    for all that it launched, so that it reads more and more seldom: less than a quarter of the steps are in vain.
    """
    return device.type == "cpu" or step < 8 or step % 2 ** (step.bit_length() - 3) == 0
