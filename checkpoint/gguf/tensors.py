"""The tensors of a GGUF file against those its model takes, by the header alone, before any memory is taken."""

import contextlib
import functools
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import nn

from piston.checkpoint.gguf.rope import ROPE_TENSORS
from piston.checkpoint.quiet import quiet
from piston.core.bundle.gguf_header import GgufHeader
from piston.core.errors import CheckpointError


@contextlib.contextmanager
def alone(header: GgufHeader) -> Iterator[dict[str, str]]:
    """Arguments of from_pretrained that show it the file and nothing beside it, which belongs to another checkpoint."""
    with tempfile.TemporaryDirectory() as directory, one_table_of_names():
        (Path(directory) / "model.gguf").symlink_to(header.path.resolve())
        yield {"pretrained_model_name_or_path": directory, "gguf_file": "model.gguf"}


@contextlib.contextmanager
def one_table_of_names() -> Iterator[None]:
    """Make gguf's table of tensor names once: transformers asks for it again at every module of a model."""
    import gguf

    with mock.patch.object(gguf, "get_tensor_name_map", functools.cache(gguf.get_tensor_name_map)):
        yield


def check_tensors(header: GgufHeader, config: Any) -> None:
    """Compare names and sizes; the rotary factors are read with the keys.

    Raises:
        CheckpointError: a tensor is missing, truncated, of another size, or one that the model does not take.
    """
    from transformers import AutoModelForCausalLM
    from transformers.modeling_gguf_pytorch_utils import TensorProcessor, get_gguf_hf_weights_map

    header.check_data()
    with quiet(), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    with quiet(), one_table_of_names():
        names: dict[str, str] = get_gguf_hf_weights_map(model, TensorProcessor())
    wanted = model.state_dict()
    if config.tie_word_embeddings:
        names.pop("output.weight", None)
    if missing := sorted(set(names) - set(header.tensors)):
        raise CheckpointError(
            f"{header.name} lacks {len(missing)} tensors, {missing[0]} first; it is incomplete, "
            "or part of a split file that must be merged first."
        )
    if unknown := sorted(set(header.tensors) - set(names) - set(ROPE_TENSORS)):
        raise CheckpointError(
            f"{header.name} has {len(unknown)} tensors that {type(model).__name__} does not take, {unknown[0]} first; "
            "leaving them out would change answers."
        )
    for name, target in names.items():
        stored, expected = header.tensors[name].shape, tuple(wanted[target].shape)
        if stored not in {expected, expected[::-1]}:  # GPT-2's are transposed
            raise CheckpointError(
                f"{header.name} stores {name} as {list(stored[::-1])}, but its keys say {list(expected)}; one is wrong."
            )


def restore_head_order(model: nn.Module, header: GgufHeader) -> None:
    """Undo llama.cpp's order of rotated rows where transformers leaves it, in a file that has no head_count_kv.

    The rows of a head of q and k lie as pairs (i, i + half) in the file and as two halves in transformers.
    """
    if header.keys["general.architecture"] != "llama" or "llama.attention.head_count_kv" in header.keys:
        return
    heads = header.keys["llama.attention.head_count"]
    for name, parameter in model.named_parameters():
        if re.search(r"\.self_attn\.[qk]_proj\.", name):
            pairs = parameter.data.reshape(heads, -1, 2, *parameter.shape[1:])
            parameter.data = pairs.transpose(1, 2).reshape(parameter.shape).clone()
