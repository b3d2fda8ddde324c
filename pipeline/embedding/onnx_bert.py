"""A BERT encoder written as an ONNX graph, straight from its weights.

What belongs here: the graph and nothing else. It needs numpy and onnx, never torch: the graph is small and fixed, so
writing it down is shorter and far lighter than tracing a model. Only standard operators are used; ONNX Runtime fuses them
itself (BiasGelu, FusedMatMul) when it loads the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    import onnx

Weights = Mapping[str, npt.NDArray[Any]]

OPSET = 17
"""The first opset with LayerNormalization."""
IR_VERSION = 9
"""Old enough for every ONNX Runtime that fastembed supports."""


class BertConfig(BaseModel):
    """The part of a Hugging Face ``config.json`` that decides the graph."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    model_type: str
    hidden_act: str
    position_embedding_type: str = "absolute"
    hidden_size: int
    num_attention_heads: int
    num_hidden_layers: int
    layer_norm_eps: float

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.num_attention_heads


@dataclass
class _Graph:
    """Collects nodes and initializers under generated, unique names."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: list[onnx.TensorProto] = field(default_factory=list)

    def constant(self, value: npt.ArrayLike, dtype: npt.DTypeLike = np.float32) -> str:
        from onnx import numpy_helper

        name = f"w{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(np.asarray(value, dtype)), name))
        return name

    def op(self, kind: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        from onnx import helper

        result = output or f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [result], **attributes))
        return result

    def dense(self, x: str, kernel: npt.NDArray[Any], bias: npt.NDArray[Any]) -> str:
        """``x @ kernel.T + bias``, the way PyTorch stores a linear layer."""
        return self.op("Add", self.op("MatMul", x, self.constant(kernel.T)), self.constant(bias))


def build_bert(config: BertConfig, weights: Weights) -> onnx.ModelProto:
    """The encoder as a checked ONNX model.

    Inputs ``input_ids``, ``attention_mask`` and ``token_type_ids`` are int64 (batch, sequence); the output
    ``last_hidden_state`` is float32 (batch, sequence, hidden_size). Raises ValueError for an architecture this graph
    does not describe and KeyError for a missing weight.
    """
    import onnx
    from onnx import TensorProto, helper

    described = (config.model_type, config.hidden_act, config.position_embedding_type)
    if described != ("bert", "gelu", "absolute"):
        raise ValueError(f"only BERT with gelu and absolute positions can be written, not {described}")
    graph = _Graph()
    x = _embeddings(graph, config, weights)
    bias = _mask_bias(graph)
    for layer in range(config.num_hidden_layers):
        last = layer == config.num_hidden_layers - 1
        prefix = f"encoder.layer.{layer}."
        x = _attention(graph, config, weights, prefix + "attention.", x, bias)
        x = _feed_forward(graph, config, weights, prefix, x, output="last_hidden_state" if last else None)
    axes = ["batch", "sequence"]
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, axes) for name in ("input_ids", "attention_mask", "token_type_ids")
    ]
    hidden = helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, [*axes, config.hidden_size])
    model = helper.make_model(
        helper.make_graph(graph.nodes, "bert", inputs, [hidden], graph.initializers),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="indexport",
    )
    onnx.checker.check_model(model)
    return model


def _embeddings(graph: _Graph, config: BertConfig, weights: Weights) -> str:
    def table(name: str) -> str:
        return graph.constant(weights[f"embeddings.{name}_embeddings.weight"])

    words = graph.op("Gather", table("word"), "input_ids")
    types = graph.op("Gather", table("token_type"), "token_type_ids")
    # Positions are sliced, not gathered through Range: ONNX Runtime's fusion of the latter fails ("Starts must be 1-D").
    zero = graph.constant([0], np.int64)
    length = graph.op("Shape", "input_ids", start=1, end=2)
    positions = graph.op("Slice", table("position"), zero, length, zero)
    total = graph.op("Add", graph.op("Add", words, types), positions)
    return _layer_norm(graph, config, weights, "embeddings.LayerNorm", total)


def _mask_bias(graph: _Graph) -> str:
    """0 for a real token and the lowest float for padding, as (batch, 1, 1, sequence), to add to attention scores."""
    from onnx import TensorProto

    mask = graph.op("Cast", "attention_mask", to=TensorProto.FLOAT)
    mask = graph.op("Unsqueeze", mask, graph.constant([1, 2], np.int64))
    padding = graph.op("Sub", graph.constant(1.0), mask)
    return graph.op("Mul", padding, graph.constant(np.finfo(np.float32).min))


def _attention(graph: _Graph, config: BertConfig, weights: Weights, prefix: str, x: str, bias: str) -> str:
    heads = graph.constant([0, 0, config.num_attention_heads, config.head_size], np.int64)

    def project(name: str, axes: list[int]) -> str:
        dense = graph.dense(x, weights[f"{prefix}self.{name}.weight"], weights[f"{prefix}self.{name}.bias"])
        return graph.op("Transpose", graph.op("Reshape", dense, heads), perm=axes)

    query, value = project("query", [0, 2, 1, 3]), project("value", [0, 2, 1, 3])
    scores = graph.op("MatMul", query, project("key", [0, 2, 3, 1]))
    scores = graph.op("Mul", scores, graph.constant(config.head_size**-0.5))
    probabilities = graph.op("Softmax", graph.op("Add", scores, bias), axis=-1)
    mixed = graph.op("Transpose", graph.op("MatMul", probabilities, value), perm=[0, 2, 1, 3])
    joined = graph.op("Reshape", mixed, graph.constant([0, 0, config.hidden_size], np.int64))
    return _add_and_norm(graph, config, weights, prefix + "output.", joined, residual=x)


def _feed_forward(graph: _Graph, config: BertConfig, weights: Weights, prefix: str, x: str, output: str | None) -> str:
    wide = graph.dense(x, weights[prefix + "intermediate.dense.weight"], weights[prefix + "intermediate.dense.bias"])
    return _add_and_norm(graph, config, weights, prefix + "output.", _gelu(graph, wide), residual=x, output=output)


def _gelu(graph: _Graph, x: str) -> str:
    """The exact GELU, ``0.5 x (1 + erf(x / sqrt 2))``, in the shape ONNX Runtime fuses."""
    erf = graph.op("Erf", graph.op("Div", x, graph.constant(np.sqrt(2.0))))
    return graph.op("Mul", graph.op("Mul", x, graph.op("Add", erf, graph.constant(1.0))), graph.constant(0.5))


def _add_and_norm(
    graph: _Graph, config: BertConfig, weights: Weights, prefix: str, x: str, residual: str, output: str | None = None
) -> str:
    dense = graph.dense(x, weights[prefix + "dense.weight"], weights[prefix + "dense.bias"])
    return _layer_norm(graph, config, weights, prefix + "LayerNorm", graph.op("Add", dense, residual), output)


def _layer_norm(graph: _Graph, config: BertConfig, weights: Weights, name: str, x: str, output: str | None = None) -> str:
    scale, shift = graph.constant(weights[name + ".weight"]), graph.constant(weights[name + ".bias"])
    return graph.op("LayerNormalization", x, scale, shift, output=output, axis=-1, epsilon=config.layer_norm_eps)
