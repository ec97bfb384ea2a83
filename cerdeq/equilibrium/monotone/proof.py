"""Proof that z = relu(W z + h) has exactly one solution for each h, and how far it moves with h, for a dense W.

Let S be the symmetric part of I - W. relu is firmly nonexpansive in each unit, so that two equilibria z, z' of h, h'
satisfy, with w = z - z' and g = h - h' (Winston and Kolter 2020),

    w . S w  <=  w . g.

Let K be any matrix for which K^T S K is within delta < 1 of the identity. Then S is positive definite, hence there is
one equilibrium. With w = K y the inequality gives (1 - delta) |y|^2 <= y . K^T g, so y lies in the ball around v / 2 of
radius |v| / 2, where v = K^T g / (1 - delta), and

    w_i  lies within  |K_i| |v| / 2  of  (K v)_i / 2        (K_i: row i).

K comes from a Cholesky factor in float64; how it was computed does not matter, since the proof is a product.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from cerdeq.deadline import check
from cerdeq.equilibrium.monotone.enclosure import Enclosure, gamma, largest_eigenvalue, sum_rounded_up
from cerdeq.equilibrium.monotone.splitting import Splitting


@dataclass(frozen=True)
class Monotonicity:
    """Proof of strong monotonicity: W [N, N], K [N, N] and delta, all float64; delta is infinity if nothing is proved.

    splitting: the solver of this W.
    """

    weight: Tensor
    root: Tensor
    delta: float
    splitting: Splitting

    @cached_property
    def square(self) -> Enclosure:
        """K K^T, about the inverse of S."""
        k = Enclosure.exact(self.root)
        return k @ k.mT

    @cached_property
    def modulus(self) -> float:
        """m > 0 with I - (W + W^T) / 2 >= m I; about its least eigenvalue, 0 or below, if nothing is proved."""
        if self.is_proved:  # |w|^2 <= largest eigenvalue of K K^T times |y|^2
            return float((1 - self.delta) / largest_eigenvalue(self.square) * (1 - gamma(8)))
        symmetric = symmetric_part(self.weight).value.nan_to_num()
        return min(float(torch.linalg.eigvalsh(symmetric)[0]) if len(symmetric) else 0.0, 0.0)

    @property
    def is_proved(self) -> bool:
        """True if the layer has exactly one equilibrium for each h."""
        return self.delta < 1


def symmetric_part(weight: Tensor) -> Enclosure:
    """Return S, the symmetric part of I - W."""
    half = (_identity(weight) - Enclosure.exact(weight)).scaled(torch.full_like(weight, 0.5))
    return half + half.mT


def check_root(weight: Tensor, root: Tensor, splitting: Splitting | None = None) -> Monotonicity:
    """Return the proof that K = `root` gives, whatever it is. splitting: the solver of this W, if there is one."""
    symmetric, k = symmetric_part(weight), Enclosure.exact(root)
    delta = float(sum_rounded_up((k.mT @ (symmetric @ k) - _identity(weight)).magnitude).max())
    return Monotonicity(weight, root, delta if delta < 1 else torch.inf, splitting or Splitting(weight))


def monotonicity(weight: Tensor, splitting: Splitting | None = None) -> Monotonicity:
    """Return a proof for a dense W [N, N], or a failed one; `splitting` as in `check_root`."""
    weight = weight.detach().double()
    check()
    factor, failed = torch.linalg.cholesky_ex(symmetric_part(weight).value)
    if bool(failed.any()):
        return check_root(weight, torch.zeros_like(weight), splitting)
    return check_root(weight, torch.linalg.solve_triangular(factor.mT, _identity(weight).value, upper=True), splitting)


def _identity(weight: Tensor) -> Enclosure:
    return Enclosure.exact(torch.eye(len(weight), dtype=weight.dtype, device=weight.device))
