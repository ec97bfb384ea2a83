"""Trace a torch module: torch.fx names the operations, the table of operators what bounds know of them."""

import functools
import inspect
import itertools
import linecache
import operator
import os
import sys
import threading
import traceback
import types
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partialmethod
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import torch.fx
from torch import Tensor, nn

from cerdeq.errors import UnsupportedOperator, explained_errors
from cerdeq.operators.arithmetic import divide_interval
from cerdeq.operators.backward import nested_items
from cerdeq.operators.shapes import PARTS, take_part
from cerdeq.operators.table import module_arguments, of_function, of_module
from cerdeq.tracing.program import UNKNOWN, Program, Reference, Step, is_dense, is_equal, positional, value_of
from cerdeq.tracing.refusals import (
    AUGMENTED,
    asks_shape,
    is_training,
    refuse_changed_state,
    refuse_changed_values,
    refuse_tensor_subclasses,
    refuse_unseen_code,
    state_of,
    target_of,
    unchanged,
)

_OWN_FOLDERS = tuple(str(folder) + os.sep for folder in (Path(torch.__file__).parent, Path(__file__).parents[1]))
WAY_OUT = (
    "the operations must not depend on the input's values: no `if`, loop, len, int or item of them; sizes are read by "
    "x.shape, x.size and x.dim"
)
_one_trace = threading.RLock()  # torch.fx patches the calls and attributes of all modules, for all threads


class _Proxy(torch.fx.Proxy):
    """Augmented assignments stay what they are; torch.fx would trace `y += x` as an addition that leaves y alone."""

    def augmented(self, function: Callable[..., Any], other: Any) -> torch.fx.Proxy:
        return self.tracer.create_proxy("call_function", function, (self, other), {})


for _function in AUGMENTED:
    setattr(_Proxy, f"__{_function.__name__}__", partialmethod(_Proxy.augmented, _function))


class _Tracer(torch.fx.Tracer):
    """Stops at modules that have a record, follows buffers by name, and remembers the user's lines for messages.

    Modules that other threads use meanwhile are left as they are.

    used: the tensors that the forward has used as they are, with a copy made at the first use, and its line.
    """

    proxy_buffer_attributes = True

    def __init__(self) -> None:
        super().__init__()
        self.used: dict[int, tuple[Tensor, Tensor, str]] = {}
        self.thread = threading.get_ident()

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if threading.get_ident() != self.thread:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, torch.fx.Proxy]) -> Any:
        if threading.get_ident() != self.thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def create_node(self, *args: Any, **kwargs: Any) -> torch.fx.Node:
        node = super().create_node(*args, **kwargs)
        node.meta["user_line"] = user_line()
        return node

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, Tensor) and not a.is_meta:
            self.refuse_changes(*self.used.setdefault(id(a), (a, a.detach().clone(), user_line())))
        return super().create_arg(a)

    def refuse_changes(self, tensor: Tensor, copy: Tensor, line: str) -> None:
        """Raise UnsupportedOperator if a tensor was changed after the forward has used it."""
        if not is_equal(tensor, copy):
            raise UnsupportedOperator(f"the forward changes a tensor after its use{line}; change a copy of it")

    def proxy(self, node: torch.fx.Node) -> torch.fx.Proxy:
        return _Proxy(node, self)

    def is_leaf_module(self, module: nn.Module, qualified_name: str) -> bool:
        return of_module(module) is not None or super().is_leaf_module(module, qualified_name)


def trace(model: nn.Module, linear: bool = False) -> Program:
    """Return the program of `model`; an unsupported operator is refused before anything is computed.

    linear: whether backward rules are needed as well. Raises UnsupportedOperator, also for whatever the forward raises
    under torch.fx.
    """
    with _one_trace:
        return _trace(model, linear)


def _trace(model: nn.Module, linear: bool) -> Program:
    refuse_unseen_code(model)
    held = state_of(model)
    root = model if of_module(model) is None else nn.Sequential(model)  # so that torch.fx calls it as a module
    before = set(vars(root))
    with unchanged(root):
        try:
            nodes = _nodes(root)
        finally:  # Tensors made in forward, which torch.fx leaves on the model.
            constants = {name: root.__dict__.pop(name) for name in set(vars(root)) - before}
        refuse_tensor_subclasses(constants)
        refuse_changed_state(model, held)
    index = {node: number for number, node in enumerate(nodes)}
    bounded: set[torch.fx.Node] = set()
    used_names: set[str] = set()
    steps = []
    for node in nodes[:-1]:
        if node.op == "placeholder":
            if bounded:
                raise UnsupportedOperator(f"bounds need a model with one input; found a second one, '{node.name}'")
            bounded.add(node)
            continue
        if bounded.intersection(node.all_input_nodes) and not asks_shape(node):
            bounded.add(node)
        name = _unused(str(node.target) if node.op == "call_module" else node.name, used_names)
        step = _step(node, name, root, constants, index, bounded)
        if linear and step.record is not None and step.record.backward is None:
            raise UnsupportedOperator(f"{step.where} has bounds by ibp alone")
        steps.append(step)
    output = nodes[-1].args[0] if nodes else None
    if not isinstance(output, torch.fx.Node) or output not in bounded:
        raise UnsupportedOperator(f"bounds need one output tensor that depends on the input; found {output}")
    refuse_changed_values(nodes, bounded, root)
    if not is_training(model):
        _refuse_unusable_constants(steps)
    return Program(tuple(steps), index[output])


