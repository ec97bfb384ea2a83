"""The programs of one module in two precisions: whether they are the same function, step by step."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from cerdeq.errors import UnsupportedOperator
from cerdeq.operators.backward import nested_items
from cerdeq.operators.table import module_arguments
from cerdeq.tracing.program import UNKNOWN, Program, Step, is_dense, is_equal, value_of

_COMPUTED = 1e-4  # of a tensor's largest number; measured: 2e-5, of orthogonal rows that are nearly dependent


def same(a: Any, b: Any, numbers: Callable[[Tensor, Tensor], bool] = is_equal) -> bool:
    """Return whether two targets, arguments or modules are the same, tensors compared by `numbers`."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return numbers(a, b)
    if a is b:
        return True
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(same(*pair, numbers) for pair in zip(a, b, strict=True))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key], numbers) for key in a)
    if isinstance(a, nn.Module) and isinstance(b, nn.Module):
        return _kind(a) is _kind(b) and same(_attributes(a), _attributes(b), numbers)
    return type(a) is type(b) and bool(a == b)


def _kind(module: nn.Module) -> type[nn.Module]:
    return parametrize.type_before_parametrizations(module)


def _attributes(module: nn.Module) -> dict[str, Any]:
    """Return a module's public attributes, parametrised tensors as they are now."""
    public = {name: value for name, value in vars(module).items() if not name.startswith("_")}
    computed = {name: getattr(module, name) for name in vars(module)["_modules"].get("parametrizations", ())}
    own = {**public, **module._parameters, **module._buffers, **module._modules, **computed}
    return {name: value for name, value in own.items() if name != "parametrizations"}


def differing_step(
    one: Program, other: Program, numbers: Callable[[Step, Tensor, Tensor], bool | Tensor], inputs: Any = UNKNOWN
) -> Step | None:  # fmt: skip
    """Return the first step that differs in two programs of a module in different precisions; None if none does.

    numbers: whether two tensors of a step are the same. Answers in tensors are read at once, after all steps: each
    reading makes a GPU's host wait. inputs: of `one`; without them only constants that need none are compared.
    """
    answers: list[tuple[Step, Tensor]] = []

    def note(step: Step, a: Tensor, b: Tensor) -> bool:
        answer = numbers(step, a, b)
        if isinstance(answer, Tensor):
            answers.append((step, answer))
            return True
        return answer

    different = _differing_structure(one, other, note, inputs)
    if answers:
        device = answers[0][1].device
        agreed = torch.stack([answer.to(device) for _, answer in answers]).tolist()
        different = next((step for (step, _), agrees in zip(answers, agreed, strict=True) if not agrees), different)
    return different


@torch.no_grad()
def _differing_structure(
    one: Program, other: Program, numbers: Callable[[Step, Tensor, Tensor], bool], inputs: Any
) -> Step | None:  # fmt: skip
    values = [inputs], [inputs.double() if isinstance(inputs, Tensor) else inputs]
    for a, b in zip(one.steps, other.steps, strict=False):
        if not same(_contents(a, values[0]), _contents(b, values[1]), partial(numbers, a)):
            return a
    shorter, longer = sorted((one.steps, other.steps), key=len)
    if len(shorter) < len(longer):
        return longer[len(shorter)]
    return None if one.output == other.output else one.steps[-1]


def _contents(step: Step, values: list[Any]) -> list[Any]:
    """Return all that defines a step: the numbers of a constant; else the target, with its numbers, and the arguments.

    values: of the earlier steps; the step's own is added.
    """
    values.append(value_of(step, values))
    if step.record is None and values[-1] is not UNKNOWN:
        return [step.name, step.record, [_as_tensor(item) for item in nested_items([values[-1]])]]
    target = [step.target]
    if isinstance(step.target, nn.Module) and step.record is not None:
        target = [_kind(step.target), module_arguments(step.record, step.target)]
    return [step.name, step.record, target, step.args, step.kwargs, step.sources]


def _as_tensor(item: Any) -> Tensor | int | None:
    """Return a constant's number, which may be rounded, as a tensor; None for what is no number."""
    if isinstance(item, float):
        return torch.tensor(item, dtype=torch.float64)
    if isinstance(item, Tensor) and not is_dense(item):
        return item.dequantize() if item.is_quantized else item.to_dense()
    return item if isinstance(item, Tensor | int) else None


def with_constants_of(own: Program, program: Program, dtype: torch.dtype) -> Program:
    """Return a program, of this precision, with the numbers that the program `own` of the same module computes.

    These are constants that do not depend on the input, and parametrised tensors of layers.
    """
    values, steps = [UNKNOWN], list[Step]()
    for a, b in zip(own.steps, program.steps, strict=False):
        values.append(value_of(a, values))
        if a.record is None and b.record is None and values[-1] is not UNKNOWN:
            b = Step(b.name, None, partial(_constant, _in_precision(values[-1], dtype)), line=b.line)
        elif isinstance(a.target, nn.Module) and parametrize.is_parametrized(a.target):
            b = replace(b, target=_layer_in_precision(a.target, dtype))
        steps.append(b)
    return Program((*steps, *program.steps[len(steps) :]), program.output)


