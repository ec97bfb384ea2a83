"""A network written as an ONNX file, operator by operator, from the steps that bounds see."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from cerdeq.errors import UnsupportedOperator
from cerdeq.onnx.errors import OnnxError
from cerdeq.operators.convolution import paddings, pair
from cerdeq.tracing.program import Step
from cerdeq.tracing.refusals import refuse_training
from cerdeq.tracing.trace import trace

_OPSET, _IR_VERSION = 18, 8  # of 2022 and 2021: tools of these years read them
_EXAMPLES = 2  # that shapes are read off


@dataclass(frozen=True)
class _Value:
    """A value that depends on the input. name: in the file. center: what the network computes of some examples."""

    name: str
    center: Tensor


Arguments = dict[str, Any]


class _Writer:
    """Collects nodes and constants."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[TensorProto] = []

    def node(self, operator: str, *inputs: Any, **attributes: Any) -> str:
        """Add a node and return the name of its result. inputs: values; constants as tensors, numbers or arrays."""
        name = f"{operator.lower()}{len(self.nodes) + 1}"
        names = [self._name(argument, f"{name}.{position}") for position, argument in enumerate(inputs)]
        self.nodes.append(helper.make_node(operator, names, [name], name=name, **attributes))
        return name

    def _name(self, argument: Any, name: str) -> str:
        if isinstance(argument, _Value):
            return argument.name
        if isinstance(argument, str):
            return argument
        if isinstance(argument, list):
            array = np.array(argument, dtype=np.int64)
        else:
            array = np.asarray(torch.as_tensor(argument).detach().cpu().numpy(), dtype=np.float32)
        self.constants.append(numpy_helper.from_array(array, name))
        return name


def write_file(network: nn.Module, path: Path, input_shape: tuple[int, ...]) -> None:
    """Write a network to an ONNX file, for batches of any size. Raises OnnxError as `export_onnx` says."""
    for name, tensor in network.state_dict().items():
        is_float32 = tensor.dtype == torch.float32 or not tensor.is_floating_point()
        if not is_float32 or tensor.device.type != "cpu":
            raise OnnxError(f"{name}: found {tensor.dtype} on {tensor.device}, allowed: torch.float32 on cpu")
    try:
        refuse_training(network)
        program = trace(network)
    except (UnsupportedOperator, ValueError) as error:
        raise OnnxError(f"the network cannot be written: {error}") from None
    writer, example = _Writer(), torch.zeros(_EXAMPLES, *input_shape, dtype=torch.float32)
    values: list[Any] = [_Value("input", example)]
    with torch.no_grad():
        for step in program.steps:
            values.append(_write(writer, step, values))
    output = values[program.output]
    writer.nodes.append(helper.make_node("Identity", [output.name], ["output"], name="output"))
    ends = [("input", tuple(input_shape)), ("output", tuple(output.center.shape[1:]))]
    first, last = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ("batch", *shape)) for name, shape in ends)
    graph = helper.make_graph(writer.nodes, "network", [first], [last], writer.constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())


def _write(writer: _Writer, step: Step, values: list[Any]) -> Any:
    """Return the value of a step, whose nodes are added if it depends on the input."""
    centers = [value.center if isinstance(value, _Value) else value for value in values]
    result = step.run(centers)
    if step.record is None:
        return result
    arguments, options = step.call(values)
    call = inspect.signature(step.record.interval).bind(None, *arguments, **options)
    call.apply_defaults()
    where = f"{step.record.name} at node '{step.name}'{step.line}"
    if step.record.name not in _WRITERS:
        raise OnnxError(f"no ONNX operator for {where}")
    try:
        name = _WRITERS[step.record.name](writer, dict(call.arguments), result)
    except OnnxError as error:
        raise OnnxError(f"{where}: {error}") from None
    return _Value(name, result)


def _require(holds: bool, allowed: str) -> None:
    if not holds:
        raise OnnxError(f"cannot be written; allowed: {allowed}")


def _conv(writer: _Writer, a: Arguments, result: Tensor) -> str:
    kernel, dilation = a["weight"].shape[2:], pair(a["dilation"])
    before, after = paddings(a["padding"], kernel, dilation)
    options = {"strides": pair(a["stride"]), "dilations": dilation, "group": a["groups"], "pads": [*before, *after]}
    inputs = [a["x"], a["weight"]] + ([] if a["bias"] is None else [a["bias"]])
    return writer.node("Conv", *inputs, **options)


def _conv_transpose(writer: _Writer, a: Arguments, result: Tensor) -> str:
    padding, inputs = pair(a["padding"]), [a["x"], a["weight"]] + ([] if a["bias"] is None else [a["bias"]])
    options = {"strides": pair(a["stride"]), "dilations": pair(a["dilation"]), "pads": [*padding, *padding]}
    options |= {"group": a["groups"], "output_padding": pair(a["output_padding"])}
    return writer.node("ConvTranspose", *inputs, **options)


