"""onnxruntime-gpu without a GPU: a session on the CPU whose bindings may name memory of a FakeCudaRuntime.

It does as ONNX Runtime 1.31 did on an H200. Inputs on the host are copied to the device when they are bound, not when
they are read, but for the one that kernels read on the host. A run under a number of its own is captured: repeated
later as it was, with what it read on the host then. A run happens behind what waits in the session's stream.
"""

import ctypes

import numpy as np
import onnxruntime


class FakeCudaSession:
    """An InferenceSession as far as OrtEngine uses one."""

    def __init__(self, path, cuda, stream):
        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 3
        settings.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
        self.cuda, self.stream = cuda, stream
        self.captured, self.fail = {}, {}
        self.get_inputs, self.get_outputs = self.session.get_inputs, self.session.get_outputs

    def get_providers(self):
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]

    def io_binding(self):
        return FakeBinding(self)

    def run_with_iobinding(self, binding, run_options=None):
        number = "-1" if run_options is None else run_options.get_run_config_entry("gpu_graph_id")
        if number in self.fail:
            raise self.fail[number]
        self.cuda.streams[int(self.stream)].drain()
        if number == "-1":
            self._run(binding, {})
            return
        kind = {"cuda": {**binding.inputs, **binding.outputs}, "cpu": {}}
        for name in binding.on_host:
            assert name not in binding.outputs
            kind["cpu"][name] = kind["cuda"].pop(name).copy()
        kept = self.captured.setdefault(number, kind)
        for name, array in kept["cuda"].items():
            assert kind["cuda"][name].ctypes.data == array.ctypes.data
            assert kind["cuda"][name].shape == array.shape
        self._run(binding, kept["cpu"])

    def _run(self, binding, frozen):
        feeds = {name: bound.copy() for name, bound in binding.inputs.items()} | frozen
        names = list(binding.outputs)
        for name, value in zip(names, self.session.run(names, feeds), strict=True):
            binding.outputs[name][...] = value


class FakeBinding:
    """Arrays over the addresses that were bound, by name."""

    def __init__(self, session):
        self.session, self.inputs, self.outputs, self.on_host = session, {}, {}, set()

    def bind_input(self, name, device_type, device_id, element_type, shape, buffer_ptr):
        assert name not in self.outputs
        self.inputs[name] = self.over(device_type, element_type, shape, buffer_ptr)
        if device_type == "cpu":
            self.on_host.add(name)
            if name != "total_sequence_length":
                self.inputs[name] = self.inputs[name].copy()

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
