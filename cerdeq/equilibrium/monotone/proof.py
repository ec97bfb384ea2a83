"""Proof that z = relu(W z + h) has exactly one solution for each h, and how far it moves with h, for a dense W.

Let D > 0 be diagonal and S the symmetric part of D (I - W). relu is firmly nonexpansive in each unit, so that two
equilibria z, z' of h, h' satisfy, with w = z - z' and g = D (h - h') (Winston and Kolter 2020, for D = I),

    w . S w  <=  w . g.

Let K be any matrix for which K^T S K is within delta < 1 of the identity. Then S is positive definite, hence there is
one equilibrium. With w = K y the inequality gives (1 - delta) |y|^2 <= y . K^T g, so y lies in the ball around v / 2 of
radius |v| / 2, where v = K^T g / (1 - delta), and

    w_i  lies within  |K_i| |v| / 2  of  (K v)_i / 2        (K_i: row i).

K comes from a Cholesky factor in float64; how it was computed does not matter, since the proof is a product.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from cerdeq.equilibrium.monotone.enclosure import Enclosure, gamma, largest_eigenvalue, sum_rounded_up

_POWER_ITERATIONS = 200
_SMALLEST = 1e-12  # entry of a Perron vector, in units of the largest


@dataclass(frozen=True)
class Monotonicity:
    """Proof of strong monotonicity: W [N, N], D [N], K [N, N] and delta, all float64.

    modulus: m > 0 with D (I - W) + (I - W)^T D >= 2 m D. Not above 0 if nothing is proved; then delta is not below 1.
    """

    weight: Tensor
    scale: Tensor
    root: Tensor
    delta: float
    modulus: float

    @property
    def is_proved(self) -> bool:
        """True if the layer has exactly one equilibrium for each h."""
        return self.delta < 1


def symmetric_part(weight: Tensor, scale: Tensor) -> Enclosure:
    """Return S, the symmetric part of D (I - W)."""
    identity = torch.eye(len(weight), dtype=weight.dtype, device=weight.device)
    half = (Enclosure.exact(identity) - Enclosure.exact(weight)).scaled(scale[:, None] / 2)
    return half + half.mT


def check_root(weight: Tensor, scale: Tensor, root: Tensor) -> Monotonicity:
    """Return the proof that K = `root` gives, whatever it is."""
    symmetric, k = symmetric_part(weight, scale), Enclosure.exact(root)
    identity = Enclosure.exact(torch.eye(len(weight), dtype=weight.dtype, device=weight.device))
    delta = float(sum_rounded_up((k.mT @ (symmetric @ k) - identity).magnitude).max())
    is_proved = delta < 1 and bool((scale > 0).all()) and bool(torch.isfinite(scale).all())
    if not is_proved:
        modulus = float(torch.linalg.eigvalsh((symmetric.value / scale).nan_to_num())[0]) if len(weight) else 0.0
        return Monotonicity(weight, scale, root, torch.inf, min(modulus, 0.0))
    # |w|^2 <= largest eigenvalue of K K^T times |y|^2, and w . D w <= max(D) |w|^2
    size = largest_eigenvalue(k @ k.mT)
    return Monotonicity(weight, scale, root, delta, float((1 - delta) / (size * scale.max()) * (1 - gamma(8))))


def monotonicity(weight: Tensor) -> Monotonicity:
    """Return a proof for a dense W [N, N] with D = I, else with a D from Perron vectors of |W|, else a failed one."""
    weight = weight.detach().double()
    proof = _proof_with(weight, torch.ones_like(weight[:, 0]))
    if proof.is_proved:
        return proof
    other = _proof_with(weight, _perron_scale(weight))
    return other if other.is_proved else proof


def _proof_with(weight: Tensor, scale: Tensor) -> Monotonicity:
    symmetric = symmetric_part(weight, scale).value
    factor, failed = torch.linalg.cholesky_ex(symmetric)
    identity = torch.eye(len(weight), dtype=weight.dtype, device=weight.device)
    if bool(failed.any()):
        return check_root(weight, scale, torch.zeros_like(weight))
    return check_root(weight, scale, torch.linalg.solve_triangular(factor.mT, identity, upper=True))


def _perron_scale(weight: Tensor) -> Tensor:
    """Return D = left / right Perron vector of |W|: if rho(|W|) < 1, W is strongly monotone in its norm."""

    def vector(matrix: Tensor) -> Tensor:
        v = torch.ones_like(matrix[:, 0])
        for _ in range(_POWER_ITERATIONS):
            product = matrix @ v
            v = product + 0.1 * v * (product / v).max() + 1e-300
            v = (v / v.max()).clamp(min=_SMALLEST)
        return v

    return vector(weight.abs().mT) / vector(weight.abs())
