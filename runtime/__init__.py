"""The torch-free runtime: load a bundle, generate, stream, chat.

Names are imported when first used: `piston --help` need not wait for numpy.
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from piston.runtime.completion import Completion, Drafts, PositionLogprobs, Timings, TokenLogprob
    from piston.runtime.conversation import Conversation
    from piston.runtime.engine import Engine
    from piston.runtime.errors import (
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
        OutputExistsError,
        ParityError,
        PromptTooLongError,
        ShortfallError,
        SignatureError,
        TemplateError,
        UnsupportedModelError,
    )
    from piston.runtime.manifest import Manifest
    from piston.runtime.model import LanguageModel, Stream, load
    from piston.runtime.sampling import Sampling
    from piston.runtime.scripted_engine import ScriptedEngine

# ONNX Runtime's own packages (1.29 and later) send model and graph names, hashes and a machine's id to Microsoft unless
# this is set when they start. The runtime opens no connection: every package of Piston's imports this one first.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

__all__ = [
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
    "EmptyPromptError",
    "Engine",
    "EngineError",
    "Error",
    "HostMemoryError",
    "LanguageModel",
    "Manifest",
    "MissingExtraError",
    "MisuseError",
    "NoDeviceError",
    "OutputExistsError",
    "ParityError",
    "PositionLogprobs",
    "PromptTooLongError",
    "Sampling",
    "ScriptedEngine",
    "ShortfallError",
    "SignatureError",
    "Stream",
    "TemplateError",
    "Timings",
    "TokenLogprob",
    "UnsupportedModelError",
    "load",
]

_HOMES = {
    "completion": ("Completion", "Drafts", "PositionLogprobs", "Timings", "TokenLogprob"),
    "conversation": ("Conversation",),
    "engine": ("Engine",),
    "errors": (
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
        "OutputExistsError",
        "ParityError",
        "PromptTooLongError",
        "ShortfallError",
        "SignatureError",
        "TemplateError",
        "UnsupportedModelError",
    ),
    "manifest": ("Manifest",),
    "model": ("LanguageModel", "Stream", "load"),
    "sampling": ("Sampling",),
    "scripted_engine": ("ScriptedEngine",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Import the module that defines a public name (PEP 562)."""
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*globals(), *__all__]
