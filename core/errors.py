"""Every error Piston raises on purpose, grouped by what the user can do about it.

Error:
    +-- MisuseError (ValueError)             the call is wrong: change it
    |   +-- PromptTooLongError
    |   +-- EmptyPromptError
    |   +-- OutputExistsError (FileExistsError)
    +-- CheckpointError (ValueError)         the checkpoint cannot be exported: use another
    |   +-- CheckpointNotFoundError (FileNotFoundError)
    |   +-- UnsupportedModelError
    +-- BundleError (ValueError)             a model directory or bundle cannot be opened: make it again
    |   +-- BundleNotFoundError (FileNotFoundError)
    |   +-- BundleCorruptError
    |   +-- BundleTooNewError
    |   +-- SignatureError                   its signature does not match the key: do not trust it
    +-- TemplateError (ValueError)           the chat template failed: change the messages or the template
    +-- ParityError (ArithmeticError)        a parity check failed: nothing was written
    +-- ShortfallError (ArithmeticError)     a result misses a required bound: nothing was written
    +-- CalibrationError (ArithmeticError)   the model's own numbers cannot be quantized: the message names the tensor
    +-- EngineError (RuntimeError)           the backend failed while it ran
    |   +-- NoDeviceError                    no GPU, or none that this engine was built for
    |   +-- DeviceMemoryError (MemoryError)  the GPU is too small, or full: the message has both numbers
    |   +-- NotFiniteError                   the engine ran, and its numbers for one input are NaN or infinite
    +-- MissingExtraError (ImportError)      a package is not installed: the message names the extra

A message says what happened, the values involved, and what to do.
"""


class Error(Exception):
    """Root of every error raised on purpose."""


class MisuseError(Error, ValueError):
    """An argument, option or file name the caller must change."""


class PromptTooLongError(MisuseError):
    """Prompt and requested tokens do not fit the engine's capacity."""


class EmptyPromptError(MisuseError):
    """The prompt has no tokens."""


class OutputExistsError(MisuseError, FileExistsError):
    """The output of a stage exists already."""


class CheckpointError(Error, ValueError):
    """A checkpoint that cannot be read or exported."""


class CheckpointNotFoundError(CheckpointError, FileNotFoundError):
    """No checkpoint at the path or hub id."""


class UnsupportedModelError(CheckpointError):
    """An architecture, RoPE type or feature the canonical graph does not express."""


class BundleError(Error, ValueError):
    """A model directory or bundle that cannot be opened."""


class BundleNotFoundError(BundleError, FileNotFoundError):
    """No manifest at the path."""


class BundleCorruptError(BundleError):
    """A file is missing, or its bytes are not those the manifest recorded."""


class BundleTooNewError(BundleError):
    """Written by a newer Piston in a schema that this one does not know."""


class SignatureError(BundleError):
    """A signature made with another key, for other bytes, or no signature at all."""


class TemplateError(Error, ValueError):
    """The chat template is broken or refused the messages."""


class ParityError(Error, ArithmeticError):
    """Two forms of one model disagree beyond the bound."""


class ShortfallError(Error, ArithmeticError):
    """The result works but misses a required bound."""


class CalibrationError(Error, ArithmeticError):
    """A tensor whose values cannot be quantized: NaN, infinite, or never computed."""


class EngineError(Error, RuntimeError):
    """The backend failed while loading or running an engine."""


class NotFiniteError(EngineError):
    """The engine ran, and what it computed for one input is NaN or infinite; it works for others."""


class NoDeviceError(EngineError):
    """No CUDA driver, no device, or a device that the engine was not built for."""


class DeviceMemoryError(EngineError, MemoryError):
    """The device has less free memory than is needed."""


class HostMemoryError(Error, MemoryError):
    """The machine, or a container's memory limit, leaves no room for the model and its cache."""


class MissingExtraError(Error, ImportError):
    """A feature whose packages are not installed."""
