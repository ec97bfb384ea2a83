"""Networks by name. To add one, write a function under @register("name"), in a file of this folder or in a plugin.

Torch and this folder's networks are imported when a network is first looked up: names are checked without them.
"""

import importlib
import inspect
import pkgutil
import re
from collections import OrderedDict
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from baselines.datasets import DATASETS, Dataset
from baselines.unknown_names import UnknownNameError, refuse_unknown_options

if TYPE_CHECKING:
    from torch import nn

Builder = Callable[..., "nn.Module"]
_NAMES = (
    *("cnn", "cnn5", "cnn7", "cnn11", "densenet", "cerdeq", "deqlate", "deqscales", "deqdense", "deqsmall", "deq7"),
    *("mondeq", "tied", "tied9", "tiedsmall", "fc", "fcdeq", "fctied", "cnn-a", "convplus", "conv", "convdeq"),
    *("monotone", "onnx", "resnet", "resnet9", "wideresnet8", "resnext"),
)
"""The networks of this folder."""
_BUILDERS: dict[str, Builder] = {}
_NAME = r"[A-Za-z0-9][A-Za-z0-9_.:-]*"  # names are parts of file names, too
_NORMALIZE = "normalize"
DEEPEST = 1_000
"""How many layers an option may ask for: a network that nobody could train is not built."""


def check_layers(name: str, found: int, least: int) -> None:
    """Raise ValueError if an option asks for fewer layers than `least`, or more than DEEPEST."""
    if not least <= found <= DEEPEST:
        raise ValueError(f"{name} must be from {least} to {DEEPEST:,}, found {found}")


def register(name: str) -> Callable[[Builder], Builder]:
    """Return a decorator that makes a function (shape, classes, width, **options) -> nn.Module a named network.

    Raises ValueError where the name is taken, or has characters that are not allowed.
    """
    if not re.fullmatch(_NAME, name):
        raise ValueError(f"network {name!r}: allowed in a name: letters, digits, '_', '-', '.' and ':'")

    def add(builder: Builder) -> Builder:
        if name in _BUILDERS:
            raise ValueError(f"network {name!r} is registered twice")
        _BUILDERS[name] = builder
        return builder

    return add


@cache
def import_networks() -> None:
    """Import the modules of this folder, which register their networks."""
    for module in sorted(module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)])):
        importlib.import_module(f"baselines.{module}")


def network_names() -> list[str]:
    """Return the names of all networks, those that a plugin has registered last."""
    return list(dict.fromkeys([*_NAMES, *_BUILDERS]))


def check_network_name(name: str) -> str:
    """Return the name of a network. Raises UnknownNameError for any other name."""
    names = network_names()
    if name not in names:
        # `cnn15` was once what `cnn` with `depth: 15` is now.
        family = name.rstrip("0123456789")
        depth = name.removeprefix(family)
        has_depths = family in names and any(each.removeprefix(family).isdigit() for each in names)  # as cnn7
        hint = f"write `model: {family}, options: {{depth: {depth}}}`" if depth and has_depths else ""
        raise UnknownNameError("network", name, names, hint)
    return name


def options_of(network: str | Builder) -> dict[str, inspect.Parameter]:
    """Return a network's options by name, with their types and defaults; an option without a type may be anything.

    Raises UnknownNameError.
    """
    builder = _builder(network)
    fixed = {"shape", "classes", "width", *getattr(builder, "keywords", ())}  # the last: of a partial
    options = {name: p for name, p in inspect.signature(builder).parameters.items() if name not in fixed}
    return {name: p if p.annotation is not p.empty else p.replace(annotation=Any) for name, p in options.items()}


def required_options(network: str | Builder) -> list[str]:
    """Return the options without a default, such as `depth` of `cnn`."""
    return [name for name, option in options_of(network).items() if option.default is option.empty]


def build(
    network: str | Builder, dataset: str | Dataset = "cifar10", width: float = 1.0, **options: Any
) -> "nn.Sequential":
    """Return a network for a data set: pixels in [0, 1] [B, C, H, W] to logits [B, K].

    Its first layer, `normalize`, is followed by the layers of an nn.Sequential, or by any other module as `network`.

    network: its name, or a function as `register` takes. dataset: a registered name, or an entry. width: the factor of
    all channel counts. Raises UnknownNameError for an unknown network or data set, UnknownOptionError for an unknown
    option, ValueError for an option out of range, TypeError for an option that is missing and for a function whose
    result is no nn.Module.
    """
    from torch import nn

    from baselines.layers import Normalize

    if isinstance(dataset, str) and dataset not in DATASETS:
        raise UnknownNameError("data set", dataset, list(DATASETS))
    if not width > 0:
        raise ValueError(f"width must be positive, found {width}")
    refuse_unknown_options(str(network), options, options_of(network))
    if missing := [name for name in required_options(network) if name not in options]:
        raise TypeError(f"network {network!r}: missing option: {', '.join(missing)}")
    data = DATASETS[dataset] if isinstance(dataset, str) else dataset
    body = _builder(network)(shape=data.shape, classes=data.classes, width=width, **options)
    if not isinstance(body, nn.Module):
        raise TypeError(f"network {network!r}: found {type(body).__name__}, allowed: an nn.Module")
    is_plain = type(body).forward is nn.Sequential.forward and _NORMALIZE not in body._modules
    # not named_children: that leaves out the second use of a layer
    layers = body._modules.items() if is_plain else [("network", body)]
    return nn.Sequential(OrderedDict([(_NORMALIZE, Normalize(data.mean, data.std)), *layers]))


def _builder(network: str | Builder) -> Builder:
    if not isinstance(network, str):
        return network
    check_network_name(network)
    import_networks()
    return _BUILDERS[network]
