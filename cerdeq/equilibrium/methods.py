"""How a `FixedPoint` solves z = relu(W z + h), and what its gradient is: objects that it is given.

| solver | needs | in training | in evaluation |
|---|---|---|---|
| `Picard` | rho(|W|) < 1 | a fixed count of steps | steps to a tolerance |
| `PeacemanRachford` | I - W strongly monotone | to a tolerance | to a tolerance |

An adjoint is `Implicit` or `Unrolled`.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Picard:
    """Picard iteration from relu(h).

    In evaluation it goes to a tolerance (relative, per example: 1e-5 in float32, 1e-10 in float64). If rho(|W|) is so
    near 1 that 20,000 steps are not enough, Anderson's method goes on.

    iterations: the steps in training.
    early_iterations: their first count, from which `set_progress` raises it; None for `iterations` throughout.

    Raises ValueError for a count out of range.
    """

    iterations: int = 10
    early_iterations: int | None = None

    def __post_init__(self) -> None:
        if self.iterations < 1:
            raise ValueError(f"iterations must be at least 1, found {self.iterations}")
        early = self.iterations_at(0.0)
        if not 1 <= early <= self.iterations:
            raise ValueError(f"early_iterations must lie between 1 and iterations = {self.iterations}, found {early}")

    def iterations_at(self, progress: float) -> int:
        """Return the steps in training for eps at `progress` (0 to 1) of its target.

        They grow in two steps, at a third and at two thirds, since each count is compiled anew.
        """
        early, late = self.early_iterations, self.iterations
        early = late if early is None else early
        return (early, (early + late) // 2, late)[min(max(int(3 * progress), 0), 2)]


@dataclass(frozen=True)
class PeacemanRachford:
    """Peaceman-Rachford splitting (Winston and Kolter 2020) in float64, by inverses of dense matrices.

    It always goes to a tolerance, and its gradient solves a linear system for each example: it uses no adjoint.
    """

    def iterations_at(self, progress: float) -> int:
        """Return 0: the solve has no fixed count of steps."""
        return 0


@dataclass(frozen=True)
class Implicit:
    """The gradient by the implicit function theorem, after a fixed count of Picard steps (Bai et al. 2019).

    iterations: the count; also of the adjoint equilibrium of CROWN-IBP in training. Raises ValueError if it is below 1.
    """

    iterations: int = 6

    def __post_init__(self) -> None:
        if self.iterations < 1:
            raise ValueError(f"backward_iterations must be at least 1, found {self.iterations}")


@dataclass(frozen=True)
class Unrolled(Implicit):
    """In training the gradient of the solver's steps themselves, which all stay in memory; else as `Implicit`."""


Solver = Picard | PeacemanRachford
PICARD, IMPLICIT = Picard(), Implicit()
"""The defaults of `FixedPoint`."""
ADJOINTS = {"implicit": Implicit, "unrolled": Unrolled}
"""By the names that `Equilibrium` takes."""
