"""Parametrisations of an equilibrium's W from a free kernel M, each with rho(|W|) <= 1 - margin by construction.

They are torch parametrisations (torch.nn.utils.parametrize): the module's `weight` is W, the free kernel is trained.
`certificate.contraction` proves the same of the stored W, in float64.
"""

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from cerdeq.equilibrium.certificate import channel_matrix
from cerdeq.precision import without_autocast

_POWER_ITERATIONS = 3
_NEWTON_SCHULZ_STEPS = 15
_RESERVE = 1e-5  # for rounding in float32, so that the bound can be proved on the stored W


class Parametrisation(nn.Module, ABC):
    """W = g C(M), C(M) a kernel with rho(|C(M)|) <= 1 - margin, whatever M is.

    The gain g is the sigmoid of a parameter: a clamped parameter would get no gradient at 0. With g < 1, rho(|W|) is
    below the bound even where rho(|C(M)|) is at it.

    With a gain for each output channel, W = diag(g) C(M): |W| <= |C(M)| element by element, so the bound holds as well.

    channels: of W.
    margin: the margin after training; `set_progress` moves it there.
    gain: first value of g, None for g = 1 throughout.
    margin_start: the margin before training, None for `margin`.
    channel_gain: whether each output channel has its own gain.

    Raises ValueError for values outside (0, 1), and for channel_gain without a gain.
    """

    margin: Tensor

    def __init__(
        self, channels: int, margin: float, gain: float | None, margin_start: float | None = None,
        channel_gain: bool = False,
    ):  # fmt: skip
        super().__init__()
        start = margin if margin_start is None else margin_start
        for name, value in (("margin", margin), ("margin_start", start), ("gain", 0.5 if gain is None else gain)):
            if not 0 < value < 1:
                raise ValueError(f"{name} must lie in (0, 1), found {value}")
        if channel_gain and gain is None:
            raise ValueError("channel_gain: true needs a gain in (0, 1), found gain None")
        self.margins = start, margin
        size = (channels,) if channel_gain else ()
        self.gain_logit = None if gain is None else nn.Parameter(torch.full(size, math.log(gain / (1 - gain))))
        self.register_buffer("margin", torch.tensor(start))

    @property
    def gain(self) -> Tensor:
        """Return the gain g in (0, 1], a scalar, or [C] with a gain for each channel."""
        return self.margin.new_ones(()) if self.gain_logit is None else torch.sigmoid(self.gain_logit)

    def set_progress(self, progress: float) -> None:
        """Set the margin for a training step whose eps is `progress` (0 to 1) of its target."""
        start, end = self.margins
        self.margin.fill_(start + (end - start) * min(max(progress, 0.0), 1.0))

    def forward(self, kernel: Tensor) -> Tensor:
        """Return W from the free kernel M."""
        with without_autocast(kernel):  # in bfloat16 the bound would not hold
            return self.gain.view(-1, *[1] * (kernel.dim() - 1)) * self.contractive(kernel)

    @abstractmethod
    def contractive(self, kernel: Tensor) -> Tensor:
        """Return C(M)."""

    def limit(self) -> Tensor:
        """Return the largest rho(|C(M)|) that is allowed: 1 - margin, less a reserve for rounding."""
        return (1 - self.margin) * (1 - _RESERVE)


