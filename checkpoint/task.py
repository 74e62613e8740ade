"""Which task a checkpoint is for, as its config.json and modules.json say. Reads no weights and needs no torch.

It is one choice among all tasks, so it is made here and not by each task's module.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from piston.checkpoint.architectures import DECODER_TYPES, ENCODER_TYPES, SPEECH_TYPES, TEXT_TYPES
from piston.checkpoint.json_files import read_json, read_object
from piston.core.bundle.manifest import TEXT_GENERATION
from piston.core.errors import CheckpointError

MODULES = "modules.json"  # of sentence-transformers: the transformer and what follows it
TRANSFORMER, LOGIT_SCORE = "Transformer", "LogitScore"
CLASSIFIER = "ForSequenceClassification"
# What sentence-transformers writes into config.json of a cross-encoder, from version 4 on and before.
NEWER, OLDER = "sentence_transformers", "sbert_ce_default_activation_function"
ENDINGS = {
    "Model": "feature-extraction",
    "ForQuestionAnswering": "question-answering",
    CLASSIFIER: "text-classification",
    "ForTokenClassification": "token-classification",
}  # of an encoder's class


def task_of(path: Path) -> str:
    """The task of a checkpoint's directory or GGUF file; text-generation where nothing says another.

    A damaged file says nothing here: the export reports it.
    """
    if path.is_file():
        return TEXT_GENERATION
    config, kinds = _config(path), module_kinds(path)
    architecture = architecture_of(config)
    if _is_encoder_decoder(config, SPEECH_TYPES):
        return "automatic-speech-recognition"
    is_cross_encoder = NEWER in config or OLDER in config or kinds == [TRANSFORMER]
    if is_causal_reranker(path) or (architecture.endswith(CLASSIFIER) and is_cross_encoder):
        return "text-ranking"
    if (path / MODULES).is_file():
        return ENDINGS["Model"]
    if (ending := next((ending for ending in ENDINGS if architecture.endswith(ending)), None)) is not None:
        return ENDINGS[ending]
    return "text2text-generation" if _is_encoder_decoder(config, TEXT_TYPES) else TEXT_GENERATION


def is_causal_reranker(directory: Path) -> bool:
    """Whether sentence-transformers saved it as a language model that ranks by two tokens."""
    return module_kinds(directory) == [TRANSFORMER, LOGIT_SCORE]


def architecture_of(config: Mapping[str, Any]) -> str:
    """The class that config.json names, of an encoder that Piston exports; "" of everything else."""
    named = config.get("architectures")
    is_encoder = config.get("model_type") in (*ENCODER_TYPES, *DECODER_TYPES) and not config.get("is_decoder")
    return str(named[0]) if is_encoder and isinstance(named, list) and named else ""


def module_kinds(directory: Path) -> list[str]:
    """The names of the modules that modules.json lists; none where there is no such file, or no such list in it."""
    path = directory / MODULES
    if not path.is_file():
        return []
    try:
        return [str(item["type"]).rpartition(".")[2] for item in read_json(path)]
    except (CheckpointError, TypeError, KeyError):
        return []


def _config(directory: Path) -> dict[str, Any]:
    try:
        return read_object(directory / "config.json")
    except CheckpointError:
        return {}


def _is_encoder_decoder(config: Mapping[str, Any], model_types: Sequence[str]) -> bool:
    return config.get("model_type") in model_types and bool(config.get("is_encoder_decoder", True))
