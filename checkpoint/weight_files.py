"""What the weight files of a checkpoint hold, read from their headers: names, types and shapes, no values."""

import re
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from piston.checkpoint.json_files import read_object
from piston.core.bundle.interface import FloatType
from piston.core.errors import CheckpointError, UnsupportedModelError

INDEX = ".index.json"
FLOATS: dict[str, FloatType] = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float32"}
# Older transformers saved these buffers beside the weights. The model computes them; transformers passes over them.
BUFFERS = re.compile(r"(rotary(_emb)?\.inv_freq|\.masked_bias|(^|\.)position_ids)$")
CAUSAL_MASK = re.compile(r"\.(attn|attention)\.bias$")
CAUSAL_MASK_RANK = 4  # [1, 1, positions, positions]; a bias of a linear layer has one dimension


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor in a file; `dtype` is safetensors' name of it, such as BF16."""

    dtype: str
    shape: tuple[int, ...]


def weight_files(directory: Path) -> list[Path]:
    """The files that transformers would read: safetensors before pickles, one file before shards."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (directory / name).is_file():
            return [directory / name]
        index = directory / (name + INDEX)
        if index.is_file():
            shards = set(read_object(index)["weight_map"].values())
            if elsewhere := sorted(shard for shard in shards if Path(shard).name != shard):
                raise CheckpointError(
                    f"{index} names {elsewhere[0]!r:.60}, which is no file next to it; copy it again."
                )
            return sorted(directory / shard for shard in shards)
    return []


def stored_tensors(directory: Path) -> dict[str, StoredTensor]:
    """Every tensor of the checkpoint by its name, without the buffers that no model reads."""
    found: dict[str, StoredTensor] = {}
    for path in weight_files(directory):
        found |= _safetensors(path) if path.suffix == ".safetensors" else _pickled(path)
    return {name: tensor for name, tensor in found.items() if not is_buffer(name, tensor)}


def is_buffer(name: str, tensor: StoredTensor | None = None) -> bool:
    """Whether a tensor of this name is computed by the model, so that dropping it changes nothing."""
    is_mask = tensor is not None and len(tensor.shape) == CAUSAL_MASK_RANK and CAUSAL_MASK.search(name) is not None
    return is_mask or BUFFERS.search(name) is not None


def float_type_of(stored: Mapping[str, StoredTensor]) -> tuple[FloatType, str | None]:
    """The type that holds every stored value, and a remark where the files mix several.

    Raises:
        UnsupportedModelError: a tensor is of integers or of eight bits: the checkpoint is quantized already.
    """
    counts = Counter(tensor.dtype for tensor in stored.values())
    for name, tensor in stored.items():
        if tensor.dtype not in FLOATS:
            raise UnsupportedModelError(
                f"{name} is stored as {tensor.dtype}: the checkpoint is quantized already; export the float one it "
                "came from."
            )
    types = {FLOATS[dtype] for dtype in counts}
    widest: FloatType = types.pop() if len(types) == 1 else "float32"
    if len(counts) <= 1:
        return widest, "float64 weights are rounded to float32." if "F64" in counts else None
    listed = ", ".join(f"{dtype} ({count} tensors)" for dtype, count in counts.most_common())
    return widest, f"the checkpoint mixes {listed}: exported as {widest}, which holds them all (--dtype chooses)."


def other_shape(name: str, model: Any, key: str, stored: Sequence[int], expected: Sequence[int]) -> CheckpointError:
    """The error that a tensor is stored in another shape than the model of its config has."""
    said = f"its config says {list(expected)}"
    num_labels = getattr(model.config, "num_labels", None)
    if (
        "Classification" in type(model).__name__ and expected[0] == num_labels and [*stored[1:]] == [*expected[1:]]
    ):  # the head
        said = f"its config has {num_labels} labels (id2label, num_labels)"
    return CheckpointError(f"{name} stores {key} as {list(stored)}, but {said}; one is wrong.")


def check_sizes(name: str, model: Any, stored: Mapping[str, StoredTensor]) -> None:
    """Compare a model on torch's meta device with the files, before memory is taken for it.

    Raises:
        CheckpointError: a tensor has another shape, or the config describes a model far larger than the files.
    """
    expected = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    for key, shape in expected.items():
        if key in stored and stored[key].shape != shape:
            raise other_shape(name, model, key, stored[key].shape, shape)
    wanted = sum(prod(parameter.shape) for parameter in model.parameters())  # tied ones once
    held = sum(prod(tensor.shape) for tensor in stored.values())
    if wanted > 2 * held:
        raise CheckpointError(
            f"The config of {name} describes a model of {wanted:,} parameters, but its files hold {held:,}; one is "
            "wrong, or a file is missing."
        )


def _safetensors(path: Path) -> dict[str, StoredTensor]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        pieces = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        return {name: StoredTensor(piece.get_dtype(), tuple(piece.get_shape())) for name, piece in pieces.items()}


def _pickled(path: Path) -> dict[str, StoredTensor]:
    import torch

    names = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
    state = torch.load(path, map_location="meta", weights_only=True, mmap=zipfile.is_zipfile(path))
    return {
        name: StoredTensor(names.get(tensor.dtype, str(tensor.dtype)), tuple(tensor.shape))
        for name, tensor in state.items()
        if isinstance(tensor, torch.Tensor)
    }
