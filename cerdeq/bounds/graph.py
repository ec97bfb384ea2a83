"""A torch module as a list of steps: torch.fx names the operations, the rule table what bounds know of them."""

import inspect
import itertools
import linecache
import os
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial, partialmethod
from pathlib import Path
from typing import Any

import torch.fx
from torch import Tensor, nn

from cerdeq.bounds.refusals import (
    AUGMENTED,
    asks_shape,
    refuse_changed_state,
    refuse_changed_values,
    refuse_tensor_subclasses,
    refuse_unseen_code,
    state_of,
    target_of,
)
from cerdeq.boxes import Box
from cerdeq.rules.interval import Interval
from cerdeq.rules.operators import Operator, UnsupportedOperator, module_arguments, of_function, of_module
from cerdeq.rules.precision import counted_rounding

_NAMED_INPUTS = ("input", "other", "tensors")
_OWN_FOLDERS = tuple(str(Path(file).parent) + os.sep for file in (torch.__file__, __file__))
_NEAR = {torch.float32: 1e-3, torch.float64: 1e-6}
_trace_lock = threading.RLock()  # held while torch.fx traces: it patches the calls of all modules, for all threads


@dataclass(frozen=True)
class Reference:
    """The value of an earlier step, in a step's arguments."""

    index: int


@dataclass(frozen=True)
class Step:
    """One operation.

    name: unique in the program.
    record: its entry in the rule table; None if it does not depend on the input, so that it is simply run.
    target: the leaf module or function that is called.
    args, kwargs: its arguments, with References to earlier values.
    sources: the bounded values among its arguments, in order.
    line: the user's line of code, for messages.
    """

    name: str
    record: Operator | None
    target: Any
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    sources: tuple[int, ...] = ()
    line: str = ""

    def call(self, values: list[Any]) -> tuple[list[Any], dict[str, Any]]:
        """Return arguments and options of the rules, or of the target if there is no record, from earlier values."""
        arguments = [_resolved(arg, values) for arg in self.args]
        if self.record is not None and isinstance(self.target, nn.Module):
            return arguments, module_arguments(self.record, self.target)
        return arguments, {name: _resolved(arg, values) for name, arg in self.kwargs.items()}

    def run(self, values: list[Any]) -> Any:
        """Return what the target computes from earlier values."""
        arguments = [_resolved(arg, values) for arg in self.args]
        return self.target(*arguments, **{name: _resolved(arg, values) for name, arg in self.kwargs.items()})


@dataclass(frozen=True)
class Program:
    """The steps of a module with one tensor in and one out. Value 0 is the input, value i + 1 that of steps[i]."""

    steps: tuple[Step, ...]
    output: int


class _Proxy(torch.fx.Proxy):
    """Augmented assignments stay what they are; torch.fx would trace `y += x` as an addition that leaves y alone."""

    def augmented(self, function: Callable[..., Any], other: Any) -> torch.fx.Proxy:
        return self.tracer.create_proxy("call_function", function, (self, other), {})


for _function in AUGMENTED:
    setattr(_Proxy, f"__{_function.__name__}__", partialmethod(_Proxy.augmented, _function))


class _Tracer(torch.fx.Tracer):
    """Stops at modules that have a record, follows buffers by name, and remembers the user's lines for messages."""

    proxy_buffer_attributes = True

    def create_node(self, *args: Any, **kwargs: Any) -> torch.fx.Node:
        node = super().create_node(*args, **kwargs)
        node.meta["user_line"] = _user_line()
        return node

    def proxy(self, node: torch.fx.Node) -> torch.fx.Proxy:
        return _Proxy(node, self)

    def is_leaf_module(self, module: nn.Module, qualified_name: str) -> bool:
        return of_module(module) is not None or super().is_leaf_module(module, qualified_name)


def trace(model: nn.Module, linear: bool = False) -> Program:
    """Return the program of `model`; an unsupported operator is refused before anything is computed.

    linear: whether backward rules are needed as well. Raises UnsupportedOperator, and torch.fx's own errors if the
    model's control flow depends on its input.
    """
    with _trace_lock:
        return _trace(model, linear)


def _trace(model: nn.Module, linear: bool) -> Program:
    refuse_unseen_code(model)
    held = state_of(model)
    root = model if of_module(model) is None else nn.Sequential(model)  # so that torch.fx calls it as a module
    before = set(vars(root))
    nodes = list(_Tracer().trace(root).nodes)
    # Tensors made in forward, which torch.fx leaves on the model.
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
            raise UnsupportedOperator(f"{step.record.name} at node '{name}'{step.line} has bounds by ibp alone")
        steps.append(step)
    output = nodes[-1].args[0] if nodes else None
    if not isinstance(output, torch.fx.Node) or output not in bounded:
        raise UnsupportedOperator(f"bounds need one output tensor that depends on the input; found {output}")
    refuse_changed_values(nodes, bounded, root)
    return Program(tuple(steps), index[output])


def run(program: Program, x: Tensor) -> Tensor:
    """Return what the program computes of x [B, ...], by the operators themselves."""
    values: list[Any] = [x.clone()]
    for step in program.steps:
        values.append(step.run(values))
    return values[program.output]


