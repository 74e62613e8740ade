"""What the checkpoint says of generation: which tokens end an answer, and how tokens are chosen.

transformers decides which of the two files counts: generation_config.json where there is one, else config.json.
"""

import json
import textwrap
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from piston.checkpoint.checkpoint import Checkpoint
from piston.checkpoint.json_files import read_object
from piston.core.errors import CheckpointError, MisuseError
from piston.core.json_text import json_text
from piston.runtime.sampling.params import SamplingParams

FILE_NAME = "generation_config.json"
# What shapes a distribution to be drawn from, or only ends a text sooner: greedy picks are the same without it.
HARMLESS_TO_GREEDY = {
    "do_sample",
    "epsilon_cutoff",
    "eta_cutoff",
    "max_length",
    "max_new_tokens",
    "min_p",
    "num_return_sequences",
    "temperature",
    "top_h",
    "top_k",
    "top_p",
    "typical_p",
}
# What changes memory, speed or the form of the result, and no token. Token ids are recorded elsewhere.
WITHOUT_EFFECT = {
    "assistant_confidence_threshold",
    "assistant_early_exit",
    "assistant_ensemble_weight",
    "assistant_lookbehind",
    "bos_token_id",
    "cache_config",
    "cache_implementation",
    "compile_config",
    "continuous_batching_config",
    "decoder_start_token_id",
    "disable_compile",
    "eos_token_id",
    "is_assistant",
    "low_memory",
    "max_cache_len",
    "max_matching_ngram_size",
    "num_assistant_tokens",
    "num_assistant_tokens_schedule",
    "output_attentions",
    "output_hidden_states",
    "output_logits",
    "output_scores",
    "pad_token_id",
    "prefill_chunk_size",
    "prompt_lookup_num_tokens",
    "remove_invalid_values",
    "renormalize_logits",
    "return_dict_in_generate",
    "speculation_type",
    "target_lookbehind",
    "transformers_version",
    "use_cache",
    "use_mtp",
}
ONLY_WITH_BEAMS = {"early_stopping", "length_penalty", "diversity_penalty", "num_beam_groups"}


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationDefaults:
    """What is recorded in the manifest, and what the person who exports is told."""

    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None
    pad_token_id: int | None
    sampling: dict[str, Any] = field(default_factory=dict)  # by transformers' names, as JSON
    remarks: tuple[str, ...] = ()


def read_defaults(checkpoint: Checkpoint, generation: Any, applied: Collection[str] = ()) -> GenerationDefaults:
    """Read a loaded model's generation_config, which `from_pretrained` took from the file that counts.

    `applied` are settings that the model's task applies beside those of SamplingParams.

    Raises:
        CheckpointError: generation_config.json is no JSON object (transformers would pass over it), or a token id in
            it is no integer.
    """
    check_readable(checkpoint)
    stated = {} if generation is None else json.loads(generation.to_json_string(use_diff=True))
    sampling, unknown = _sampling(generation, stated)
    ends = _ids(checkpoint, "eos_token_id", stated.get("eos_token_id"))
    bos, pad = (_ids(checkpoint, name, stated.get(name)) for name in ("bos_token_id", "pad_token_id"))
    return GenerationDefaults(
        eos_token_ids=tuple(sorted(set(ends))),
        bos_token_id=bos[0] if bos else None,
        pad_token_id=pad[0] if pad else None,
        sampling=sampling,
        remarks=tuple(_remarks({name: sampling[name] for name in sampling if name not in applied}, unknown)),
    )


def check_readable(checkpoint: Checkpoint) -> None:
    """Refuse a generation_config.json that is damaged; transformers reads config.json in its place without a word."""
    path = checkpoint.directory / FILE_NAME
    if checkpoint.gguf or not path.exists():
        return
    read_object(path)


def _sampling(generation: Any, stated: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The settings that bear on which tokens come, and the names that transformers does not know either."""
    if generation is None:
        return {}, []
    known, neutral = vars(type(generation)()), type(generation)._get_default_generation_params()  # noqa: SLF001
    always = {"do_sample", "temperature", "top_k", "top_p"}
    settings = {
        name: value
        for name, value in stated.items()
        if name in known
        and value is not None
        and not name.startswith("_")
        and name not in WITHOUT_EFFECT
        and (name in always or value != neutral.get(name))
    }
    if (settings.get("num_beams") or 1) == 1:
        settings = {name: value for name, value in settings.items() if name not in ONLY_WITH_BEAMS}
    if settings.get("do_sample"):
        settings.setdefault("top_k", neutral["top_k"])  # transformers' own default, which a file need not state
    unknown = sorted(name for name in stated if name not in known and not name.startswith("_"))
    return settings, unknown


def _remarks(sampling: dict[str, Any], unknown: list[str]) -> list[str]:
    remarks = []
    refused = [name for name, value in sampling.items() if name != "max_length" and not _is_supported(name, value)]
    greedy = [name for name in sampling if name not in HARMLESS_TO_GREEDY and name not in refused]
    if greedy:
        remarks.append(
            f"the checkpoint's generation settings change greedy answers too ({_listed(sampling, greedy)}): they are "
            "recorded, and applied with --checkpoint-sampling only."
        )
    if refused:
        remarks.append(
            f"Piston cannot apply these generation settings of the checkpoint: {_listed(sampling, refused)}; "
            "--checkpoint-sampling will be refused, and transformers' generate may answer otherwise."
        )
    if "max_length" in sampling:
        remarks.append(f"max_length {sampling['max_length']} of the checkpoint is not applied; use --max-tokens.")
    if unknown:
        remarks.append(
            f"the checkpoint's generation settings {', '.join(unknown)} are unknown to transformers; unused."
        )
    return remarks


def not_applied(sampling: Mapping[str, Any]) -> list[str]:
    """A remark that settings of a checkpoint are recorded and not applied; none where there are none."""
    if not sampling:
        return []
    listed = _listed(sampling, [*sampling])
    return [f"Piston does not apply these generation settings: {listed}; transformers' generate may answer otherwise."]


def _is_supported(name: str, value: Any) -> bool:
    try:
        SamplingParams.from_mapping({name: value} | ({"temperature": 1.0} if name == "num_return_sequences" else {}))
    except MisuseError:
        return False
    return True


def _listed(sampling: Mapping[str, Any], names: list[str]) -> str:
    shown = (f"{name} {json_text(sampling[name])}" for name in names)
    return ", ".join(textwrap.shorten(text, 60, placeholder=" ...") for text in shown)


def _ids(checkpoint: Checkpoint, name: str, value: Any) -> list[int]:
    """Token ids of one id or a list of them; a negative one means none."""
    items = value if isinstance(value, list | tuple) else [] if value is None else [value]
    for item in items:
        if not isinstance(item, int) or isinstance(item, bool):
            raise CheckpointError(f"{name} of {checkpoint.name} is {value!r}; it must be a token id or a list of them.")
    return [item for item in items if item >= 0]
