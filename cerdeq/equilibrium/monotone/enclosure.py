"""Numbers known up to an error: products and sums of matrices in float64 with every rounding error counted."""

from dataclasses import dataclass

import torch
from torch import Tensor

from cerdeq.deadline import check

_EPS, _TINY = torch.finfo(torch.float64).eps, torch.finfo(torch.float64).tiny


@dataclass(frozen=True)
class Enclosure:
    """All tensors within `error` of `value`, element by element. Both float64, of one shape."""

    value: Tensor
    error: Tensor

    @staticmethod
    def exact(value: Tensor) -> "Enclosure":
        """Return a tensor without error."""
        return Enclosure(value, torch.zeros_like(value))

    def __matmul__(self, other: "Enclosure") -> "Enclosure":
        """Return the product: a sum of n products is off by at most gamma_n times the sum of their magnitudes."""
        check()
        terms = self.value.shape[-1]
        magnitude = other.value.abs() + other.error
        size = self.value.abs()  # gamma comes last: its product with small numbers could underflow
        error = self.error @ magnitude + size @ other.error + gamma(terms) * (size @ magnitude)
        return Enclosure(self.value @ other.value, rounded_up(error, terms))

    def __add__(self, other: "Enclosure") -> "Enclosure":
        value = self.value + other.value
        return Enclosure(value, rounded_up(self.error + other.error + _EPS * value.abs(), 4))

    def __sub__(self, other: "Enclosure") -> "Enclosure":
        return self + Enclosure(-other.value, other.error)

    def scaled(self, factor: Tensor) -> "Enclosure":
        """Return the product with an exact tensor, element by element."""
        value = self.value * factor
        return Enclosure(value, rounded_up(self.error * factor.abs() + _EPS * value.abs(), 4))

    @property
    def mT(self) -> "Enclosure":  # noqa: N802
        """The transpose."""
        return Enclosure(self.value.mT, self.error.mT)

    @property
    def magnitude(self) -> Tensor:
        """At least the absolute value, element by element."""
        return rounded_up(self.value.abs() + self.error, 2)


def gamma(terms: int) -> float:
    """Return twice Higham's gamma of a sum of `terms` products and a few operations more."""
    return (terms + 8) * _EPS


def rounded_up(value: Tensor, terms: int) -> Tensor:
    """Return an upper bound of the exact value of a computed sum of `terms` nonnegative products."""
    return value * (1 + gamma(2 * terms)) + 4 * (terms + 8) * _TINY


def sum_rounded_up(value: Tensor) -> Tensor:
    """Return at least the sum over the last dimension of numbers of at least 0."""
    return rounded_up(value.sum(-1), value.shape[-1])


def largest_eigenvalue(matrix: Enclosure) -> float:
    """Return at least the largest eigenvalue of a symmetric matrix, infinity if that fails.

    V^T Q V of approximate eigenvectors V is almost diagonal, so that its row sums are near the eigenvalues.
    """
    if not bool((matrix.value.isfinite() & matrix.error.isfinite()).all()):
        return torch.inf
    check()
    vectors = Enclosure.exact(torch.linalg.eigh((matrix.value + matrix.value.mT) / 2).eigenvectors)
    identity = Enclosure.exact(torch.eye(len(matrix.value), dtype=torch.float64, device=matrix.value.device))
    defect = float(sum_rounded_up((vectors.mT @ vectors - identity).magnitude).max())
    reach = float(sum_rounded_up((vectors.mT @ (matrix @ vectors)).magnitude).max())
    return reach / (1 - defect) * (1 + gamma(8)) if defect < 0.5 else torch.inf