def _linear(writer: _Writer, a: Arguments, result: Tensor) -> str:
    bias = [] if a["bias"] is None else [a["bias"]]
    if result.dim() == 2:
        return writer.node("Gemm", a["x"], a["weight"], *bias, transB=1)
    product = writer.node("MatMul", a["x"], a["weight"].T)
    return writer.node("Add", product, *bias) if bias else product


def _batch_norm(writer: _Writer, a: Arguments, result: Tensor) -> str:
    mean, variance = a["running_mean"], a["running_var"]
    weight = torch.ones_like(mean) if a["weight"] is None else a["weight"]
    bias = torch.zeros_like(mean) if a["bias"] is None else a["bias"]
    return writer.node("BatchNormalization", a["x"], weight, bias, mean, variance, epsilon=a["eps"])


def _max_pool(writer: _Writer, a: Arguments, result: Tensor) -> str:
    return writer.node("MaxPool", a["x"], dilations=pair(a["dilation"]), **_window(a))


def _avg_pool(writer: _Writer, a: Arguments, result: Tensor) -> str:
    names = ("stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
    options: Arguments = dict(zip(names, (None, 0, False, True, None), strict=True))
    options |= dict(zip(names, a["args"], strict=False)) | a["kwargs"]
    _require(options["divisor_override"] is None, "divisor_override=None")
    window = _window({"kernel_size": a["kernel_size"], **options})
    return writer.node("AveragePool", a["x"], count_include_pad=int(options["count_include_pad"]), **window)


def _window(a: Arguments) -> Arguments:
    _require(not a["ceil_mode"], "ceil_mode=False")
    padding, stride = pair(a["padding"]), a["stride"]
    kernel = pair(a["kernel_size"])
    return {"kernel_shape": kernel, "strides": pair(stride) if stride else kernel, "pads": [*padding, *padding]}


def _adaptive_avg_pool(writer: _Writer, a: Arguments, result: Tensor) -> str:
    _require(tuple(result.shape[2:]) == (1, 1), "output_size=1")
    return writer.node("GlobalAveragePool", a["x"])


def _activation(operator: str) -> Callable[[_Writer, Arguments, Tensor], str]:
    return lambda writer, a, result: writer.node(operator, a["x"])


def _of_two(operator: str) -> Callable[[_Writer, Arguments, Tensor], str]:
    def write(writer: _Writer, a: Arguments, result: Tensor) -> str:
        _require(a.get("alpha", 1) == 1, "alpha=1")
        return writer.node(operator, a["x"], a["y"])

    return write


def _reshape(writer: _Writer, a: Arguments, result: Tensor) -> str:
    _require(len(result) == _EXAMPLES and result.dim() > 1, "the batch as dimension 0")
    if result.dim() == 2:
        return writer.node("Flatten", a["x"], axis=1)
    return writer.node("Reshape", a["x"], [-1, *result.shape[1:]])


def _order(writer: _Writer, a: Arguments, result: Tensor) -> str:
    rank = result.dim()
    dims = a["dims"][0] if isinstance(a["dims"][0], list | tuple) else a["dims"]
    return writer.node("Transpose", a["x"], perm=[dim % rank for dim in dims])


def _transpose(writer: _Writer, a: Arguments, result: Tensor) -> str:
    order = list(range(result.dim()))
    order[a["dim0"]], order[a["dim1"]] = order[a["dim1"]], order[a["dim0"]]
    return writer.node("Transpose", a["x"], perm=order)


def _pad(writer: _Writer, a: Arguments, result: Tensor) -> str:
    pads = [*a["pad"], *[0] * (2 * result.dim() - len(a["pad"]))]  # before and after, from the last dimension
    return writer.node("Pad", a["x"], [*pads[-2::-2], *pads[-1::-2]], a["value"] or 0.0)


_WRITERS: dict[str, Callable[[_Writer, Arguments, Tensor], str]] = {
    "conv2d": _conv,
    "linear": _linear,
    "matmul": lambda writer, a, result: writer.node("MatMul", a["x"], a["weight"]),
    "batch_norm": _batch_norm,
    "relu": lambda writer, a, result: writer.node("Relu", a["x"]),
    "leaky_relu": lambda writer, a, result: writer.node("LeakyRelu", a["x"], alpha=float(a["negative_slope"])),
    "sigmoid": _activation("Sigmoid"),
    "tanh": _activation("Tanh"),
    "sign": _activation("Sign"),
    "conv_transpose2d": _conv_transpose,
    "max_pool2d": _max_pool,
    "avg_pool2d": _avg_pool,
    "adaptive_avg_pool2d": _adaptive_avg_pool,
    "add": _of_two("Add"),
    "subtract": _of_two("Sub"),
    "multiply": _of_two("Mul"),
    "divide": _of_two("Div"),
    "negative": lambda writer, a, result: writer.node("Mul", a["x"], -1.0),
    "concatenate": lambda writer, a, result: writer.node("Concat", *a["tensors"], axis=a["dim"] % result.dim()),
    "flatten": _reshape,
    "reshape": _reshape,
    "permute": _order,
    "transpose": _transpose,
    "pad": _pad,
    "identity": lambda writer, a, result: a["x"].name,
    "dropout": lambda writer, a, result: a["x"].name,
}
