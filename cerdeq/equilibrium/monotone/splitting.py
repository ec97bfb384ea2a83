"""Equilibria of strongly monotone layers, dense W, by Peaceman-Rachford splitting, and gradients in their h.

z solves 0 in (I - W) z - h + N(z), N the normal cone of z >= 0; the splitting alternates the resolvents of both parts
(Winston and Kolter 2020). Unlike Picard iteration it converges whenever I - W is strongly monotone.
"""

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from cerdeq.deadline import check
from cerdeq.equilibrium.solver import NotConvergedError, Solution

_SPLITTING_TOLERANCE, _SPLITTING_LIMIT = 1e-13, 5000  # of the last step, in units of z
_SOLVED = 1e-9  # residual of a solution, in units of z
_TRAINING_TOLERANCE, _TRAINING_LIMIT = 1e-4, 100  # of solutions and gradients in float32; linear systems cost as much
_MOST_ENTRIES = 2**22  # of the linear systems that are solved together
_NORM_STEPS = 30


class Splitting:
    """The iteration for one W [N, N], in float64. Nothing that it returns is proved."""

    def __init__(self, weight: Tensor):
        self.weight = weight.detach().double()
        self.identity = torch.eye(len(weight), dtype=torch.float64, device=weight.device)

    @cached_property
    @torch.no_grad()
    def _step_and_inverse(self) -> tuple[Tensor, Tensor]:
        """The step t and the transpose of the inverse of I + t (I - W)."""
        gap = self.identity - self.weight
        check()
        modulus = torch.linalg.eigvalsh((gap + gap.mT) / 2)[:1].clamp(min=1e-6)
        check()
        step = 1 / (modulus * _norm_estimate(gap)).sqrt()
        return step, torch.linalg.inv_ex(self.identity + step * gap).inverse.mT

    @torch.no_grad()
    def solve(self, h: Tensor, tolerance: float = _SPLITTING_TOLERANCE) -> Solution:
        """Return about the equilibria of h [B, N] in float64, at least to `tolerance`."""
        h = h.double()

        def is_solved(z: Tensor) -> Tensor:
            return self._is_solved(h, z, tolerance)

        z, iterations = self._iterate(h, torch.relu, self._step_and_inverse[1], tolerance, is_solved, _SPLITTING_LIMIT)
        z = self._polish(h, z.nan_to_num())
        counts = torch.full((len(h),), iterations, device=h.device)
        return Solution(z, self._relative_residual(h, z), counts, is_solved(z))

    def equilibria(self, h: Tensor, in_training: bool = False) -> Tensor:
        """Return the equilibria of h [B, N] in its precision, in training to about four digits.

        Raises NotConvergedError if the iteration does not converge.
        """
        return self._solve_in_training(h) if in_training else _converged(self.solve(h)).to(h)

    @torch.no_grad()
    def _solve_in_training(self, h: Tensor) -> Tensor:
        weight, inverse = self.weight.to(h), self._step_and_inverse[1].to(h)

        def is_solved(z: Tensor) -> Tensor:
            return self._is_near(torch.relu(z @ weight.mT + h), z)

        z, _ = self._iterate(h, torch.relu, inverse, _TRAINING_TOLERANCE, is_solved, _TRAINING_LIMIT)
        if bool(is_solved(z).all()):
            return z
        return _converged(self.solve(h, _TRAINING_TOLERANCE)).to(h)

    def gradient(self, z: Tensor, g: Tensor) -> Tensor:
        """Return the gradient in h [B, N] from a gradient g in the equilibria z [B, N]; in float32 to four digits."""
        active = torch.sign(z)
        if z.dtype == torch.float32:
            weight, inverse = self.weight.to(g), self._step_and_inverse[1].mT.to(g)

            def is_solved(y: Tensor) -> Tensor:
                return self._is_near(active * (y @ weight + g), y)

            y, _ = self._iterate(g, active.mul, inverse, _TRAINING_TOLERANCE, is_solved, _TRAINING_LIMIT)
            if bool(is_solved(y).all()):
                return y
        return self._solve_active(active, self.weight.mT, active * g)

    def _is_near(self, image: Tensor, z: Tensor) -> Tensor:
        """Return where z [B, N] is its image to four digits, each unit divided by 1 - W_ii."""
        residual = (image - z) / (1 - self.weight.diagonal()).to(z)
        return residual.abs().amax(1) <= _TRAINING_TOLERANCE * z.abs().amax(1)

    def _iterate(
        self, right: Tensor, project: Callable[[Tensor], Tensor], inverse: Tensor, tolerance: float,
        is_solved: Callable[[Tensor], Tensor], limit: int,
    ) -> tuple[Tensor, int]:  # fmt: skip
        """Return z [B, N] with z = project(W z + right) and the iterations; `inverse`: of I + t (I - W), transposed."""
        step = self._step_and_inverse[0].to(right)
        u, z = torch.zeros_like(right), torch.zeros_like(right)
        change, iterations = right.new_full((len(right),), torch.inf), 0
        while iterations < limit:
            check()
            # z may stay at 0 for some steps while u moves, so that its change alone says nothing
            if not bool((change > tolerance).any()) and bool(is_solved(z).all()):
                break
            reflected = 2 * z - u
            u = 2 * ((reflected + step * right) @ inverse) - reflected
            following = project(u)
            change = (following - z).abs().amax(1) / following.abs().amax(1).clamp(min=torch.finfo(z.dtype).tiny)
            z, iterations = following, iterations + 1
        return z, iterations

    def _polish(self, h: Tensor, z: Tensor) -> Tensor:
        """Return z after a Newton step for the signs of W z + h, where that lowers the residual."""
        active = (self._preactivation(h, z) > 0).to(z)
        newton = active * self._solve_active(active, self.weight, active * h).clamp(min=0)
        return torch.where((self._residual(h, newton) < self._residual(h, z))[:, None], newton, z)

    def _solve_active(self, active: Tensor, matrix: Tensor, right: Tensor) -> Tensor:
        """Return y [B, N] with y - active * (matrix y) = right; some systems at a time, so that memory is bounded."""
        identity, matrix, parts = self.identity.to(right), matrix.to(right), list[Tensor]()
        rows = max(1, _MOST_ENTRIES // matrix.numel())
        for a, b in zip(active.split(rows), right.split(rows), strict=True):
            check()
            parts.append(torch.linalg.solve_ex(identity - a[:, :, None] * matrix, b[:, :, None]).result[:, :, 0])
        return torch.cat(parts)

    def _preactivation(self, h: Tensor, z: Tensor) -> Tensor:
        return z @ self.weight.mT + h

    def _is_solved(self, h: Tensor, z: Tensor, tolerance: float) -> Tensor:
        return self._relative_residual(h, z) <= max(_SOLVED, 100 * tolerance)

    def _relative_residual(self, h: Tensor, z: Tensor) -> Tensor:
        return self._residual(h, z) / torch.relu(self._preactivation(h, z)).amax(1).clamp(min=1e-300)

    def _residual(self, h: Tensor, z: Tensor) -> Tensor:
        return (torch.relu(self._preactivation(h, z)) - z).abs().amax(1)


def _norm_estimate(matrix: Tensor) -> Tensor:
    """Return about the spectral norm of a matrix, by power iteration: a singular value decomposition takes too long."""
    v = torch.linspace(1, 2, len(matrix), dtype=matrix.dtype, device=matrix.device)
    for _ in range(_NORM_STEPS):
        v = matrix.mT @ (matrix @ v)
        v = v / v.norm().clamp(min=torch.finfo(v.dtype).tiny)
    return (matrix @ v).norm().clamp(min=1e-300)


def _converged(solution: Solution) -> Tensor:
    """Return the value of a solution. Raises NotConvergedError if it is none."""
    if missed := int((~solution.converged).sum()):
        total = len(solution.converged)
        raise NotConvergedError(f"{missed} of {total} equilibria did not converge: is I - W strongly monotone?")
    return solution.value
