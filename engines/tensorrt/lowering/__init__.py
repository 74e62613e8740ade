"""Rewrites from the canonical graph to the file that TensorRT's parser gets, one per file."""

import math
from dataclasses import dataclass

import onnx_ir as ir

from piston.core.bundle.interface import CacheSpec, StateType, is_present, past_of
from piston.core.errors import EngineError
from piston.engines.lowering.downcast import DowncastPass
from piston.engines.lowering.trim_rotary import TrimRotaryPass
from piston.engines.tensorrt.lowering.next_step import NextStepPass
from piston.engines.tensorrt.lowering.sampling_head import MAX_TOP_K, SamplingHeadPass, vocab_size
from piston.engines.tensorrt.lowering.static_capacity import StaticCapacityPass
from piston.engines.tensorrt.lowering.trt_attention import TrtAttentionPass
from piston.engines.tensorrt.lowering.whole_blocks import WholeBlocksPass
from piston.graph.qdq import activation_pair, cache_rounding, quantized_weight
from piston.graph.upcast import Float32Pass
from piston.runtime.backends.tensorrt.interface import CHUNK

ROW_UNIT = 256  # bytes: TensorRT's kernels read tensors from addresses that are multiples of it


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Everything about the engine that is fixed when it is built."""

    max_batch: int
    max_length: int
    capacity: int
    chunk: int
    max_logits: int
    source: int = 0  # positions of a source in memory; 0 where there is no encoder

    @classmethod
    def of(cls, cache: CacheSpec, max_batch: int, max_length: int, cross: CacheSpec | None = None) -> "Sizes":
        """Derive them from what the user says; `cache` and `cross` are the engine's.

        Raises:
            EngineError: sources have one number of positions, and their states no whole number of 256 bytes.
        """
        return cls(
            max_batch=max_batch,
            max_length=max_length,
            capacity=_aligned(cache, max_length),
            source=0 if cross is None or not cross.states else _source_of(cross, max_length),
            chunk=min(CHUNK, max_length),
            max_logits=min(128, max_length),
        )


def _aligned(spec: CacheSpec, length: int) -> int:
    """The least number of positions from `length` on with which every row of every state begins where it should."""
    unit = math.lcm(*(ROW_UNIT // math.gcd(ROW_UNIT, state.nbytes(1, 1)) for state in spec.states))
    return -(-length // unit) * unit


def _source_of(cross: CacheSpec, max_length: int) -> int:
    fixed = cross.num_positions
    if fixed is not None and any(state.nbytes(1, fixed) % ROW_UNIT for state in cross.states):
        raise EngineError(
            f"The keys of a source of {fixed} positions take {cross.states[0].nbytes(1, fixed):,} bytes, which is no "
            f"multiple of {ROW_UNIT}; build this model for ort-cpu."
        )
    return fixed or _aligned(cross, max_length)


def lower_for_tensorrt(model: ir.Model, sizes: Sizes, dtype: StateType) -> None:
    """Rewrite a canonical graph, in place, into the file the compiler gets, computing in `dtype`.

    In float32 it is the reference that is held to a tight bound: the same passes but the last, which only casts.

    Raises:
        EngineError: the model has something TensorRT has no form for; the message names it.
    """
    Float32Pass()(model)
    _refuse(model.graph)
    for rewrite in (
        StaticCapacityPass(sizes.capacity, sizes.source),
        TrtAttentionPass(decomposable=sizes.source > 0),  # a bias over single tokens has no kernel of its own
        WholeBlocksPass(),
        TrimRotaryPass(sizes.max_length),
        *([] if dtype == "float32" else [DowncastPass(dtype)]),
        NextStepPass(sizes.max_length),
        SamplingHeadPass(sizes.capacity),
    ):
        rewrite(model)  # one by one: a Sequential would wrap our errors into its own
    _drop_unread_inputs(model.graph)
    check_caches(model.graph)


def lower_encoder_for_tensorrt(model: ir.Model, dtype: StateType) -> None:
    """Rewrite a canonical graph without caches, in place, into the file the compiler gets, computing in `dtype`.

    Its outputs stay float32, but for the cross states of a decoder, which get the type of that. See lower_for_tensorrt.

    Raises:
        EngineError: the model has something TensorRT has no form for; the message names it.
    """
    Float32Pass()(model)
    _refuse(model.graph)
    for rewrite in (
        TrtAttentionPass(decomposable=True),
        WholeBlocksPass(),
        *([] if dtype == "float32" else [DowncastPass(dtype)]),
    ):
        rewrite(model)
    _drop_unread_inputs(model.graph)


def check_caches(graph: ir.Graph) -> None:
    """Every key and value cache is written by one TensorScatter from its own input to its own output.

    Raises:
        EngineError: one is not, so that the compiler could not alias them.
    """
    present = [value for value in graph.outputs if is_present(value.name)]
    for value in present:
        scatter, name = value.producer(), past_of(value.name or "")
        past = None if scatter is None or scatter.op_type != "TensorScatter" else scatter.inputs[0]
        if past is None or past.name != name or len(past.uses()) != 1:
            raise EngineError(f"{value.name} is not {name} with new entries written at write_indices.")


def _drop_unread_inputs(graph: ir.Graph) -> None:
    """The compiler would keep them as bindings that mean nothing: kv_lengths, where every layer has a window."""
    graph.inputs[:] = [value for value in graph.inputs if value.uses()]


def _refuse(graph: ir.Graph) -> None:
    for node in graph:
        if node.op_type == "TensorScatter" and cache_rounding(node.inputs[1]) is not None:
            raise EngineError(
                "TensorRT's KVCacheUpdate keeps float16 or bfloat16, not the INT8 cache of this model; calibrate it "
                "without --kv, or build it for ort-cpu."
            )
        if node.op_type != "MatMul":
            continue
        weight = quantized_weight(node.inputs[1])
        if weight is not None and weight.bits == 4 and activation_pair(node.inputs[0]) is not None:  # noqa: PLR2004
            raise EngineError(
                f"{node.name} multiplies INT8 activations by INT4 weights, for which TensorRT has no kernel; calibrate "
                "with --scheme w4 or w8a8."
            )


__all__ = ["MAX_TOP_K", "Sizes", "check_caches", "lower_encoder_for_tensorrt", "lower_for_tensorrt", "vocab_size"]
