"""What torch.fx does not see in a module: code around its forward, state that it changes, values changed in place.

`trace` calls these, and so both the certifier and the checker of results refuse such modules.
"""

import copy
import operator
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.fx
from torch import Tensor, nn

from cerdeq.errors import UnsupportedOperator
from cerdeq.operators.table import AROUND_FORWARD, of_function, of_module, replaces
from cerdeq.tracing.program import is_dense, is_equal

AUGMENTED = (operator.iadd, operator.isub, operator.imul, operator.itruediv)


def is_training(model: nn.Module) -> bool:
    """Return whether any part of the model is in training mode."""
    return any(module.training for module in model.modules())


def refuse_training(model: nn.Module) -> None:
    """Raise ValueError if a part of the model is in training mode."""
    if is_training(model):
        raise ValueError("the model, or a part of it, is in training mode; call model.eval() first")


def refuse_unseen_code(model: nn.Module) -> None:
    """Raise UnsupportedOperator for code that torch.fx does not see.

    That is hooks, a replaced `__call__`, a forward of the instance, and tensor subclasses.
    """
    if nn.modules.module._global_forward_hooks or nn.modules.module._global_forward_pre_hooks:
        raise UnsupportedOperator("torch has global forward hooks, which bounds do not see; remove them")
    for name, module in model.named_modules():
        if module._forward_hooks or module._forward_pre_hooks:
            raise UnsupportedOperator(f"module '{name}' has forward hooks, which bounds do not see; remove them")
    own_call = not isinstance(model, torch.fx.GraphModule) and replaces(model, nn.Module, AROUND_FORWARD)
    if own_call or "forward" in vars(model):
        raise UnsupportedOperator(
            "the model has its own __call__ or a forward set on the instance, which torch.fx does not see; "
            "define forward in the class"
        )
    refuse_tensor_subclasses(tensors_of(model))


def refuse_tensor_subclasses(tensors: dict[str, Any]) -> None:
    """Raise UnsupportedOperator if a tensor is of a subclass, whose operations may differ."""
    for name, tensor in tensors.items():
        if isinstance(tensor, Tensor) and type(tensor) not in (Tensor, nn.Parameter):
            kind = type(tensor).__name__
            raise UnsupportedOperator(
                f"'{name}' is a {kind}, a subclass of Tensor; its operations may differ. Use a plain Tensor"
            )


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Return the parameters and buffers of all modules, and the tensors among their other attributes, by path."""
    return {
        f"{path}.{name}" if path else name: value
        for path, module in model.named_modules()
        for name, value in {**vars(module), **module._parameters, **module._buffers}.items()
        if isinstance(value, Tensor)
    }


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Give a model in evaluation mode back what its forward changes in the block: attributes, lists, numbers.

    Layers with a rule are left as they are: they cache proofs. In training, parametrisations are to move on.
    """
    modules = [] if is_training(model) else [module for module in model.modules() if of_module(module) is None]
    own = [vars(module) for module in modules]
    parts = own + [part for attributes in own for part in attributes.values() if isinstance(part, dict | list)]
    held = [(part, copy.copy(part)) for part in parts]
    tensors = [item for part in parts for item in _items(part) if type(item) in (Tensor, nn.Parameter)]
    numbers = [(tensor, tensor.detach().clone()) for tensor in tensors if is_dense(tensor) and not tensor.is_meta]
    try:
        yield
    finally:
        for part, before in held:
            if [*map(id, _items(part))] != [*map(id, _items(before))]:
                part.clear()
                part.extend(before) if isinstance(part, list) else part.update(before)
        for tensor, copied in numbers:
            if not is_equal(tensor, copied):
                tensor.data.copy_(copied)


def _items(part: dict[Any, Any] | list[Any]) -> list[Any]:
    return [*part] if isinstance(part, list) else [*part, *part.values()]


def state_of(model: nn.Module) -> dict[str, tuple[Tensor, int]]:
    """Return a model's tensors, and how often each was changed in place."""
    return {name: (value, 0 if value.is_inference() else value._version) for name, value in tensors_of(model).items()}


def refuse_changed_state(model: nn.Module, held: dict[str, tuple[Tensor, int]]) -> None:
    """Raise UnsupportedOperator if tracing has changed tensors of a model in evaluation mode.

    held: of `state_of`, before tracing.
    """
    if not is_training(model):
        for name, (tensor, version) in state_of(model).items():
            if name in held and (held[name][0] is not tensor or held[name][1] != version):
                raise UnsupportedOperator(f"the model's forward changes its tensor '{name}'")


def refuse_changed_values(nodes: list[torch.fx.Node], bounded: set[torch.fx.Node], model: nn.Module) -> None:
    """Raise UnsupportedOperator if a value is read after it was changed in place, or if the model changes its tensors.

    bounded: the nodes whose values depend on the input.
    """
    storage: dict[torch.fx.Node, torch.fx.Node] = {}
    overwritten: dict[torch.fx.Node, set[torch.fx.Node]] = {}
    of_model: set[torch.fx.Node] = set()
    for node in nodes:
        sources = node.all_input_nodes
        for source in [] if asks_shape(node) else sources:
            if source in overwritten.get(storage[source], ()):
                raise UnsupportedOperator(
                    f"node '{node.name}' reads '{source.name}' after it was changed in place{node.meta['user_line']}"
                )
        in_place = _writes_input(node, model)
        if in_place and sources[0] in of_model and not is_training(model):
            raise UnsupportedOperator(f"node '{node.name}' changes a tensor of the model{node.meta['user_line']}")
        if node.op == "get_attr" or (node not in bounded and of_model.intersection(sources)):
            of_model.add(node)
        shares = in_place or _is_view(node, model)
        storage[node] = storage[sources[0]] if sources and shares else node
        if in_place:
            group = storage[node]
            overwritten[group] = {old for old in storage if storage[old] is group and old is not node}


def asks_shape(node: torch.fx.Node) -> bool:
    """Return whether the node reads a value's shape or type, which do not depend on the input."""
    if node.op == "call_method":
        return node.target in ("size", "dim")
    return (
        node.op == "call_function" and node.target is getattr and node.args[1] in ("shape", "ndim", "dtype", "device")
    )


def target_of(node: torch.fx.Node, model: nn.Module) -> Any:
    """Return the module or function that the node calls."""
    if node.op == "call_module":
        return model.get_submodule(str(node.target))
    return getattr(Tensor, str(node.target), node.target) if node.op == "call_method" else node.target


def _writes_input(node: torch.fx.Node, model: nn.Module) -> bool:
    if not node.op.startswith("call"):
        return False
    target = target_of(node, model)
    if isinstance(target, nn.Dropout):
        return False  # in evaluation it does nothing
    if isinstance(target, nn.Module):
        return bool(getattr(target, "inplace", False))
    return target in AUGMENTED or getattr(target, "__name__", "").endswith("_") or bool(node.kwargs.get("inplace"))


def _is_view(node: torch.fx.Node, model: nn.Module) -> bool:
    if not node.op.startswith("call"):
        return False
    target = target_of(node, model)
    record = of_module(target) if isinstance(target, nn.Module) else of_function(target)
    return record is not None and record.affine == "view"
