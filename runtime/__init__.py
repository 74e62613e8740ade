"""The runtime, which imports no torch: load a bundle, generate, stream, chat.

Names are imported when first used, so `piston --help` does not wait for numpy.
"""

import importlib
from typing import TYPE_CHECKING, Any

import piston.core  # noqa: F401 - switches ONNX Runtime's telemetry off

if TYPE_CHECKING:
    from piston.core.bundle.manifest import Manifest
    from piston.core.errors import (
        BundleCorruptError,
        BundleError,
        BundleNotFoundError,
        BundleTooNewError,
        CalibrationError,
        CheckpointError,
        CheckpointNotFoundError,
        DeviceMemoryError,
        EmptyPromptError,
        EngineError,
        Error,
        HostMemoryError,
        MissingExtraError,
        MisuseError,
        NoDeviceError,
        NotFiniteError,
        OutputExistsError,
        ParityError,
        PromptTooLongError,
        ShortfallError,
        SignatureError,
        TemplateError,
        UnsupportedModelError,
    )
    from piston.runtime.audio.transcription import Segment, Transcription, Word
    from piston.runtime.backends.engine import Engine
    from piston.runtime.backends.scripted import ScriptedEngine
    from piston.runtime.conversation import Conversation
    from piston.runtime.generate.completion import Completion, Drafts, PositionLogprobs, Timings, TokenLogprob
    from piston.runtime.model import LanguageModel, Stream, load
    from piston.runtime.sampling.beam_params import BeamParams
    from piston.runtime.sampling.params import SamplingParams
    from piston.runtime.tasks.automatic_speech_recognition import SpeechRecognizer
    from piston.runtime.tasks.feature_extraction import Embedder
    from piston.runtime.tasks.module import Module
    from piston.runtime.tasks.question_answering import Answer, QuestionAnswerer
    from piston.runtime.tasks.text2text_generation import TextToText
    from piston.runtime.tasks.text_classification import LabelScore, TextClassifier
    from piston.runtime.tasks.text_ranking import Ranked, Reranker
    from piston.runtime.tasks.token_classification import Span, TokenClassifier

__all__ = [
    "Answer",
    "BeamParams",
    "BundleCorruptError",
    "BundleError",
    "BundleNotFoundError",
    "BundleTooNewError",
    "CalibrationError",
    "CheckpointError",
    "CheckpointNotFoundError",
    "Completion",
    "Conversation",
    "DeviceMemoryError",
    "Drafts",
    "Embedder",
    "EmptyPromptError",
    "Engine",
    "EngineError",
    "Error",
    "HostMemoryError",
    "LabelScore",
    "LanguageModel",
    "Manifest",
    "MissingExtraError",
    "MisuseError",
    "Module",
    "NoDeviceError",
    "NotFiniteError",
    "OutputExistsError",
    "ParityError",
    "PositionLogprobs",
    "PromptTooLongError",
    "QuestionAnswerer",
    "Ranked",
    "Reranker",
    "SamplingParams",
    "ScriptedEngine",
    "Segment",
    "ShortfallError",
    "SignatureError",
    "Span",
    "SpeechRecognizer",
    "Stream",
    "TemplateError",
    "TextClassifier",
    "TextToText",
    "Timings",
    "TokenClassifier",
    "TokenLogprob",
    "Transcription",
    "UnsupportedModelError",
    "Word",
    "load",
]

_HOMES = {
    "piston.runtime.sampling.beam_params": ("BeamParams",),
    "piston.runtime.generate.completion": ("Completion", "Drafts", "PositionLogprobs", "Timings", "TokenLogprob"),
    "piston.runtime.conversation": ("Conversation",),
    "piston.runtime.backends.engine": ("Engine",),
    "piston.core.errors": (
        "BundleCorruptError",
        "BundleError",
        "BundleNotFoundError",
        "BundleTooNewError",
        "CalibrationError",
        "CheckpointError",
        "CheckpointNotFoundError",
        "DeviceMemoryError",
        "EmptyPromptError",
        "EngineError",
        "Error",
        "HostMemoryError",
        "MissingExtraError",
        "MisuseError",
        "NoDeviceError",
        "NotFiniteError",
        "OutputExistsError",
        "ParityError",
        "PromptTooLongError",
        "ShortfallError",
        "SignatureError",
        "TemplateError",
        "UnsupportedModelError",
    ),
    "piston.core.bundle.manifest": ("Manifest",),
    "piston.runtime.model": ("LanguageModel", "Stream", "load"),
    "piston.runtime.sampling.params": ("SamplingParams",),
    "piston.runtime.backends.scripted": ("ScriptedEngine",),
    "piston.runtime.audio.transcription": ("Segment", "Transcription", "Word"),
    "piston.runtime.tasks.automatic_speech_recognition": ("SpeechRecognizer",),
    "piston.runtime.tasks.feature_extraction": ("Embedder",),
    "piston.runtime.tasks.module": ("Module",),
    "piston.runtime.tasks.question_answering": ("Answer", "QuestionAnswerer"),
    "piston.runtime.tasks.text2text_generation": ("TextToText",),
    "piston.runtime.tasks.text_classification": ("LabelScore", "TextClassifier"),
    "piston.runtime.tasks.text_ranking": ("Ranked", "Reranker"),
    "piston.runtime.tasks.token_classification": ("Span", "TokenClassifier"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Import the module that defines a public name (PEP 562)."""
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*globals(), *__all__]
