"""Toys of encoders and encoder-decoders for the fuzz of checkpoints, each with what transformers answers.

A comparison returns 0 where the answers are equal, 3 where they may differ, as the export or an error said with the
name of what was damaged, and 4 where transformers does not answer. It raises AssertionError where they differ, and lets
every other error through.
"""

import contextlib
import json
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

EQUAL, TOLD, NO_REFERENCE = 0, 3, 4
TEXTS = ("hello world in paris", "a girl is styling", "the sea is calm", "das Meer")
LABELS = {"id2label": {0: "bad", 1: "fair", 2: "good"}}
TAGS = {"id2label": dict(enumerate(["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]))}
NOT_APPLIED = ("cannot apply", "does not apply")  # in a remark of the export on generation settings
# What an error says in place of a key's name.
LENGTH = ("the engine reads up to",)
ABOUT = {
    **dict.fromkeys(("max_position_embeddings", "n_positions", "model_max_length", "max_seq_length"), LENGTH),
    "lang_to_id": ("the language",),
    "task_to_id": ("has no task",),
}
NEW_TOKENS, SECONDS, ABSOLUTE = 6, 30, 2e-4


def write(name: str, directory: Path) -> None:
    """Write the undamaged toy."""
    import encoder_decoders
    import encoders
    import speech
    import torch

    if name == "labels":
        encoders.write_task_checkpoint(directory, "text-classification", **LABELS)
    elif name == "tags":
        encoders.write_task_checkpoint(directory, "token-classification", "roberta", **TAGS)
    elif name == "sentences":
        torch.manual_seed(0)
        dense = torch.nn.Linear(encoders.HIDDEN, 5)
        encoders.write_sentence_checkpoint(directory, dense=dense, prompts={"query": "query: "}, default_prompt="query")
    elif name == "translations":
        encoder_decoders.write_translation_checkpoint(directory)
    elif name == "speech":
        speech.write_whisper_checkpoint(directory)
    else:
        encoder_decoders.write_text_checkpoint(directory, name)


def compare(given: Path, out: Path, manifest: Any, said: str, done: Sequence[str]) -> int:
    """What the model directory answers, and what transformers answers for the damaged checkpoint.

    `said` is what the export printed, `done` the damage as mutations.mutate describes it.
    """
    from piston.core.errors import MisuseError
    from piston.evaluation.opening import open_model_directory

    if manifest.model.dtype != "float32":  # the only type that ONNX Runtime computes on a CPU
        return TOLD
    remark = next((line for line in said.splitlines() if any(refusal in line for refusal in NOT_APPLIED)), "")
    if remark and names_damage(remark, done):
        return TOLD
    with contextlib.closing(open_model_directory(out)) as model:
        try:
            return _COMPARE[manifest.task](given, model)
        except MisuseError as problem:
            if not names_damage(str(problem), done):
                raise
            sys.stdout.write(f"refused: {problem}\n")
            return TOLD


def names_damage(message: str, done: Sequence[str]) -> bool:
    """Whether a message names a key that was damaged, or what the key is about.

    A damage is written `FILE: KEY = VALUE`, `FILE: .KEY.KEY = VALUE` or `FILE: .KEY.KEY deleted`; others, such as bytes
    that were changed, are damage that no message about an option can be about.
    """
    return any(word in message for damage in done for key in _keys_of(damage) for word in (key, *ABOUT.get(key, ())))


def _keys_of(damage: str) -> list[str]:
    place = damage.partition(": ")[2]
    key, is_set, _ = place.partition(" = ")
    key, is_deleted, _ = (key, True, "") if is_set else place.partition(" deleted")
    return [part for part in key.split(".") if part and not part.isdecimal()] if is_set or is_deleted else []


@contextlib.contextmanager
def _reference() -> Iterator[None]:
    """Around what transformers does: its failures, and what takes it too long, are _NoReferenceError."""

    def stop(*_: object) -> None:
        raise TimeoutError("transformers takes too long")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    except Exception as problem:
        raise _NoReferenceError(repr(problem)) from problem
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


class _NoReferenceError(Exception):
    """Transformers does not answer."""


def _compared(work: Callable[[Path, Any], None]) -> Callable[[Path, Any], int]:
    def compared(given: Path, model: Any) -> int:
        try:
            work(given, model)
        except _NoReferenceError as problem:
            sys.stdout.write(f"transformers: {problem}\n")
            return NO_REFERENCE
        return EQUAL

    return compared


def _labels(given: Path, model: Any) -> None:
    from transformers import pipeline

    for text in TEXTS:
        with _reference():
            (items,) = pipeline("text-classification", str(given), top_k=None)([text], truncation=True)
            expected = {item["label"]: item["score"] for item in items}
        found = {item.label: item.score for item in model.classify([text], truncate=True)[0]}
        assert found.keys() == expected.keys(), (text, found, expected)
        assert all(abs(found[label] - score) < ABSOLUTE for label, score in expected.items()), (text, found, expected)


def _tags(given: Path, model: Any) -> None:
    from transformers import pipeline

    for text in TEXTS:
        with _reference():
            tagger = pipeline("token-classification", str(given), aggregation_strategy="simple")
            expected = [(item["entity_group"], item["start"], item["end"]) for item in tagger(text)]
        found = [(item.label, item.start, item.end) for item in model.tag([text], truncate=True)[0]]
        assert found == expected, (text, found, expected)


def _sentences(given: Path, model: Any) -> None:
    import numpy as np

    for text in TEXTS:
        with _reference():
            expected = sentence_vector(given, text)
        found = model.embed([text], truncate=True)[0]
        assert found.shape == expected.shape, (found.shape, expected.shape)
        assert np.abs(found - expected).max() < ABSOLUTE, (text, found, expected)


def sentence_vector(directory: Path, text: str) -> Any:
    """As sentence-transformers computes it of the files of a checkpoint, float32 [dimensions]."""
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModel, AutoTokenizer

    def read(name: str) -> Any:
        return json.loads((directory / name).read_text()) if (directory / name).exists() else {}

    texts, saved = read("sentence_bert_config.json"), read("config_sentence_transformers.json")
    if (prompt := saved.get("default_prompt_name")) is not None:
        text = saved["prompts"][prompt] + text
    tokenizer, encoder = AutoTokenizer.from_pretrained(directory), AutoModel.from_pretrained(directory)
    given = tokenizer(
        text.lower() if texts.get("do_lower_case") else text,
        truncation=True,
        max_length=texts.get("max_seq_length") or min(tokenizer.model_max_length, 24),
        return_tensors="pt",
    )
    with torch.no_grad():
        hidden = encoder(**given).last_hidden_state[0]
        pooled = hidden.mean(dim=0)
        for module in (read("modules.json") or [])[1:]:
            kind, place = module["type"].rpartition(".")[2], module["path"]
            config = read(f"{place}/config.json")
            if kind == "Pooling":
                pooled = _pooled(hidden, config)
            elif kind == "Dense":
                state = load_file(directory / place / "model.safetensors")
                weight, bias = state["linear.weight"].float(), state.get("linear.bias")
                activation = config.get("activation_function", "Tanh").rpartition(".")[2]
                pooled = getattr(torch.nn, activation)()(weight @ pooled + (0 if bias is None else bias.float()))
            elif kind == "Normalize":
                pooled = torch.nn.functional.normalize(pooled, dim=0)
    return pooled.numpy()


def _pooled(hidden: Any, config: dict[str, Any]) -> Any:
    import torch

    count = len(hidden)
    weights = torch.arange(1, count + 1)[:, None].float()
    modes = {
        "cls_token": ("cls", lambda: hidden[0]),
        "max_tokens": ("max", lambda: hidden.amax(dim=0)),
        "mean_tokens": ("mean", lambda: hidden.mean(dim=0)),
        "mean_sqrt_len_tokens": ("mean_sqrt_len_tokens", lambda: hidden.sum(dim=0) / count**0.5),
        "weightedmean_tokens": ("weightedmean", lambda: (hidden * weights).sum(dim=0) / weights.sum()),
        "lasttoken": ("lasttoken", lambda: hidden[-1]),
    }
    if (mode := config.get("pooling_mode")) is not None:
        return next(compute() for name, compute in modes.values() if name == mode)
    chosen = [compute for key, (_, compute) in modes.items() if config.get(f"pooling_mode_{key}")]
    return torch.cat([compute() for compute in chosen or [modes["mean_tokens"][1]]])


def _answers(given: Path, model: Any) -> None:
    import torch
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    with _reference():
        reference = AutoModelForSeq2SeqLM.from_pretrained(given, dtype=torch.float32).eval()
        tokenizer = AutoTokenizer.from_pretrained(given)
    options = model.default_sampling.to_json() | {"temperature": 0.0, "max_tokens": NEW_TOKENS}
    options["min_tokens"] = min(options["min_tokens"], NEW_TOKENS)
    sampling = type(model.default_sampling).from_json(options)
    for text in TEXTS:
        with _reference():
            ids = tokenizer(text, return_tensors="pt").input_ids
            expected = reference.generate(ids, do_sample=False, max_new_tokens=NEW_TOKENS)[0, 1:].tolist()
        assert model.encode(text) == ids[0].tolist(), text
        (found,) = model.generate([text], sampling, beams=model.default_beams)[:1]
        assert _ended(list(found.token_ids), model) == _ended(expected, model), (text, found.token_ids, expected)


def _ended(ids: list[int], model: Any) -> list[int]:
    """Without the token that ends an answer, and what pads it."""
    ends = set(model.manifest.tokenizer.eos_token_ids)
    return ids[: next((place for place, token_id in enumerate(ids) if token_id in ends), len(ids))]


def _speech(given: Path, model: Any) -> None:
    from speech import IDS, RATE, sound
    from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration

    seconds = 0.9
    samples = sound(seconds, 1)
    with _reference():
        reference = WhisperForConditionalGeneration.from_pretrained(given).eval()
        extractor = WhisperFeatureExtractor.from_pretrained(given)
        features = extractor(samples, sampling_rate=RATE, return_tensors="pt").input_features
        result = reference.generate(
            features, return_timestamps=True, return_segments=True, language="en", task="transcribe"
        )
        end = IDS["<|endoftext|>"]
        texts = [[token for token in one["tokens"].tolist() if token < end] for one in result["segments"][0]]
        expected = [
            (round(float(one["start"]), 2), round(float(one["end"]), 2), ids)
            for one, ids in zip(result["segments"][0], texts, strict=True)
            if ids and float(one["start"]) < seconds
        ]
    quiet = {"temperatures": (0.0,), "compression_ratio_threshold": None, "logprob_threshold": None}
    found = [
        (round(one.start, 2), round(one.end, 2), [token for token in one.token_ids if token < end])
        for one in model.transcribe((samples, RATE), language="en", **quiet).segments
    ]
    assert found == expected, (found, expected)


_COMPARE = {
    "text-classification": _compared(_labels),
    "token-classification": _compared(_tags),
    "feature-extraction": _compared(_sentences),
    "text2text-generation": _compared(_answers),
    "automatic-speech-recognition": _compared(_speech),
}
