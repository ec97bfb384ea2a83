"""Random crops and flips on the device, as one gather of uint8 pixels."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Draws:
    """One epoch's random choices, all [N] in the order of training: image index, flip, crop offset down and across."""

    index: Tensor
    flip: Tensor
    down: Tensor
    across: Tensor

    def batch(self, start: int, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the choices for examples start .. start + size."""
        part = slice(start, start + size)
        return self.index[part], self.flip[part], self.down[part], self.across[part]


def seed_of(seed: int, epoch: int) -> int:
    """Return the seed of an epoch's random choices."""
    return seed * 1_000_003 + epoch


def draw(images: int, padding: int, flip: bool, seed: int, epoch: int, device: torch.device) -> Draws:
    """Return the choices of `epoch`, which depend on seed and epoch alone, so that a resumed run repeats them."""
    generator = torch.Generator().manual_seed(seed_of(seed, epoch))
    index = torch.randperm(images, generator=generator)
    flips = torch.randint(0, 2, (images,), generator=generator).bool() & flip
    offsets = torch.randint(-padding, padding + 1, (2, images), generator=generator)
    return Draws(*(part.to(device) for part in (index, flips, offsets[0], offsets[1])))


def augment(images: Tensor, index: Tensor, flip: Tensor, down: Tensor, across: Tensor) -> Tensor:
    """Return the images at `index` of `images` (uint8 [N, C, H, W]), flipped and cropped: [B, C, H, W] in [0, 1].

    A crop after padding by repeated edges is a shift with clamped coordinates.
    """
    _, channels, height, width = images.shape
    rows = (torch.arange(height, device=images.device) + down[:, None]).clamp(0, height - 1)
    columns = (torch.arange(width, device=images.device) + across[:, None]).clamp(0, width - 1)
    columns = torch.where(flip[:, None], width - 1 - columns, columns)
    positions = rows[:, :, None] * width + columns[:, None, :]
    chosen = images.index_select(0, index).flatten(2)
    pixels = chosen.gather(2, positions.flatten(1)[:, None].expand_as(chosen)).view(-1, channels, height, width)
    return pixels.to(torch.float32) / 255
