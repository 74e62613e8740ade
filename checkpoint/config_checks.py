"""Sizes in config.json that no model can have, refused by name before transformers builds anything of them."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from piston.core.errors import CheckpointError

LAYERS = (
    "num_hidden_layers",
    "num_layers",  # of T5's encoder
    "num_decoder_layers",
    "encoder_layers",
    "decoder_layers",
    "num_hidden_groups",  # ALBERT's, and the layers of each
    "inner_group_num",
)
SIZES = (
    *LAYERS,
    "vocab_size",
    "hidden_size",
    "embedding_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "sliding_window",
    "d_model",  # of encoder-decoders
    "d_kv",
    "d_ff",
    "num_heads",
    "encoder_attention_heads",
    "decoder_attention_heads",
    "encoder_ffn_dim",
    "decoder_ffn_dim",
    "num_mel_bins",
    "max_source_positions",
    "max_target_positions",
)


def check_config(name: str, config: Any) -> None:
    """Check the sizes and numbers of a config that transformers has parsed.

    Raises:
        CheckpointError: a size is no positive integer, or a number is NaN or infinite.
    """
    known = type(config)()
    # A key that this architecture does not read is no concern of ours.
    fields = [field for field in SIZES if hasattr(known, field)]
    _check(name, {known.attribute_map.get(field, field): getattr(config, field, None) for field in fields})
    for path, number in _numbers(config.to_dict()):
        if not math.isfinite(number):
            raise CheckpointError(f"{path} in the config of {name} is {number}; it must be finite.")


def num_layers_of(config: Any) -> int:
    """The largest number of layers that a config states, of a stack or of a part of one."""
    return max(getattr(config, field, None) or 0 for field in LAYERS)


def check_written_sizes(name: str, sizes: Mapping[str, Any]) -> None:
    """Check those of SIZES that are there, None and lists of sizes allowed; raises as `check_config` does."""
    _check(name, {field: sizes.get(field) for field in SIZES})


def check_written_labels(name: str, config: Mapping[str, Any]) -> None:
    """Raise CheckpointError if labels are not written as {"0": "bad", "1": "good"}, or the other way around."""
    for field, form in (("id2label", '{"0": "bad", "1": "good"}'), ("label2id", '{"bad": 0, "good": 1}')):
        labels = config.get(field)
        is_object = labels is None or isinstance(labels, dict)
        if not is_object or (field == "id2label" and not all(map(str.isdecimal, labels or {}))):
            raise CheckpointError(f"{field} in the config of {name} must be an object such as {form}.")


def _check(name: str, sizes: Mapping[str, Any]) -> None:
    for field, value in sizes.items():
        for item in value if isinstance(value, list) else [] if value is None else [value]:
            if isinstance(item, bool) or not isinstance(item, int) or item < 1:
                hint = " (null for none)" if field == "sliding_window" else ""
                raise CheckpointError(
                    f"{field} in the config of {name} is {item!r}; it must be an integer of 1 or more{hint}."
                )


def _numbers(value: Any, path: str = "") -> Iterator[tuple[str, float]]:
    if isinstance(value, float):
        yield path, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _numbers(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _numbers(item, path)
