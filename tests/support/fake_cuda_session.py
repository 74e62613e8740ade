"""onnxruntime-gpu without a GPU: a session on the CPU whose bindings may name memory of a FakeCudaRuntime."""

import ctypes

import numpy as np
import onnxruntime


class FakeCudaSession:
    """An InferenceSession as far as OrtEngine uses one."""

    def __init__(self, path, cuda):
        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 3
        settings.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
        self.cuda = cuda
        self.get_inputs, self.get_outputs = self.session.get_inputs, self.session.get_outputs

    def get_providers(self):
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]

    def io_binding(self):
        return FakeBinding(self)

    def run_with_iobinding(self, binding):
        feeds = {name: bound.copy() for name, bound in binding.inputs.items()}
        names = list(binding.outputs)
        for name, value in zip(names, self.session.run(names, feeds), strict=True):
            binding.outputs[name][...] = value


class FakeBinding:
    """Arrays over the addresses that were bound, by name."""

    def __init__(self, session):
        self.session, self.inputs, self.outputs = session, {}, {}

    def bind_input(self, name, device_type, device_id, element_type, shape, buffer_ptr):
        assert name not in self.outputs
        self.inputs[name] = self.over(device_type, element_type, shape, buffer_ptr)

    def bind_output(self, name, device_type="cpu", device_id=0, element_type=None, shape=None, buffer_ptr=None):
        self.outputs[name] = self.over(device_type, element_type, shape, buffer_ptr)
        past = self.inputs.get(name.replace("present.", "past."))
        assert past is None or np.shares_memory(past, self.outputs[name])

    def over(self, device_type, element_type, shape, address):
        dtype = np.dtype(element_type)
        nbytes = int(np.prod(shape)) * dtype.itemsize
        if device_type == "cuda":
            memory = self.session.cuda.view(address, nbytes)
        else:
            memory = np.frombuffer(memoryview((ctypes.c_char * nbytes).from_address(address)), np.uint8)
        return memory.view(dtype).reshape(shape)
