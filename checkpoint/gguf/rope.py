"""The rotary keys and tensors of a GGUF file as transformers' rope_parameters.

In llama.cpp frequency i of n / 2 is base ** (-2 i / n) / factor[i] * scale, with factors from a tensor and a scale
from the keys. transformers' longrope divides by factors too: it states any of them exactly.
"""

import math
from typing import Any

import numpy as np

from piston.checkpoint.gguf.keys import Keys
from piston.core.bundle.gguf_header import GgufTensor
from piston.core.errors import CheckpointError

FREQS, LONG, SHORT = "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"
WITH_FREQS, WITH_LONG = ("llama",), ("llama", "phi3")
ROPE_TENSORS = (FREQS, LONG, SHORT)
FLOAT32 = 0
KINDS = ("none", "linear", "yarn", "longrope")


def rope_parameters(keys: Keys, context: int, rotary: int) -> dict[str, Any]:
    """What turns `rotary` values of each head over `context` positions.

    Raises:
        CheckpointError: a type or factor that no rotary module of transformers computes.
    """
    theta, kind = keys.number("rope.freq_base", 10_000.0), keys.take("rope.scaling.type", None)
    if theta < 1:
        raise keys.wrong("rope.freq_base", theta, "1 or more")
    if kind not in (None, *KINDS):
        raise keys.wrong("rope.scaling.type", kind, ", ".join(KINDS))
    older = keys.number("rope.scale_linear", 0)  # the name of the factor in older files
    factor = keys.number("rope.scaling.factor", 0) or older or 1.0
    if factor < 1:
        raise keys.wrong("rope.scaling.factor", factor, "1 or more")
    original = keys.natural("rope.scaling.original_context_length", context) or context
    attention = keys.number("rope.scaling.attn_factor", 1.0)
    tensors = {name: factors for name in ROPE_TENSORS if (factors := _factors(keys, name, rotary // 2)) is not None}
    if tensors and set(tensors) != ({FREQS} if FREQS in tensors and kind != "longrope" else {LONG, SHORT}):
        raise CheckpointError(
            f"{keys.header.name} has {' and '.join(tensors)} with scaling of type {kind}; factors come as {LONG} and "
            f"{SHORT}, or as {FREQS}."
        )
    if kind == "yarn":
        return {"rope_theta": theta} | _yarn(keys, factor, original, attention, tensors)
    factor = 1.0 if kind == "none" else factor
    if LONG in tensors:
        return {"rope_theta": theta} | _longrope(tensors[LONG] * factor, tensors[SHORT] * factor, original, attention)
    if kind == "longrope":
        raise keys.wrong("rope.scaling.type", kind, f"another without {LONG} and {SHORT}")
    if tensors or attention != 1:
        factors = tensors.get(FREQS, np.ones(rotary // 2)) * factor
        return {"rope_theta": theta} | _longrope(factors, factors, context, attention)
    scaled = {"rope_type": "linear", "factor": factor} if factor != 1 else {"rope_type": "default"}
    return {"rope_theta": theta} | scaled


def _longrope(long: Any, short: Any, original: int, attention: float) -> dict[str, Any]:
    return {
        "rope_type": "longrope",
        "long_factor": [float(value) for value in long],
        "short_factor": [float(value) for value in short],
        "original_max_position_embeddings": original,
        "attention_factor": attention,
    }


def _yarn(keys: Keys, factor: float, original: int, attention: float, tensors: dict[str, Any]) -> dict[str, Any]:
    if tensors:
        raise CheckpointError(
            f"{keys.header.name} has YaRN scaling and {next(iter(tensors))}, which no model combines."
        )
    for name in ("yarn_ext_factor", "yarn_attn_factor"):
        if (value := keys.number(f"rope.scaling.{name}", 1.0)) != 1:
            raise keys.wrong(f"rope.scaling.{name}", value, "1")
    return {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": original,
        "beta_fast": keys.number("rope.scaling.yarn_beta_fast", 32.0),
        "beta_slow": keys.number("rope.scaling.yarn_beta_slow", 1.0),
        "attention_factor": attention * (0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0),
    }


def _factors(keys: Keys, name: str, count: int) -> Any:
    """The values of a tensor of factors, float32 [count]; None where the file has none."""
    header = keys.header
    tensor = header.tensors.get(name)
    if tensor is None:
        return None
    allowed = WITH_FREQS if name == FREQS else WITH_LONG
    if keys.prefix.removesuffix(".") not in allowed:
        raise CheckpointError(f"{header.name} has {name}, which its architecture does not use; it is damaged.")
    if tensor != GgufTensor((count,), FLOAT32, tensor.offset):
        raise CheckpointError(f"{name} of {header.name} is not float32 of {count} values, one for each frequency.")
    values = np.fromfile(header.path, "<f4", count, offset=header.data_start + tensor.offset)
    if not (np.isfinite(values) & (values > 0)).all():
        raise CheckpointError(f"{name} of {header.name} has a factor that is not above 0; it is damaged.")
    return values