class Perron(Parametrisation):
    """C(M) = N min(1, (1 - margin) / bound(N)), bound(N) = max_i (A v)_i / v_i >= rho(A) >= rho(|N|).

    The bound is Collatz and Wielandt's. N is M itself, A the channel matrix of |N|; v and the left Perron vector follow
    it by a few power iterations a training step. Any v > 0 makes the bound valid; a converged one makes it tight.
    Gradients pass through the scale by the Perron vectors, d rho = u v^T / (u . v).
    """

    left: Tensor
    right: Tensor

    def __init__(self, channels: int, *args: Any, **options: Any):
        super().__init__(channels, *args, **options)
        self.register_buffer("left", torch.ones(channels))
        self.register_buffer("right", torch.ones(channels))

    def unscaled(self, kernel: Tensor) -> Tensor:
        """Return N, before it is scaled under its bound."""
        return kernel

    def contractive(self, kernel: Tensor) -> Tensor:
        """Return C(M)."""
        unscaled = self.unscaled(kernel)
        matrix = channel_matrix(unscaled)
        if self.training:
            self._follow(matrix.detach())
        left, right = self.left.clone(), self.right.clone()
        estimate = (left @ matrix @ right) / (left @ right)
        proved = ((matrix @ right) / right).amax()
        bound = (estimate + (proved - estimate).detach()).clamp(min=1e-12)  # the gradient is the estimate's
        return unscaled * torch.clamp(self.limit() / bound, max=1.0)

    @torch.no_grad()
    def _follow(self, matrix: Tensor) -> None:
        floor = 1e-4 * matrix.mean() + 1e-12
        for _ in range(_POWER_ITERATIONS):
            right = matrix @ self.right + floor * self.right.sum()
            left = self.left @ matrix + floor * self.left.sum()
            self.right.copy_(right / right.amax())
            self.left.copy_(left / left.amax())


class NonNegative(Perron):
    """`Perron` of N = n M^2, element by element, n the fan-in, so that N starts at the size of M.

    W >= 0 makes z increase with h: its interval equilibrium is exact, [z(lower h), z(upper h)].
    """

    def unscaled(self, kernel: Tensor) -> Tensor:
        """Return N."""
        return kernel[0].numel() * kernel.square()


class Orthogonal(Perron):
    """`Perron` of N with orthonormal rows: CerDEQ's weight orthogonalisation (Li, Wang and Lin 2022; our reading).

    M: [C, C / groups, ...]. N is block diagonal, each group's rows made orthonormal as a matrix by Newton-Schulz
    iteration (Bjorck and Bowie 1971), exactly so where M's rows are not close to dependent. rho(|N|) grows like the
    square root of a group's fan-in, so more groups need less scaling. W is N scaled down: its rows are orthogonal
    within a group, of equal norms below 1.
    """

    def unscaled(self, kernel: Tensor) -> Tensor:
        """Return N, [C, C, ...]."""
        channels, inputs = kernel.shape[:2]
        rows = kernel.reshape(channels // inputs, inputs, -1)
        norms = rows.abs().sum(2).amax(1) * rows.abs().sum(1).amax(1)  # at least the square of the spectral norm
        rows = rows / norms.clamp(min=1e-24).sqrt()[:, None, None]
        for _ in range(_NEWTON_SCHULZ_STEPS):
            rows = 1.5 * rows - 0.5 * (rows @ rows.mT) @ rows
        blocks = rows.reshape(-1, inputs, inputs, *kernel.shape[2:])
        groups = len(blocks)
        identity = torch.eye(groups, dtype=kernel.dtype, device=kernel.device)
        spread = torch.einsum("goi...,gh->gohi...", blocks, identity)
        return spread.reshape(channels, channels, *kernel.shape[2:])


class Monotone(Parametrisation):
    """C(M) = D^-1/2 M D^-1/2, D = diag((A + A^T) 1 / 2) / (1 - margin) + 1e-8, A the channel matrix of |M|.

    IBP-MonDEQ (Wei and Kolter 2022), for which D has zero-padded sums for each pixel; here it is one number a channel,
    that of pixels inside the image, which is at least as large. rho(|C|) is at most the largest eigenvalue of its
    symmetric part, similar to D^-1 (A + A^T) / 2, whose rows sum to at most 1 - margin.
    """

    def contractive(self, kernel: Tensor) -> Tensor:
        """Return C(M)."""
        matrix = channel_matrix(kernel)
        diagonal = (matrix.sum(0) + matrix.sum(1)) / (2 * self.limit()) + 1e-8
        scale = diagonal.rsqrt()
        others = [1] * (kernel.dim() - 2)
        return kernel * scale.view(-1, 1, *others) * scale.view(1, -1, *others)


PARAMETRISATIONS: dict[str, type[Parametrisation]] = {
    "perron": Perron, "nonnegative": NonNegative, "monotone": Monotone, "orthogonal": Orthogonal,
}  # fmt: skip
