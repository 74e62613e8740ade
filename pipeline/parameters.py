"""How many parameters a checkpoint has, from the headers of its files; no weight is read."""

import math
from dataclasses import dataclass
from pathlib import Path

from piston.core.bundle.weights_header import read_header

_EMBEDDINGS = ("embed_tokens", "token_embd", "wte.", "embed_in", "word_embeddings")
_HEADS = ("lm_head", "embed_out")


@dataclass(frozen=True, slots=True)
class Parameters:
    """Counts; `head` is 0 where it is tied to the embedding."""

    total: int
    embedding: int
    head: int


def count_parameters(path: Path) -> Parameters | None:
    """Of a .gguf file, or of the safetensors of a directory; None for what has no header that can be read."""
    try:
        files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
        tensors = {name: tensor for file in files for name, tensor in read_header(file).items()}
    except ValueError:
        return None
    if not tensors:
        return None
    sizes = {name: math.prod(tensor.shape) for name, tensor in tensors.items()}
    embedding = sum(size for name, size in sizes.items() if any(part in name for part in _EMBEDDINGS))
    head = sum(size for name, size in sizes.items() if name == "output.weight" or any(part in name for part in _HEADS))
    return Parameters(sum(sizes.values()), embedding, head)
