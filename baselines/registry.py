"""Networks by name. A new one is a file in this folder, or in a plugin, with a function under @register("name")."""

import difflib
import inspect
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from baselines.datasets import DATASETS

Builder = Callable[..., nn.Sequential]
_BUILDERS: dict[str, Builder] = {}
_NAME = r"[A-Za-z0-9][A-Za-z0-9_.:-]*"  # names are parts of file names, too
_NORMALIZE = "normalize"


class UnknownNameError(ValueError):
    """A name that no registry has; the message gives the nearest one and all that are allowed."""

    def __init__(self, kind: str, name: object, known: list[str]):
        near = difflib.get_close_matches(str(name).lower(), known, n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        super().__init__(f"unknown {kind} {name!r}{hint} Known: {', '.join(known)}")
        self.name, self.known, self.near = name, known, near


class UnknownOptionError(TypeError):
    """An option that its owner does not take; the message gives all that it does. option: its name."""

    def __init__(self, option: str, owner: str, known: Iterable[str]):
        super().__init__(f"unknown option {option!r} of {owner}; allowed: {', '.join(known) or 'none'}")
        self.option = option


def refuse_unknown_options(owner: str, chosen: Iterable[str], known: Mapping[str, inspect.Parameter]) -> None:
    """Raise UnknownOptionError for the first of the `chosen` options of `owner` that is not `known`."""
    for option in chosen:
        if option not in known:
            raise UnknownOptionError(option, owner, known)


class Normalize(nn.Module):
    """(x - mean) / std per channel: a model's first layer, so that eps is always in pixel units."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """x [B, C, H, W], pixels in [0, 1], normalised."""
        return (x - self.mean) / self.std


def register(name: str) -> Callable[[Builder], Builder]:
    """Decorator: a function (shape, classes, width, **options) -> nn.Sequential becomes a network with this name.

    Raises ValueError where there is a network of this name, or it is none.
    """
    if not re.fullmatch(_NAME, name):
        raise ValueError(f"network {name!r}: a name has letters, digits, '_', '-', '.' and ':' alone")

    def add(builder: Builder) -> Builder:
        if name in _BUILDERS:
            raise ValueError(f"network {name!r} is registered twice")
        _BUILDERS[name] = builder
        return builder

    return add


def network_names() -> list[str]:
    """Every registered network's name."""
    return list(_BUILDERS)


def options_of(network: str | Builder) -> dict[str, inspect.Parameter]:
    """The options a network takes, by name, with their types and defaults; without a type they take anything.

    Raises UnknownNameError.
    """
    builder = _builder(network)
    fixed = {"shape", "classes", "width", *getattr(builder, "keywords", ())}  # the last: what a partial says already
    found = {option: p for option, p in inspect.signature(builder).parameters.items() if option not in fixed}
    return {option: p if p.annotation is not p.empty else p.replace(annotation=Any) for option, p in found.items()}


def build(network: str | Builder, dataset: str = "cifar10", width: float = 1.0, **options: Any) -> nn.Sequential:
    """A network for a data set, pixels in [0, 1] to logits; `width` multiplies every channel count.

    network: its name, or a function as `register` takes. Raises UnknownNameError for an unknown network or data set,
    UnknownOptionError for an unknown option, ValueError for an option out of range, TypeError for what a function
    makes where it is no chain of layers.
    """
    if dataset not in DATASETS:
        raise UnknownNameError("data set", dataset, list(DATASETS))
    if not width > 0:
        raise ValueError(f"width must be positive, found {width}")
    refuse_unknown_options(str(network), options, options_of(network))
    data = DATASETS[dataset]
    body = _builder(network)(shape=data.shape, classes=data.classes, width=width, **options)
    if getattr(type(body), "forward", None) is not nn.Sequential.forward or _NORMALIZE in body._modules:
        allowed = f"an nn.Sequential with its own forward, no layer of it called {_NORMALIZE!r}"
        raise TypeError(f"network {network!r}: found {type(body).__name__}, allowed: {allowed}")
    # not named_children, which has a layer that is used twice once
    return nn.Sequential(OrderedDict([(_NORMALIZE, Normalize(data.mean, data.std)), *body._modules.items()]))


def _builder(network: str | Builder) -> Builder:
    if not isinstance(network, str):
        return network
    if network not in _BUILDERS:
        raise UnknownNameError("network", network, network_names())
    return _BUILDERS[network]
