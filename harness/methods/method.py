"""What every training method is."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from cerdeq.bounds import Program
from harness.methods.passes import Batch, Losses


@dataclass(frozen=True)
class Method:
    """A training method with its options, which are its fields; what stands below a field says what it means.

    name: in sweep files. linear: whether it needs operators' backward rules.
    """

    __pydantic_config__: ClassVar = {"use_attribute_docstrings": True}

    name: ClassVar[str]
    linear: ClassVar[bool] = False

    def loss(self, program: Program, batch: Batch) -> Losses:
        """The loss of one batch, and what was bounded on the way."""
        raise NotImplementedError

    def attack(self, program: Program, batch: Batch) -> Tensor | None:
        """The adversarial examples [B, C, H, W] for `batch.adversary`; None where the method has no attack."""
        return None

    def ignored(self) -> dict[str, str]:
        """The recipe's settings and own options that change nothing here, each with the reason, as `it ...`.

        Sweep files that set them are refused. What of a recipe depends on the network is not said here.
        """
        return {}

    def at(self, progress: float) -> "Method":
        """A method with the same loss when eps is `progress` of its target, where one costs less."""
        return self


METHODS: dict[str, type[Method]] = {}
"""Every training method by its name."""


def register(kind: type[Method]) -> type[Method]:
    """Class decorator: the method becomes one that sweeps can name. Raises ValueError where its name is taken."""
    if kind.name in METHODS:
        raise ValueError(f"training method {kind.name!r} is registered twice")
    METHODS[kind.name] = kind
    return kind
