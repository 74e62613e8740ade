"""The torch-free runtime: load a bundle, generate, stream, chat."""

from piston.runtime.completion import Completion, PositionLogprobs, Timings, TokenLogprob
from piston.runtime.conversation import Conversation
from piston.runtime.engine import Engine
from piston.runtime.errors import (
    BundleCorruptError,
    BundleError,
    BundleNotFoundError,
    BundleTooNewError,
    CheckpointError,
    CheckpointNotFoundError,
    EmptyPromptError,
    EngineError,
    Error,
    MissingExtraError,
    MisuseError,
    OutputExistsError,
    ParityError,
    PromptTooLongError,
    TemplateError,
    UnsupportedModelError,
)
from piston.runtime.manifest import Manifest
from piston.runtime.model import LanguageModel, Stream, load
from piston.runtime.sampling import Sampling
from piston.runtime.scripted_engine import ScriptedEngine

__all__ = [
    "BundleCorruptError",
    "BundleError",
    "BundleNotFoundError",
    "BundleTooNewError",
    "CheckpointError",
    "CheckpointNotFoundError",
    "Completion",
    "Conversation",
    "EmptyPromptError",
    "Engine",
    "EngineError",
    "Error",
    "LanguageModel",
    "Manifest",
    "MissingExtraError",
    "MisuseError",
    "OutputExistsError",
    "ParityError",
    "PositionLogprobs",
    "PromptTooLongError",
    "Sampling",
    "ScriptedEngine",
    "Stream",
    "TemplateError",
    "Timings",
    "TokenLogprob",
    "UnsupportedModelError",
    "load",
]
