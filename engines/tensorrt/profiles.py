"""The shapes of work that a plan is optimized for: of a decoder a chunk of one prompt, and a token of every row."""

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from piston.engines.tensorrt.lowering import Sizes

Shapes = dict[str, list[list[int]]]  # input -> [min, opt, max]


def profiles_of(graph: ir.Graph, sizes: Sizes) -> dict[str, Shapes]:
    """By name, in the order in which the plan has them; see docs/tensorrt.md."""
    prefill = [
        {"batch": 1, "seq": 1, "k": 1},
        {"batch": 1, "seq": sizes.chunk, "k": 1},
        {"batch": 1, "seq": sizes.chunk, "k": sizes.max_logits},
    ]
    decode = [{"batch": batch, "seq": 1, "k": 1} for batch in (1, sizes.max_batch, sizes.max_batch)]
    return {"prefill": shapes_of(graph, prefill), "decode": shapes_of(graph, decode)}


def shapes_of(graph: ir.Graph, given: Sequence[Mapping[str, int]]) -> Shapes:
    """The shapes of every input at the three given sizes of its symbols."""
    return {str(value.name): [_resolved(value, dims) for dims in given] for value in graph.inputs}


def _resolved(value: ir.Value, dims: Mapping[str, int]) -> list[int]:
    assert value.shape is not None
    return [dim if isinstance(dim, int) else dims[str(dim)] for dim in value.shape]
