"""The base class of training methods."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from cerdeq.bounds import Program
from harness.methods.passes import Adversary, Batch, Losses


@dataclass(frozen=True)
class Method(ABC):
    """A training method. Its fields are its options; the string below a field documents it.

    name: in sweep files. linear: True if the method needs operators' backward rules.
    """

    __pydantic_config__: ClassVar = {"use_attribute_docstrings": True}

    name: ClassVar[str]
    linear: ClassVar[bool] = False

    @abstractmethod
    def loss(self, program: Program, batch: Batch) -> Losses:
        """Return the loss of one batch, with the bounds it was computed from."""

    def attack(self, program: Program, batch: Batch) -> Adversary | None:
        """Return `batch.adversary`, in most methods images [B, C, H, W]; None if the method has no attack."""
        return None

    def check(self, program: Program, teacher: Program | None) -> None:  # noqa: B027  most methods train every network
        """Raise ValueError if the method cannot train this network, by its teacher if there is one."""

    def ignored(self) -> dict[str, str]:
        """Return the recipe's settings and own options that change nothing here, each with the reason.

        A sweep that sets one of them gets a warning. Settings that depend on the network: harness.config.buildable.
        """
        return {}

    def at(self, progress: float) -> "Method":
        """Return what trains when eps is `progress` of its target: this method, or another in or after the ramp."""
        return self