def in_float64(program: Program, x: Tensor) -> Program | None:
    """Return a program with the same numbers in float64: those of layers, and what it computes in its own precision.

    It is the same function in real arithmetic. None if the forward computes a constant that differs in float64, for
    example by `dtype=x.dtype`. x: an input [1, ...].
    """
    values, steps = [UNKNOWN], list[Step]()
    for step in program.steps:
        values.append(value_of(step, values))
        if step.record is None and values[-1] is not UNKNOWN:
            step = Step(step.name, None, partial(_constant, _in_precision(values[-1], torch.float64)), line=step.line)
        else:
            step = _step_in_precision(step, torch.float64)
        steps.append(step)
    exact = Program(tuple(steps), program.output)
    depends = any(step.record is None and value is UNKNOWN for step, value in zip(steps, values[1:], strict=True))
    return None if depends and _computes_other_numbers(program, exact, x) else exact


def _step_in_precision(step: Step, dtype: torch.dtype) -> Step:
    """Return a step with its numbers in this precision; a layer as its function, since any tensor may be its weight."""
    target, kwargs = step.target, step.kwargs
    if step.record is not None and isinstance(step.target, nn.Module):
        if step.record.functions:
            target, kwargs = step.record.functions[0], module_arguments(step.record, step.target)
        else:
            target = _layer_in_precision(step.target, dtype)
    return replace(step, target=target, args=_in_precision(step.args, dtype), kwargs=_in_precision(kwargs, dtype))


@torch.no_grad()
def _computes_other_numbers(program: Program, exact: Program, x: Tensor) -> bool:
    """Return whether a constant that depends on the input's shape or dtype differs, or fails in the second program."""
    values: tuple[list[Any], list[Any]] = [x.clone()], [x.double()]  # operators may change them in place
    for steps in zip(program.steps, exact.steps, strict=True):
        try:
            for step, computed in zip(steps, values, strict=True):
                computed.append(value_of(step, computed))
        except UnsupportedOperator:
            return True
        if steps[0].record is None and not same(_as_numbers(values[0][-1]), _as_numbers(values[1][-1])):
            return True
    return False


def _as_numbers(value: Any) -> list[Any]:
    """Return a constant's numbers, floating-point ones in float64, and texts; None for each other item."""
    return [
        item if isinstance(item, str) else _in_precision(_as_tensor(item), torch.float64)
        for item in nested_items([value])
    ]


def _layer_in_precision(layer: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Return a copy of a layer in this precision; its parametrised tensors are parameters, as they are now."""
    if parametrize.is_parametrized(layer):
        return _without_parametrisation(layer).to(dtype)
    return deepcopy(layer).to(dtype)


def _in_precision(value: Any, dtype: torch.dtype) -> Any:
    """Return a constant, or arguments, with floating-point tensors in this precision."""
    if isinstance(value, dict):
        return {name: _in_precision(item, dtype) for name, item in value.items()}
    if isinstance(value, list | tuple):
        items = [_in_precision(item, dtype) for item in value]
        return items if isinstance(value, list) else tuple(items)
    return value.detach().to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def _constant(value: Any) -> Any:
    return value


def _without_parametrisation(module: nn.Module) -> nn.Module:
    """Return a copy of a layer whose parametrised tensors are parameters, as they are now.

    Torch's `remove_parametrizations` would change the class, which the layer shares with its copies.
    """
    tensors = {name: getattr(module, name) for name in module.parametrizations}  # type: ignore[union-attr]
    plain = deepcopy(module)
    plain.__class__ = _kind(module)
    del plain.parametrizations
    for name, tensor in tensors.items():
        plain.register_parameter(name, nn.Parameter(tensor.detach(), requires_grad=False))
    return plain


def refuse_other_precision(one: Program, other: Program, inputs: Any = UNKNOWN) -> None:
    """Raise UnsupportedOperator if a module is another function in another precision, beyond the rounding of numbers.

    inputs: in the precision of `one`; without them, only constants that need none are compared, and those that are
    computed, such as a parametrised weight, may differ by 1e-4 of a tensor's largest number.
    """
    compared: list[tuple[Step, Tensor, Tensor]] = []

    def agree(step: Step, a: Tensor, b: Tensor) -> bool | Tensor:
        if a.shape != b.shape or a.is_floating_point() != b.is_floating_point():
            return False
        may_differ = inputs is UNKNOWN and a.numel() and a.is_floating_point() and _is_computed(step)
        a, b, limits = a.double(), b.double(), torch.finfo(torch.float32)
        compared.append((step, a, b))
        allowed = _COMPUTED * b.abs().max() if may_differ else limits.eps * b.abs() + limits.tiny
        return ((a == b) | ((a - b).abs() <= allowed)).all()

    step = differing_step(one, other, agree, inputs)
    if step is not None:
        found = _different_numbers([(a, b) for number, a, b in compared if number is step])
        raise UnsupportedOperator(
            f"the model is another function in float32 than in float64, or than a copy: node '{step.name}'{step.line} "
            f"differs{found}; allowed: a forward that does not ask for its precision, in a model that copies leave as "
            "it is; store what it computes of constants, such as rounded weights, in a buffer"
        )


def _is_computed(step: Step) -> bool:
    """Return whether the numbers of a step are computed of others."""
    if step.record is None:
        return bool(step.args or step.kwargs)
    return isinstance(step.target, nn.Module) and parametrize.is_parametrized(step.target)


def _different_numbers(pairs: list[tuple[Tensor, Tensor]]) -> str:
    """Return the two numbers that differ most, in words; empty if none do."""
    sides = zip((torch.zeros(1), torch.zeros(1)), *pairs, strict=True)
    one, other = (torch.cat([tensor.flatten().cpu() for tensor in side]) for side in sides)
    at = (one - other).abs().argmax()
    return "" if one[at] == other[at] else f": {one[at]:.9g} and {other[at]:.9g}"
