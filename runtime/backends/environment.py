"""What this machine has for an engine: packages, ONNX Runtime's providers, a GPU. Queried once, when needed."""

import functools
import importlib
import importlib.util

from piston.core.errors import Error, MissingExtraError, NoDeviceError
from piston.runtime.backends.cuda_driver import Cuda, Device


class Machine:
    """This machine. Each `require` method returns what it found or raises an error with the remedy."""

    def __init__(self, device_index: int = 0) -> None:
        self.device_index = device_index

    def has_module(self, name: str) -> bool:
        """Whether a module can be found; it is not imported."""
        return importlib.util.find_spec(name) is not None

    def require_module(self, name: str, extra: str) -> None:
        """Raise MissingExtraError unless a module can be imported."""
        if not self.has_module(name):
            raise MissingExtraError(f"{name} is not installed; pip install 'piston[{extra}]'.")

    def require_device(self) -> Device:
        """The GPU; raises NoDeviceError or MissingExtraError."""
        found = self._device
        if isinstance(found, Error):
            raise found
        return found

    def tensorrt_version(self, name: str) -> str:
        """The version of an installed `tensorrt`, `tensorrt_rtx` or `tensorrt_lean`, such as 1.7.1.116."""
        return str(importlib.import_module(name).__version__)

    def require_provider(self, name: str) -> None:
        """Raise MissingExtraError unless the installed ONNX Runtime has an execution provider."""
        self.require_module("onnxruntime", "ort")
        import onnxruntime

        if name not in (found := onnxruntime.get_available_providers()):
            raise MissingExtraError(
                f"The installed onnxruntime {onnxruntime.__version__} has no {name} (it has {', '.join(found)}); "
                "pip uninstall onnxruntime and pip install 'piston[ort-cuda]': the two packages overwrite one another."
            )

    @functools.cached_property
    def _device(self) -> Device | Error:
        try:
            return Cuda.open(self.device_index).device()
        except (NoDeviceError, MissingExtraError) as problem:
            return problem
