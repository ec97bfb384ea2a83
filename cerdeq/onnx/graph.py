"""The nodes of an ONNX file as layers of a module.

Nodes whose inputs are all constant are computed by onnxruntime: moves of numbers, and arithmetic of shapes. Arithmetic
of float32 is not done here: a rounded result would be another network in real arithmetic.
"""

from collections import Counter
from dataclasses import replace
from math import prod

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper
from torch import nn
from torch.func import functional_call

from cerdeq.errors import OnnxError
from cerdeq.onnx.file import MOST_VALUES, File, array_of
from cerdeq.onnx.layers import OnnxNetwork, window_of
from cerdeq.onnx.node import Argument, Node, Value
from cerdeq.onnx.operators import LAYERS, constant_of
from cerdeq.onnx.shapes import result_has_batch, shape_of

_EXAMPLES = 2  # that the shapes of results are computed for
_MOST_PRODUCTS = 10**11  # for one example: minutes of one core
_SHOWN = 3  # nodes of each operator in a message
_GROWING = {"ConstantOfShape", "Expand", "Tile"}  # the last input says how many numbers the result has
_CHOICES = {"Gather", "Where"}
_JOINED = {"Concat", "Flatten", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"}
_MOVES = _JOINED | _CHOICES | _GROWING
_ARITHMETIC = {"Add", "Sub", "Mul", "Div", "Neg", "Min", "Max", "ReduceProd", "Cast", "Equal"}
_LARGEST = 2**31  # an integer of arithmetic: results of 64 bits do not overflow
_INTEGERS = (TensorProto.INT32, TensorProto.INT64, TensorProto.BOOL)
_SHAPES = {"Shape", "Size"}  # of values, too
_FOLDED = _MOVES | _ARITHMETIC | _SHAPES | {"Constant"}


def network_of(file: File) -> OnnxNetwork:
    """Return the network of a file. Raises OnnxError for a node that has no layer; the message names it."""
    try:
        with torch.device("cpu"), torch.no_grad():  # with weights also where a network is built without values
            _refuse_missing(file)
            return _Reader(file).network().eval()
    except OnnxError as error:
        raise OnnxError(f"{file.path}: {error}") from None


def _refuse_missing(file: File) -> None:
    """Raise OnnxError with all operators that have no layer, or of constants are not computed."""
    missing, values = dict[str, list[str]](), {file.input}
    for position, node in enumerate(file.model.graph.node, start=1):
        depends = node.op_type not in _SHAPES and not values.isdisjoint(node.input)
        if node.domain not in ("", "ai.onnx") or node.op_type not in (LAYERS if depends else _FOLDED):
            operator = f"{node.domain}.{node.op_type}".lstrip(".") + ("" if depends else " of constants")
            missing.setdefault(operator, []).append(_name(node, position))
        if depends:
            values.update(node.output)
    if missing:
        found = "; ".join(f"{operator} at {_in_words(names)}" for operator, names in missing.items())
        raise OnnxError(f"no layer for the operators {found}. Supported operators: {', '.join(sorted(LAYERS))}")


def _name(node: onnx.NodeProto, position: int) -> str:
    return f"node {node.name or f'number {position}'!r}"


def _in_words(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _parts(proto: onnx.NodeProto) -> list[onnx.NodeProto]:
    """Return a node for each result of a Split, with the attribute part: its number and how many there are."""
    if proto.op_type != "Split":
        return [proto]
    parts = []
    for number, output in enumerate(proto.output):
        part = onnx.NodeProto()
        part.CopyFrom(proto)
        part.output[:] = [output]
        part.attribute.append(helper.make_attribute("part", [number, len(proto.output)]))
        parts.append(part)
    return parts


class _Reader:
    """Reads nodes in order.

    arguments: values and constants by name. layers: by name. sources: the values that each layer reads. made_by: the
    layer that computes a result, by the result's name. uses: how many nodes read each name. numbers: of all results of
    one example. products: multiplications, additions or comparisons that they take.
    """

    def __init__(self, file: File):
        self.file, self.nodes = file, file.model.graph.node
        has_batch = len(file.shape) > 1
        self.input = Value(0, file.shape[1:] if has_batch else file.shape, has_batch)
        self.arguments: dict[str, Argument] = {"": None, **file.constants, file.input: self.input}
        self.layers: dict[str, nn.Module] = {}
        self.sources: list[tuple[int, ...]] = []
        self.made_by: dict[str, nn.Module] = {}
        self.uses = Counter([file.output, *[name for node in self.nodes for name in node.input]])
        self.numbers = self.products = 0

    def network(self) -> OnnxNetwork:
        for position, proto in enumerate(self.nodes, start=1):
            for part in _parts(proto):
                self.read(position, part)
        output = self.arguments[self.file.output]
        if not isinstance(output, Value):
            raise OnnxError("the output does not depend on the input")
        return OnnxNetwork(self.layers, self.sources, output.number, (self.input.shape, output.shape))

    def read(self, position: int, proto: onnx.NodeProto) -> None:
        where = f"operator {proto.op_type} at {_name(proto, position)}"
        try:
            node = self.node(proto)
            values = [argument for argument in node.inputs if isinstance(argument, Value)]
            name = f"{proto.op_type.lower()}{position}" + "".join(f"_{n}" for n in node.attributes.get("part", ()))
            result = self.value(name, node, values) if values else self.constant(proto, node)
        except OnnxError as error:
            raise OnnxError(f"{where}: {error}") from None
        except (RuntimeError, ValueError, TypeError, LookupError, ArithmeticError) as error:  # a layer does not fit
            raise OnnxError(f"{where}: {' '.join(str(error).split())[:300]}") from None
        self.arguments[proto.output[0]] = result
        if name in self.layers:
            self.made_by[proto.output[0]] = self.layers[name]

    def node(self, proto: onnx.NodeProto) -> Node:
        used = [name for name in proto.output[1:] if self.uses[name]]
        if used:
            raise OnnxError(f"another node reads the outputs {used}, allowed: only the first output is used")
        for attribute in proto.attribute:
            numbers = np.array([attribute.f, *attribute.floats])
            is_limit = proto.op_type == "Clip"  # an infinite one is none
            if np.isnan(numbers).any() or (np.isinf(numbers).any() and not is_limit):
                raise OnnxError(f"attribute {attribute.name!r}: found NaN or infinity, allowed: finite numbers")
        attributes = {a.name: helper.get_attribute_value(a) for a in proto.attribute}
        for name, value in attributes.items():
            if isinstance(value, onnx.TensorProto):
                attributes[name] = array_of(value, f"attribute {name!r}")
        inputs = [self.arguments[name] for name in proto.input]
        makers = [self.made_by[name] for name in proto.input if name in self.made_by and self.uses[name] == 1]
        return Node(proto.op_type, attributes, inputs, makers, self.file.opset)

    def constant(self, proto: onnx.NodeProto, node: Node) -> np.ndarray:
        """Return the result of a node whose inputs are all constant."""
        if node.operator == "Constant":
            return constant_of(node)
        result = _fold(proto, node.inputs, self.file.model)  # type: ignore[arg-type]
        self.count(result.size, 0)
        return result

    def value(self, name: str, node: Node, values: list[Value]) -> Argument:
        """Return the result of a node, whose layer is added; the value itself if the node does nothing."""
        if node.operator in _SHAPES:
            return shape_of(node)
        layer, has_batch = LAYERS[node.operator](node), result_has_batch(node, values)
        if layer is None:
            return replace(values[0], has_batch=has_batch)
        result = self.shape_after(layer.eval(), values)
        if len(result) < 2 or result[0] != _EXAMPLES:
            raise OnnxError(f"{_EXAMPLES} examples give a result of shape {[*result]}: dimension 0 must stay the batch")
        if not prod(result):
            raise OnnxError(f"found a result without numbers, of shape {[*result[1:]]}; allowed: at least one number")
        self.layers[name] = layer
        self.sources.append(tuple(value.number for value in values))
        return Value(len(self.layers), result[1:], has_batch)

    def shape_after(self, layer: nn.Module, values: list[Value]) -> tuple[int, ...]:
        """Return the shape of a layer's result, without computing it. Raises OnnxError if there is too much of it."""
        tensors = {name: tensor.to("meta") for name, tensor in layer.state_dict().items()}
        inputs = [torch.empty(_EXAMPLES, *value.shape, dtype=torch.float32, device="meta") for value in values]
        try:
            shape = tuple(functional_call(layer, tensors, tuple(inputs)).shape)
        except RuntimeError as error:
            found = f"found values of shapes {[[*value.shape] for value in values]}, which {layer} does not take"
            raise OnnxError(f"{found}: {' '.join(str(error).split())[:300]}") from None
        self.count(prod(shape[1:]), prod(shape[1:]) * window_of(layer))
        return shape

    def count(self, numbers: int, products: int) -> None:
        """Count what has to be computed for one example. Raises OnnxError if it is too much."""
        self.numbers, self.products = self.numbers + numbers, self.products + products
        if self.numbers > MOST_VALUES or self.products > _MOST_PRODUCTS:
            found = f"{self.numbers} numbers as results so far, and {self.products} products that they take"
            raise OnnxError(f"found {found}, allowed: up to {MOST_VALUES} and {_MOST_PRODUCTS} for one example")


def _fold(node: onnx.NodeProto, inputs: list[np.ndarray | None], model: onnx.ModelProto) -> np.ndarray:
    """Return the first result of a node of constants. Raises OnnxError for arithmetic of other numbers than integers.

    inputs: None for an optional one that is left out. model: that the node belongs to.
    """
    arrays = {name: array for name, array in zip(node.input, inputs, strict=True) if array is not None}
    if node.op_type not in _MOVES | _SHAPES:
        _refuse_inexact(node, list(arrays.values()))
    _refuse_large(node.op_type, list(arrays.values()))
    feeds = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in arrays.items()
    ]
    graph = helper.make_graph([node], "constants", feeds, [helper.make_empty_tensor_value_info(node.output[0])])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    small = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    try:
        session = onnxruntime.InferenceSession(small.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return session.run(None, arrays)[0]
    except Exception as error:  # onnxruntime's errors share no class
        raise OnnxError(f"onnxruntime cannot compute it: {' '.join(str(error).split())[:300]}") from None


def _refuse_inexact(node: onnx.NodeProto, arrays: list[np.ndarray]) -> None:
    """Raise OnnxError unless a node of arithmetic is exact: its inputs and its result are integers."""
    is_exact = node.op_type in _ARITHMETIC and all(
        array.dtype.kind in "ib" and ((array > -_LARGEST) & (array < _LARGEST)).all() for array in arrays
    )
    to_other = [a.i for a in node.attribute if a.name == "to" and a.i not in _INTEGERS]
    if not is_exact or to_other or (node.op_type == "Div" and not arrays[1].all()):
        allowed = f"{', '.join(sorted(_MOVES))}; of integers also {', '.join(sorted(_ARITHMETIC))}"
        raise OnnxError(f"found only constant inputs; of constants are allowed: {allowed}")


def _refuse_large(operator: str, arrays: list[np.ndarray]) -> None:
    """Raise OnnxError if a result may have too many numbers."""
    sizes = [array.size for array in arrays]
    if operator in _GROWING:
        sizes[-1] = prod(max(1, int(size)) for size in arrays[-1].flat)
    most = sum(sizes) if operator in _JOINED else prod(sizes)
    if most > MOST_VALUES:
        raise OnnxError(f"found constants of up to {most} numbers, allowed: up to {MOST_VALUES}")