def _nodes(root: nn.Module) -> list[torch.fx.Node]:
    """Return the nodes of torch.fx's graph; it leaves tensors made in forward on the model."""
    tracer = _Tracer()
    try:
        graph = tracer.trace(root)
        for use in tracer.used.values():
            tracer.refuse_changes(*use)
    except UnsupportedOperator:
        raise
    except Exception as error:
        last = next(reversed(tracer.graph.nodes), None)
        line = line_of(traceback.walk_tb(error.__traceback__))
        what = str(error) or type(error).__name__
        raise UnsupportedOperator(
            f"torch.fx cannot trace the model, after node '{last}'{line}: {what}; {WAY_OUT}"
        ) from error
    return list(graph.nodes)


def _step(
    node: torch.fx.Node, name: str, model: nn.Module, constants: dict[str, Any],
    index: dict[torch.fx.Node, int], bounded: set[torch.fx.Node],
) -> Step:  # fmt: skip
    if node.op == "get_attr":
        return Step(name, None, _reader(model, str(node.target), constants), line=node.meta["user_line"])
    target, line = target_of(node, model), node.meta["user_line"]
    args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), lambda arg: Reference(index[arg]))  # type: ignore
    if node not in bounded:
        target = _OfCenter(target) if asks_shape(node) else target
        return Step(name, None, target, tuple(args), dict(kwargs), line=line)
    args, kwargs = positional(args, kwargs)
    whole = node.args[0] if node.args else None
    maker = target_of(whole, model) if isinstance(whole, torch.fx.Node) and whole.op.startswith("call_") else None
    if target is operator.getitem and of_function(maker) is PARTS:
        assert isinstance(whole, torch.fx.Node), "it has a maker"
        own = torch.fx.node.map_arg((whole.args[1:], whole.kwargs), lambda arg: Reference(index[arg]))  # type: ignore
        target, args, kwargs = take_part, (*args, maker, *own[0]), dict(own[1])
    record = of_module(target) if isinstance(target, nn.Module) else of_function(target)
    if record is None:
        what = type(target).__name__ if isinstance(target, nn.Module) else getattr(target, "__name__", target)
        raise UnsupportedOperator(f"no bound rule for {what} at node '{name}'{line}")
    if record is PARTS and not all(n.target is operator.getitem and type(n.args[1]) is int for n in node.users):
        raise UnsupportedOperator(f"node '{name}'{line} has several results; use them one by one, by constant numbers")
    reached = {index[n] for n in bounded}
    sources = tuple(number for number in _indices(args) if number in reached)
    step = Step(name, record, target, args, kwargs, sources, line)
    _check_arguments(step, reached)
    return step


def _unused(name: str, used_names: set[str]) -> str:
    """Return `name`, or the first of name.2, name.3 ... that is unused, and add it to `used_names`."""
    candidates = (name if number == 1 else f"{name}.{number}" for number in itertools.count(1))
    free = next(candidate for candidate in candidates if candidate not in used_names)
    used_names.add(free)
    return free


