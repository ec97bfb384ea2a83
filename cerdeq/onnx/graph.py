"""The nodes of an ONNX file as layers of a module."""

from collections import Counter

import onnx
import torch
from torch import nn

from cerdeq.onnx.errors import OnnxError
from cerdeq.onnx.file import File, array_of
from cerdeq.onnx.layers import OnnxNetwork
from cerdeq.onnx.node import Argument, Node, Value
from cerdeq.onnx.operators import LAYERS, constant_result

_EXAMPLES = 2  # that each layer is tried on


def network_of(file: File) -> OnnxNetwork:
    """Return the network of a file. Raises OnnxError for a node that has no layer; the message names it."""
    try:
        with torch.device("cpu"), torch.no_grad():  # with weights also where a network is built without values
            return _Reader(file).network().eval()
    except OnnxError as error:
        raise OnnxError(f"{file.path}: {error}") from None


class _Reader:
    """Reads nodes in order.

    arguments: values and constants by name. layers: by name. sources: the values that each layer reads. made_by: the
    layer that computes a result, by the result's name. uses: how many nodes read each name.
    """

    def __init__(self, file: File):
        self.file, self.nodes = file, file.model.graph.node
        self.arguments: dict[str, Argument] = {"": None, **file.constants, file.input: Value(0, file.shape)}
        self.layers: dict[str, nn.Module] = {}
        self.sources: list[tuple[int, ...]] = []
        self.made_by: dict[str, nn.Module] = {}
        self.uses = Counter([file.output, *[name for node in self.nodes for name in node.input]])

    def network(self) -> OnnxNetwork:
        for position, proto in enumerate(self.nodes, start=1):
            self.read(position, proto)
        output = self.arguments[self.file.output]
        if not isinstance(output, Value):
            raise OnnxError("the output does not depend on the input")
        return OnnxNetwork(self.layers, self.sources, output.number, (self.file.shape, output.shape))

    def read(self, position: int, proto: onnx.NodeProto) -> None:
        where = f"operator {proto.op_type} at node {proto.name or f'number {position}'!r}"
        try:
            node = self.node(proto)
            values = [argument for argument in node.inputs if isinstance(argument, Value)]
            name = f"{proto.op_type.lower()}{position}"
            result = self.value(name, node, values) if values else constant_result(node)
        except OnnxError as error:
            raise OnnxError(f"{where}: {error}") from None
        except (RuntimeError, ValueError, IndexError, KeyError) as error:  # torch's, of a layer that does not fit
            raise OnnxError(f"{where}: {' '.join(str(error).split())[:300]}") from None
        self.arguments[proto.output[0]] = result
        if name in self.layers:
            self.made_by[proto.output[0]] = self.layers[name]

    def node(self, proto: onnx.NodeProto) -> Node:
        if proto.domain not in ("", "ai.onnx"):
            raise OnnxError(f"found domain {proto.domain!r}, allowed: the operators of ONNX itself")
        used = [name for name in proto.output[1:] if self.uses[name]]
        if used:
            raise OnnxError(f"another node reads the outputs {used}, allowed: only the first output is used")
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in proto.attribute}
        for name, value in attributes.items():
            if isinstance(value, onnx.TensorProto):
                attributes[name] = array_of(value, f"attribute {name!r}")
        inputs = [self.arguments[name] for name in proto.input]
        makers = [self.made_by[name] for name in proto.input if name in self.made_by and self.uses[name] == 1]
        return Node(proto.op_type, attributes, inputs, makers, self.file.opset, self.file.is_batched)

    def value(self, name: str, node: Node, values: list[Value]) -> Value:
        """Return the result of a node, whose layer is added; the value itself if the node does nothing."""
        if node.operator not in LAYERS:
            raise OnnxError(f"not supported; supported operators: {', '.join(sorted(LAYERS))}")
        layer = LAYERS[node.operator](node)
        if layer is None:
            return values[0]
        result = layer.eval()(*[torch.zeros(_EXAMPLES, *value.shape, dtype=torch.float32) for value in values])
        if result.dim() < 2 or len(result) != _EXAMPLES:
            shape = list(result.shape)
            raise OnnxError(f"{_EXAMPLES} examples give a result of shape {shape}: dimension 0 must stay the batch")
        self.layers[name] = layer
        self.sources.append(tuple(value.number for value in values))
        return Value(len(self.layers), tuple(result.shape[1:]))
