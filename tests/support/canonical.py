"""Export a toy without the parity gate, and drive its graph directly: any batch, any padding."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import torch

from piston.checkpoint.checkpoint import cache_spec_of
from piston.core.bundle.interface import CacheSpec
from piston.export.passes import canonicalize
from piston.export.rotary import positions_of
from piston.export.trace import trace


@dataclass(frozen=True)
class Toy:
    """A canonical graph on disk."""

    path: Path
    cache: CacheSpec


def export_toy(model: torch.nn.Module, out: Path, context: int | None = None) -> CacheSpec:
    """Write out/model.onnx; the model is of no further use."""
    spec = cache_spec_of(model)
    graph = trace(model, spec, positions_of(model.config, context))
    canonicalize(graph)
    out.mkdir(parents=True, exist_ok=True)
    ir.save(graph, out / "model.onnx", external_data="model.onnx.data")
    return spec


class CanonicalSession:
    """The canonical graph in ONNX Runtime with its cache bound in place, `batch` rows of `capacity` positions."""

    def __init__(self, path: Path, spec: CacheSpec, batch: int, capacity: int) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = 1  # a toy is faster without threads that wait for one another
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        # Garbage, not zeros: a graph that reads behind the valid entries must be caught.
        self.cache = [np.full(state.sizes(batch, capacity), 1e4, np.float32) for state in spec.states]
        self.states = spec.states

    def step(self, input_ids, position_ids, write_indices, kv_lengths, logits_positions) -> np.ndarray:
        """Run one step; logits [batch, k, vocab]."""
        binding = self.session.io_binding()
        feed = {
            "input_ids": input_ids,
            "position_ids": position_ids,
            "write_indices": write_indices,
            "kv_lengths": kv_lengths,
            "logits_positions": logits_positions,
        }
        for name, value in feed.items():
            binding.bind_cpu_input(name, np.ascontiguousarray(value, np.int64))
        binding.bind_output("logits")  # first bound, first of get_outputs
        for state, array in zip(self.states, self.cache, strict=True):
            bound = ("cpu", 0, np.float32, list(array.shape), array.ctypes.data)
            binding.bind_input(state.input, *bound)
            binding.bind_output(state.output, *bound)
        self.session.run_with_iobinding(binding)
        return binding.get_outputs()[0].numpy()
