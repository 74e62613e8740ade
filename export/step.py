"""The step being traced, and the duck-typed cache that scatters into preallocated memory."""

from dataclasses import dataclass
from typing import Any

import torch
from torch.onnx import ops

from piston.core.errors import UnsupportedModelError
from piston.export.signature import OPSET


@dataclass(slots=True)
class Step:
    """The step being traced: what the replaced functions need beside their arguments."""

    position_ids: torch.Tensor
    write_indices: torch.Tensor
    kv_lengths: torch.Tensor
    capacity: Any  # a symbolic size while tracing


@dataclass(slots=True)
class StepHolder:
    """Where the replaced functions find the step under way.

    transformers keeps registered functions for good, so they hold this and never the model: gigabytes would stay.
    """

    step: Step | None = None

    def current(self) -> Step:
        """The step; only while tracing."""
        assert self.step is not None
        return self.step


class StepCache:
    """Answers transformers' Cache protocol: `update` scatters into the preallocated cache of one layer."""

    is_compileable = False

    def __init__(self, past: list[torch.Tensor], step: Step) -> None:
        self.past = past
        self.step = step
        self.present: list[torch.Tensor | None] = [None] * len(past)
        self.is_sliding = [False] * (len(past) // 2)  # every layer keeps the whole context; windows are masks

    def update(
        self, key: torch.Tensor, value: torch.Tensor, layer_idx: int, *_: object, **__: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write this step's keys and values; both [batch, kv_heads, seq, head_dim]."""
        scattered = []
        for slot, new in ((2 * layer_idx, key), (2 * layer_idx + 1, value)):
            past = self.past[slot]
            if self.present[slot] is not None or new.shape[1] != past.shape[1] or new.shape[3] != past.shape[3]:
                raise UnsupportedModelError(
                    f"Layer {layer_idx} does not keep one key and one value of the model's shape."
                )
            present = ops.symbolic(
                "::TensorScatter",
                (past, new, self.step.write_indices),
                {"axis": -2, "mode": "linear"},
                dtype=new.dtype,
                shape=past.shape,
                version=OPSET,
            )
            self.present[slot] = present
            scattered.append(present)
        return scattered[0], scattered[1]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """No position is derived from it: position_ids are given."""
        del layer_idx
        return 0

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """Unused by our mask."""
        del layer_idx
        return 0

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """(keys, offset of the first)."""
        del query_length, layer_idx
        return self.step.capacity, 0
