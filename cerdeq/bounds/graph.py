"""A torch module as a list of steps: torch.fx names the operations, the rule table what bounds know of them."""

from dataclasses import dataclass
from typing import Any

import torch.fx
from torch import Tensor, nn

from cerdeq.bounds.interval import Context, Interval, specified, specified_linear
from cerdeq.bounds.operators import Operator, UnsupportedOperator, module_arguments, of_function, of_module


@dataclass(frozen=True)
class Reference:
    """Stands in a step's arguments for the value of an earlier step."""

    index: int


@dataclass(frozen=True)
class Step:
    """One operation.

    record: its entry in the rule table; None where no input reaches it, so that it is simply run.
    target: what is called: a leaf module or a function; for a parameter or buffer the module that owns it.
    attribute: the name of that parameter or buffer.
    """

    name: str
    record: Operator | None
    target: Any
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] | None = None
    attribute: str | None = None


@dataclass(frozen=True)
class Program:
    """The steps of a module with one tensor in and one out. Value 0 is the input, value i + 1 that of steps[i]."""

    steps: tuple[Step, ...]
    output: int


class _Tracer(torch.fx.Tracer):
    """Stops at modules that have a record, and remembers the user's lines for messages."""

    record_stack_traces = True

    def is_leaf_module(self, module: nn.Module, qualified_name: str) -> bool:
        return of_module(module) is not None or super().is_leaf_module(module, qualified_name)


def trace(model: nn.Module) -> Program:
    """The program of `model`; every operator is looked up, and an unsupported one refused, before anything is computed.

    Raises UnsupportedOperator, and torch.fx's own errors where the model's control flow depends on its input.
    """
    steps: list[Step] = []
    index: dict[torch.fx.Node, int] = {}
    bounded: set[torch.fx.Node] = set()
    for node in _Tracer().trace(model).nodes:
        if node.op == "output":
            if node.args[0] not in bounded:
                raise UnsupportedOperator(
                    f"bounds want one output tensor that depends on the input, found {node.args[0]}"
                )
            return Program(tuple(steps), index[node.args[0]])
        index[node] = len(index)
        if node.op == "placeholder":
            if bounded:
                raise UnsupportedOperator(f"bounds want a model with one input tensor, found a second, '{node.name}'")
            bounded.add(node)
            continue
        if bounded.intersection(node.all_input_nodes):
            bounded.add(node)
        steps.append(_step(node, model, index, node in bounded))
    raise UnsupportedOperator("the model returns nothing")


def _step(node: torch.fx.Node, model: nn.Module, index: dict[torch.fx.Node, int], bounded: bool) -> Step:
    if node.op == "get_attr":
        owner, _, attribute = str(node.target).rpartition(".")
        return Step(node.name, None, model.get_submodule(owner), attribute=attribute)
    args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), lambda arg: Reference(index[arg]))  # type: ignore
    args, kwargs = tuple(args), dict(kwargs)
    if node.op == "call_module":
        module = model.get_submodule(str(node.target))
        record = of_module(module)
        name = str(node.target)
        step = Step(name, record if bounded else None, module, args, kwargs)
    else:
        function = getattr(Tensor, str(node.target)) if node.op == "call_method" else node.target
        record = of_function(function)
        step = Step(node.name, record if bounded else None, function, args, kwargs)
    if bounded and record is None:
        what = type(step.target).__name__ if node.op == "call_module" else getattr(function, "__name__", function)
        raise UnsupportedOperator(f"no bound rule for {what} at node '{step.name}'{_user_line(node)}")
    if isinstance(step.target, nn.Module) and record is not None:
        module_arguments(record, step.target)
    return step


def _user_line(node: torch.fx.Node) -> str:
    lines = [line.strip() for line in (node.stack_trace or "").strip().splitlines()]
    return f" ({lines[-2]}: {lines[-1]})" if len(lines) >= 2 else ""


def propagate(program: Program, x: Interval, ctx: Context, spec: Tensor | None = None) -> Interval:
    """IBP of a whole model: the output's Interval, [B, N], or [B, K] with `spec` [B, K, N].

    `spec` is merged into a last linear layer, which is tighter than subtracting output intervals.
    """
    values: list[Any] = [x]
    last = len(program.steps) if program.output == len(program.steps) else -1
    for number, step in enumerate(program.steps, start=1):
        ctx.step = step.name
        arguments = [_resolve(arg, values) for arg in step.args]
        options = {name: _resolve(arg, values) for name, arg in (step.kwargs or {}).items()}
        if step.attribute is not None:
            values.append(getattr(step.target, step.attribute))
        elif step.record is None:
            values.append(step.target(*arguments, **options))
        else:
            if isinstance(step.target, nn.Module):
                options = module_arguments(step.record, step.target)
            if spec is not None and number == last and step.record.name == "linear":
                return specified_linear(ctx, arguments[0], spec, *arguments[1:], **options)
            values.append(step.record.interval(ctx, *arguments, **options))
    output = values[program.output]
    return output if spec is None else specified(ctx, output, spec)


def _resolve(arg: Any, values: list[Any]) -> Any:
    return values[arg.index] if isinstance(arg, Reference) else arg
