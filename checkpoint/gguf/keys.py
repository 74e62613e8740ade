"""An account of a GGUF file's keys: one that nobody has read and that is not known to be harmless is an error."""

import math
import re
from typing import Any

from piston.core.bundle.gguf_header import GgufHeader
from piston.core.errors import CheckpointError

_REQUIRED = object()
# What describes a file without changing what its model answers.
HARMLESS = re.compile(
    r"general\.(architecture|alignment|type|name|author|version|organization|finetune|basename|description|quantized_by"
    r"|size_label|license(\..+)?|url|doi|uuid|repo_url|source\..+|base_model\..+|dataset\..+|tags|languages|datasets"
    r"|file_type|quantization_version|parameter_count)"
    r"|split\.(no|count|tensors\.count)"
    r"|general\.sampling\.(xtc_threshold|mirostat_tau|mirostat_eta)"  # of samplers that must be off, see below
    r"|quantize\.imatrix\.(file|dataset|entries_count|chunks_count)"
    r"|tokenizer\.chat_templates|tokenizer\.chat_template\..+"  # named templates beside the default one
    r"|tokenizer\.huggingface\.json"  # the same tokenizer once more
)
# Keys that set_sampling, end_ids and gguf_tokenizer read, and ids of tokens that no prompt or answer gets by itself.
READ_ELSEWHERE = re.compile(
    r"general\.sampling\.(temp|top_k|top_p|min_p|penalty_repeat)"
    r"|tokenizer\.chat_template|tokenizer\.ggml\.(model|pre|tokens|scores|token_type|token_type_count|merges"
    r"|(bos|eos|eot|eom|unknown|padding)_token_id|add_(bos|eos)_token|add_space_prefix"
    r"|(seperator|separator|cls|mask|fim_pre|fim_suf|fim_mid|fim_pad|fim_rep|fim_sep|prefix|suffix|middle)_token_id)"
)
# Keys of the architecture that say nothing of the model: vocab_size is the height of token_embd.weight.
SILENT = ("vocab_size", "tensor_data_layout", "rope.scaling.finetuned")
# Keys with the values that leave the model as it is without them; any other value is refused.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "expert_count": (0,),
    "expert_used_count": (0,),
    "attention.causal": (True,),
    "attention.max_alibi_bias": (0,),
    "attention.clamp_kqv": (0,),
    "attention.scale": (0,),
    "attn_logit_softcapping": (0,),
    "final_logit_softcapping": (0,),
    "logit_scale": (0, 1),
    "residual_scale": (0, 1),
    "embedding_scale": (0, 1),
    "pooling_type": (0,),
    "use_parallel_residual": (False,),
}
NEUTRAL_ANYWHERE: dict[str, tuple[Any, ...]] = {
    "general.sampling.xtc_probability": (0,),
    "general.sampling.mirostat": (0,),
    "tokenizer.ggml.add_sep_token": (False,),
    "tokenizer.ggml.remove_extra_whitespaces": (False,),
    "tokenizer.ggml.precompiled_charsmap": ([],),
    "tokenizer.ggml.suppress_tokens": ([],),
}


class Keys:
    """Reads keys below the file's architecture, and remembers which."""

    def __init__(self, header: GgufHeader) -> None:
        self.header = header
        self.prefix = f"{header.keys['general.architecture']}."
        self.read: set[str] = set()

    def take(self, name: str, default: Any = _REQUIRED) -> Any:
        """The value of `<architecture>.<name>`.

        Raises:
            CheckpointError: it is missing and there is no default.
        """
        key = self.prefix + name
        self.read.add(key)
        if key in self.header.keys:
            return self.header.keys[key]
        if default is _REQUIRED:
            raise CheckpointError(f"{self.header.name} lacks the key {key}; convert the checkpoint again.")
        return default

    def natural(self, name: str, default: Any = _REQUIRED) -> Any:
        """A number of things, 0 or more; one for each layer is refused unless all are the same."""
        value = self.take(name, default)
        if isinstance(value, list) and value and all(item == value[0] for item in value):
            value = value[0]
        if isinstance(value, list):
            raise CheckpointError(
                f"{self.header.name}: {self.prefix}{name} differs from layer to layer, which is not supported."
            )
        if type(value) is not int or not 0 <= value < 2**31 or (value == 0 and default is _REQUIRED):
            raise self.wrong(name, value, "a whole number above 0")
        return value

    def number(self, name: str, default: Any = _REQUIRED) -> float:
        """A finite number, 0 or more."""
        value = self.take(name, default)
        if type(value) not in {int, float} or not math.isfinite(value) or value < 0:
            raise self.wrong(name, value, "a finite number, 0 or more")
        return float(value)

    def wrong(self, name: str, value: Any, expected: str) -> CheckpointError:
        """The error of a value that cannot be; `expected` says what could."""
        return CheckpointError(f"{self.header.name}: {self.prefix}{name} is {value!r}, expected {expected}.")

    def check_file(self) -> None:
        """Refuse what is not one whole model.

        Raises:
            CheckpointError: an adapter or a projector.
        """
        keys, name = self.header.keys, self.header.name
        if (kind := keys.get("general.type", "model")) != "model":
            raise CheckpointError(f"{name} holds no model but, as general.type says, {kind!r}; give the model's file.")

    def check_all_read(self) -> None:
        """Refuse the first key that would be dropped.

        Raises:
            CheckpointError: a key that no part of the export honours.
        """
        for key, value in self.header.keys.items():
            name = key.removeprefix(self.prefix)
            known = key in self.read or HARMLESS.fullmatch(key) or READ_ELSEWHERE.fullmatch(key)
            neutral = NEUTRAL_ANYWHERE.get(key, () if name == key else NEUTRAL.get(name, ()))
            if known or value in neutral or (name != key and name in SILENT) or self._beyond_context(name):
                continue
            told = repr(value) if len(repr(value)) < 60 else f"{type(value).__name__} of {len(value)}"  # noqa: PLR2004
            raise CheckpointError(
                f"{self.header.name}: the key {key} = {told} is not supported and would change answers; "
                "export the Hugging Face checkpoint it was made from."
            )

    def _beyond_context(self, name: str) -> bool:
        """A window as long as the context is none."""
        window = self.header.keys.get(self.prefix + name)
        context = self.header.keys.get(self.prefix + "context_length", 0)
        return name == "attention.sliding_window" and type(window) is int and (window == 0 or window >= context)
