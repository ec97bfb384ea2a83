"""Tensors that a network has under several names, as tied weights: files may store them under one of them alone."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef


def tied_names(network: nn.Module) -> list[list[str]]:
    """Return the names, as in `state_dict`, of each tensor that has several."""
    state = network.state_dict(keep_vars=True)
    names: dict[int, list[str]] = {}
    for name, tensor in state.items():
        names.setdefault(id(tensor), []).append(name)
    return [each for each in names.values() if len(each) > 1]


def complete(tensors: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Return stored tensors under all names of the network's, also those that safetensors' `save_model` left out."""
    missing = {
        name: tensors[stored[0]]
        for names in tied_names(network)
        if (stored := [name for name in names if name in tensors])
        for name in names
    }
    return missing | dict(tensors)


def differing_names(tensors: Mapping[str, Tensor], network: nn.Module) -> list[str]:
    """Check that each tensor of the network has one value; return a line for each that has several.

    tensors: by all names of the network's, in its shapes and types.
    """
    pairs = [(names[0], name) for names in tied_names(network) for name in names[1:]]
    return [
        f"{one} and {other}: found two values, allowed: one, for they are the same tensor of the network"
        for one, other in pairs
        if not torch.equal(tensors[one], tensors[other])
    ]


def refuse_shared_memory(network: nn.Module) -> None:
    """Raise ValueError for two tensors in one memory: what one of them becomes, the other does only on some devices."""
    first: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in network.state_dict(keep_vars=True).items():
        other_name, other = first.setdefault(StorageWeakRef(tensor.untyped_storage()).cdata, (name, tensor))
        if other is not tensor:
            allowed = f"one parameter, as by `{name} = {other_name}`"
            raise ValueError(f"found two parameters in one memory, {other_name} and {name}; allowed: {allowed}")
