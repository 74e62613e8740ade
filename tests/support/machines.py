"""Machines that are not at hand: what they have installed, and which GPU is in them."""

from piston.core.errors import Error, MissingExtraError, NoDeviceError
from piston.runtime.backends.cuda_driver import Device
from piston.runtime.backends.environment import Machine

EVERYTHING = ("onnxruntime", "tensorrt", "tensorrt_rtx", "cuda.bindings")
NO_DRIVER = NoDeviceError("There is no CUDA driver on this machine; use a bundle with an ort-cpu engine.")


def gpu(sm="sm89", *, free=20e9, total=24e9, name="GPU of a test"):
    capability = (int(sm[2:-1]), int(sm[-1]))
    return Device(index=0, name=name, compute_capability=capability, free_bytes=int(free), total_bytes=int(total))


class OtherMachine(Machine):
    def __init__(self, device, modules, providers, version):
        super().__init__()
        self._found, self._modules, self._providers, self._version = device, modules, providers, version

    def has_module(self, name):
        return name in self._modules

    def require_device(self):
        if isinstance(self._found, Error):
            raise self._found
        return self._found

    def tensorrt_version(self, name):
        return self._version

    def require_provider(self, name):
        self.require_module("onnxruntime", "ort")
        if name not in self._providers:
            raise MissingExtraError(f"The installed onnxruntime has no {name}.")


def machine_with(device=NO_DRIVER, modules=EVERYTHING, providers=("CPUExecutionProvider",), version="1.7.1.116"):
    return OtherMachine(device, modules, providers, version)