@torch.no_grad()
def refuse_another_function(model: nn.Module, program: Program, region: Box | Interval) -> None:
    """Raise UnsupportedOperator if the program and the model differ at points of the region [B, ...].

    Python code that tests a value's type, such as `isinstance(x, Tensor)`, takes another branch under torch.fx. And the
    value of one example must not depend on the number of examples beside it. Two inputs are compared: the centres of
    two examples, or the centre and the lowest corner of one.
    """
    x = torch.cat([region.center[:2], (region.center - region.radius)[:1]])
    x = x[x.flatten(1).isfinite().all(1)][:2]
    if not len(x):
        return
    with counted_rounding(x.device.type), _trace_lock:
        one, together = model(x[:1].clone()), model(x.clone())
        traced = run(program, x)
    if one.dtype not in _NEAR:
        raise UnsupportedOperator(f"the model cannot be bounded: its outputs are {one.dtype}; use float32 or float64")
    if one.shape != together[:1].shape or not _alike(one, together[:1]):
        raise UnsupportedOperator(
            "the model cannot be bounded: the output of an image depends on other images in the batch"
        )
    if not _alike(traced, together):
        raise UnsupportedOperator(
            "the model cannot be bounded: its torch.fx trace gives other outputs; does it branch on its input?"
        )


def _alike(computed: Tensor, expected: Tensor) -> bool:
    """Return whether two results differ by rounding alone, where they are finite."""
    both = computed.isfinite() & expected.isfinite()
    size = torch.where(both, expected, 0).abs().max()
    return bool((~both | ((computed - expected).abs() <= _NEAR[expected.dtype] * (1 + size))).all())


def _resolved(arg: Any, values: list[Any]) -> Any:
    if isinstance(arg, Reference):
        return values[arg.index]
    if isinstance(arg, list | tuple):
        items = [_resolved(item, values) for item in arg]
        return items if isinstance(arg, list) else tuple(items)  # never torch.fx's own lists: they do not compile
    return arg


def _step(
    node: torch.fx.Node, name: str, model: nn.Module, constants: dict[str, Any],
    index: dict[torch.fx.Node, int], bounded: set[torch.fx.Node],
) -> Step:  # fmt: skip
    if node.op == "get_attr":
        return Step(name, None, _reader(model, str(node.target), constants))
    target = target_of(node, model)
    args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), lambda arg: Reference(index[arg]))  # type: ignore
    if node not in bounded:
        target = partial(_of_center, target) if asks_shape(node) else target
        return Step(name, None, target, tuple(args), dict(kwargs))
    args, kwargs = _positional(args, kwargs)
    record = of_module(target) if isinstance(target, nn.Module) else of_function(target)
    line = node.meta["user_line"]
    if record is None:
        what = type(target).__name__ if isinstance(target, nn.Module) else getattr(target, "__name__", target)
        raise UnsupportedOperator(f"no bound rule for {what} at node '{name}'{line}")
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


def _of_center(function: Callable[..., Any], value: Any, *args: Any, **kwargs: Any) -> Any:
    return function(getattr(value, "center", value), *args, **kwargs)


def _reader(model: nn.Module, path: str, constants: dict[str, Any]) -> Callable[[], Any]:
    """Return a function that reads a parameter or buffer when the program runs, or a constant made in forward."""
    if path in constants:
        return lambda: constants[path]
    owner, _, attribute = path.rpartition(".")
    module = model.get_submodule(owner)
    return lambda: getattr(module, attribute)


def _positional(args: Any, kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments, those that were passed by torch's names `input` and `other` in their positions."""
    named = [kwargs[name] for name in _NAMED_INPUTS if name in kwargs]
    return (*args, *named), {name: value for name, value in kwargs.items() if name not in _NAMED_INPUTS}


def _check_arguments(step: Step, reached: set[int]) -> None:
    """Raise UnsupportedOperator if the rule does not take these arguments, or not as bounded values."""
    record = step.record
    assert record is not None
    where = f"at node '{step.name}'{step.line}"
    try:
        options = module_arguments(record, step.target) if isinstance(step.target, nn.Module) else step.kwargs
        call = inspect.signature(record.interval).bind(None, *step.args, **options)
    except (TypeError, UnsupportedOperator) as error:
        raise UnsupportedOperator(f"{record.name} {where}: {error}") from None
    if any(isinstance(arg, torch.dtype) for arg in step.args):
        raise UnsupportedOperator(f"no bound rule for {record.name} to another precision {where}")
    call.apply_defaults()
    for name, allowed in record.allowed.items():
        if call.arguments[name] not in allowed:
            raise UnsupportedOperator(
                f"no bound rule for {record.name} with {name}={call.arguments[name]!r} {where}; allowed: {allowed}"
            )
    candidates = list(step.args[0]) if record.bounded == "list" else list(step.args)
    direct = [n for n, arg in enumerate(candidates) if isinstance(arg, Reference) and arg.index in reached]
    several = record.bounded in ("first", "one") and len(direct) != 1
    elsewhere = record.bounded == "first" and direct != [0]
    if several or elsewhere or len(direct) != sum(n in reached for n in _indices((step.args, step.kwargs))):
        raise UnsupportedOperator(f"no bound rule for {record.name} of these bounded values {where}")


def _indices(value: Any) -> list[int]:
    if isinstance(value, Reference):
        return [value.index]
    if isinstance(value, dict):
        value = list(value.values())
    return [index for item in value for index in _indices(item)] if isinstance(value, list | tuple) else []


def _user_line() -> str:
    """Return the current line of the user's forward, the innermost frame outside torch and this package; else ''."""
    stack = (frame for frame, _ in traceback.walk_stack(sys._getframe()))
    frames = [frame for frame in stack if not frame.f_code.co_filename.startswith(_OWN_FOLDERS)]
    if not any(frame.f_code.co_name == "forward" for frame in frames):
        return ""
    file, line = frames[0].f_code.co_filename, frames[0].f_lineno
    return f" ({file}, line {line}: {linecache.getline(file, line).strip()})"