@dataclass(frozen=True)
class _OfCenter:
    """A function that reads the shape or type of a value, or of the centre of a box."""

    function: Callable[..., Any]

    def __call__(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        return self.function(getattr(value, "center", value), *args, **kwargs)


def _reader(model: nn.Module, path: str, constants: dict[str, Any]) -> Callable[[], Any]:
    """Return a function that reads a parameter or buffer when the program runs, or a constant made in forward."""
    if path in constants:
        return lambda: constants[path]
    owner, _, attribute = path.rpartition(".")
    module = model.get_submodule(owner)
    return lambda: getattr(module, attribute)


_signature = functools.cache(inspect.signature)


def _check_arguments(step: Step, reached: set[int]) -> None:
    """Raise UnsupportedOperator if the rule does not take these arguments, or not as bounded values."""
    record = step.record
    assert record is not None
    where = f"at node '{step.name}'{step.line}"
    is_module = isinstance(step.target, nn.Module)
    if is_module and step.kwargs:
        raise UnsupportedOperator(f"no bound rule for {record.name} with {', '.join(step.kwargs)} in the call {where}")
    try:
        options = module_arguments(record, step.target) if is_module else step.kwargs
        call = _signature(record.interval).bind(None, *step.args, **options)
    except (TypeError, UnsupportedOperator) as error:
        raise UnsupportedOperator(f"{record.name} {where}: {error}") from None
    if any(isinstance(arg, torch.dtype) for arg in step.args):
        raise UnsupportedOperator(f"no bound rule for {record.name} to another precision {where}")
    call.apply_defaults()
    for name, parameter in call.signature.parameters.items():
        allowed = get_args(parameter.annotation)
        if get_origin(parameter.annotation) is Literal and call.arguments[name] not in allowed:
            raise UnsupportedOperator(
                f"no bound rule for {record.name} with {name}={call.arguments[name]!r} {where}; allowed: {allowed}"
            )
    candidates = list(step.args[0]) if record.bounded == "list" else list(step.args)
    direct = [n for n, arg in enumerate(candidates) if isinstance(arg, Reference) and arg.index in reached]
    several = record.bounded in ("first", "one") and len(direct) != 1
    elsewhere = record.bounded == "first" and direct != [0]
    if several or elsewhere or len(direct) != sum(n in reached for n in _indices((step.args, step.kwargs))):
        raise UnsupportedOperator(f"no bound rule for {record.name} of these bounded values {where}")


@torch.no_grad()
def _refuse_unusable_constants(steps: list[Step]) -> None:
    """Raise UnsupportedOperator for a constant beside a bounded value that is no finite real number, or a divisor of 0.

    Tensors must be dense. Not looked at: numbers of a module's tensors, what depends on the batch's size, and tensors
    without values.
    """
    values: list[Any] = [UNKNOWN]
    for step in steps:
        arguments, options = step.call(values)
        values.append(value_of(step, values))
        if step.record is None:
            continue
        constants = nested_items([*arguments, *options.values()])
        if not all(is_dense(constant) for constant in constants if isinstance(constant, Tensor)):
            raise UnsupportedOperator(f"{step.where} has a quantized or sparse tensor; use a dense one of numbers")
        if isinstance(step.target, nn.Module):
            constants = [constant for constant in constants if not isinstance(constant, Tensor)]
        if not all(map(_is_finite, constants)):
            raise UnsupportedOperator(
                f"{step.where} has a constant that is infinite, complex or not a number; use finite ones"
            )
        is_quotient = step.record.interval is divide_interval and arguments[1] is not UNKNOWN
        with explained_errors("the divisor is no number", lambda step=step: step.where):  # type: ignore[misc]
            if is_quotient and not torch.as_tensor(arguments[1], dtype=torch.float64).all():
                raise UnsupportedOperator(f"{step.where} divides by zero; divide by numbers other than 0")


def _is_finite(constant: Any) -> bool:
    """Return False for a number or tensor that is not finite and real."""
    if isinstance(constant, Tensor):
        return not constant.is_complex() and bool(constant.double().isfinite().all())
    if isinstance(constant, int | float):
        return abs(constant) <= sys.float_info.max
    return not isinstance(constant, complex)


def _indices(value: Any) -> list[int]:
    if isinstance(value, Reference):
        return [value.index]
    if isinstance(value, dict):
        value = list(value.values())
    return [index for item in value for index in _indices(item)] if isinstance(value, list | tuple) else []


def user_line() -> str:
    """Return the line of the user's forward that runs now; '' if no forward of the user's runs."""
    frame, innermost = sys._getframe(), None
    while frame is not None:
        if _is_of_user(frame):
            innermost = innermost or frame
            if frame.f_code.co_name == "forward":
                return line_of([(innermost, innermost.f_lineno)])
        frame = frame.f_back  # type: ignore[assignment]
    return ""


def line_of(frames: Iterable[tuple[types.FrameType, int]]) -> str:
    """Return the line of the innermost frame, which comes last, outside torch and this package; '' if there is none."""
    lines = [(frame.f_code.co_filename, line) for frame, line in frames if _is_of_user(frame)]
    if not lines:
        return ""
    file, line = lines[-1]
    return f" ({file}, line {line}: {linecache.getline(file, line).strip()})"


def _is_of_user(frame: types.FrameType) -> bool:
    return not frame.f_code.co_filename.startswith(_OWN_FOLDERS)
