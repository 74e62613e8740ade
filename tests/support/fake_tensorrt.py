# ruff: noqa: N802 - the names are TensorRT's
"""tensorrt and tensorrt_rtx without a GPU: the same classes and methods, whose plans are ONNX files.

`execute_async_v3` puts the run of the graph by ONNX Runtime into the stream of a FakeCudaRuntime, on the addresses and
shapes of the moment, as TensorRT does; a captured run must not see them change afterwards. Names and parameters are
held against the real module in test_fakes.py.
"""

import enum
import json

import numpy as np
import onnx
import onnxruntime
from plan_bytes import rtx_plan

ALIGNMENT = 256
PROFILES = "profiles"
ITEM = {1: "FLOAT", 10: "HALF", 16: "BF16", 7: "INT64", 6: "INT32"}
NUMPY = {"FLOAT": np.float32, "HALF": np.float16, "INT64": np.int64, "INT32": np.int32}


class Severity(enum.IntEnum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3
    VERBOSE = 4


class DataType(enum.Enum):
    FLOAT = 0
    HALF = 1
    INT8 = 2
    INT32 = 3
    BF16 = 7
    INT64 = 8


class ExecutionContextAllocationStrategy(enum.Enum):
    STATIC = 0
    ON_PROFILE_CHANGE = 1
    USER_MANAGED = 2


class CudaGraphStrategy(enum.Enum):
    DISABLED = 0
    WHOLE_GRAPH_CAPTURE = 1


class DynamicShapesKernelSpecializationStrategy(enum.Enum):
    LAZY = 0
    EAGER = 1
    NONE = 2


class ILogger:
    Severity = Severity

    def __init__(self):
        self.is_made = True


def make_plan(model, profiles, *, version=(1, 7, 1, 116), gpus=0b1000):
    """Bytes with the header of a plan around an ONNX model that has its weights inside.

    `profiles` has for each profile the [min, opt, max] shapes of each input, as the compiler gets them.
    """
    onnx.helper.set_model_props(model, {PROFILES: json.dumps([*profiles.values()])})
    body = model.SerializeToString()
    return rtx_plan(body, version=version, gpus=gpus)


class FakeTensorRT:
    """A module. `refuse` names a method that answers None or False once, after saying why to the logger."""

    ILogger, DataType = ILogger, DataType
    ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy
    CudaGraphStrategy = CudaGraphStrategy
    DynamicShapesKernelSpecializationStrategy = DynamicShapesKernelSpecializationStrategy

    def __init__(self, cuda, version="1.7.1.116"):
        self.cuda, self.__version__ = cuda, version
        self.calls, self.refuse, self.alive = [], {}, []
        self.logger = None
        self.is_capturable = True
        self.kernels = b"kernels compiled here"

    def Runtime(self, logger):
        assert logger.is_made, "the base class was not initialized"
        self.logger = logger
        return Runtime(self)

    def refused(self, name):
        if name not in self.refuse:
            return False
        said = self.refuse.pop(name)
        self.logger.log(Severity.ERROR, said)
        return True


class Part:
    """Something of TensorRT's: records its calls, and whether it is still referenced."""

    def __init__(self, module):
        self.module = module
        module.alive.append(type(self).__name__)

    def __del__(self):
        self.module.alive.remove(type(self).__name__)

    def note(self, name, *arguments):
        self.module.calls.append((name, arguments))


class Runtime(Part):
    tempfile_control_flags = 3
    _host_code = False

    @property
    def engine_host_code_allowed(self):
        return self._host_code

    @engine_host_code_allowed.setter
    def engine_host_code_allowed(self, allowed):
        raise AssertionError("host code in plans must never be allowed")

    def deserialize_cuda_engine(self, serialized_engine):
        self.note("deserialize_cuda_engine", len(serialized_engine))
        assert self.tempfile_control_flags == 0
        if self.module.refused("deserialize_cuda_engine"):
            return None
        return ICudaEngine(self.module, bytes(serialized_engine))


class ICudaEngine(Part):
    device_memory_size_v2 = 4096

    def __init__(self, module, plan):
        super().__init__(module)
        model = onnx.load_from_string(plan[64:])
        self.profiles = next(json.loads(item.value) for item in model.metadata_props if item.key == PROFILES)
        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 3
        settings.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(plan[64:], settings, providers=["CPUExecutionProvider"])
        self.tensors = {}
        for items, mode in ((model.graph.input, "INPUT"), (model.graph.output, "OUTPUT")):
            for item in items:
                kind = item.type.tensor_type
                shape = [dim.dim_value if dim.HasField("dim_value") else -1 for dim in kind.shape.dim]
                self.tensors[item.name] = (mode, DataType[ITEM[kind.elem_type]], shape)

    @property
    def num_io_tensors(self):
        return len(self.tensors)

    def get_tensor_name(self, index):
        return list(self.tensors)[index]

    def get_tensor_dtype(self, name):
        return self.tensors[name][1]

    def get_tensor_shape(self, name):
        return tuple(self.tensors[name][2])

    @property
    def num_optimization_profiles(self):
        return len(self.profiles)

    def get_tensor_profile_shape(self, name, profile_index):
        return [tuple(shape) for shape in self.profiles[profile_index][name]]

    def get_aliased_input_tensor(self, name):
        if self.module.refused("get_aliased_input_tensor"):
            return ""
        return name.replace("present.", "past.") if name.startswith("present.") else ""

    def create_runtime_config(self):
        return IRuntimeConfig(self.module)

    def create_execution_context(self, runtime_config=None):
        self.note("create_execution_context")
        assert runtime_config.strategy is ExecutionContextAllocationStrategy.USER_MANAGED
        if self.module.refused("create_execution_context"):
            return None
        return IExecutionContext(self.module, self)


class IRuntimeConfig(Part):
    strategy = ExecutionContextAllocationStrategy.STATIC
    cuda_graph_strategy = CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
    dynamic_shapes_kernel_specialization_strategy = DynamicShapesKernelSpecializationStrategy.LAZY

    def set_execution_context_allocation_strategy(self, strategy):
        self.strategy = strategy

    def create_runtime_cache(self):
        return IRuntimeCache(self.module)

    def set_runtime_cache(self, cache):
        self.note("set_runtime_cache", cache.data)
        return True


class IRuntimeCache(Part):
    data = b""

    def deserialize(self, blob):
        self.note("IRuntimeCache.deserialize", bytes(blob))
        self.data = bytes(blob)
        return True

    def serialize(self):
        return memoryview(self.module.kernels)


class IExecutionContext(Part):
    def __init__(self, module, engine):
        super().__init__(module)
        self.engine, self.memory = engine, None
        self.addresses, self.shapes, self.profile = {}, {}, None
        self.changes, self.has_run = 0, set()

    def set_optimization_profile_async(self, profile_index, stream_handle):
        self.note("set_optimization_profile_async", profile_index)
        self.profile = profile_index
        return not self.module.refused("set_optimization_profile_async")

    def set_device_memory(self, memory, size):
        assert size >= self.engine.device_memory_size_v2
        self.module.cuda.view(memory, size)
        self.memory = memory

    def set_tensor_address(self, name, memory):
        assert memory % ALIGNMENT == 0, f"{name} is bound to an address that is no multiple of {ALIGNMENT}"
        self.note("set_tensor_address", self.profile, name, memory)
        assert name in self.engine.tensors
        self.addresses[name] = memory
        self.changes += 1
        return True

    def set_input_shape(self, name, shape):
        self.note("set_input_shape", self.profile, name, tuple(shape))
        static = self.engine.tensors[name][2]
        largest = self.engine.get_tensor_profile_shape(name, self.profile)[2]
        fits = len(static) == len(shape) and all(s in (-1, n) for s, n in zip(static, shape, strict=True))
        if not fits or any(n > most for n, most in zip(shape, largest, strict=True)) or min(shape) < 1:
            said = f"{name}: {list(shape)} is outside the profile"
            self.module.logger.log(Severity.ERROR, said)
            return False
        self.shapes[name] = tuple(shape)
        self.changes += 1
        return True

    def is_stream_capturable(self, stream):
        return self.module.is_capturable

    def execute_async_v3(self, stream_handle):
        self.note("execute_async_v3", self.profile, self.shapes.get("input_ids"))
        if self.module.refused("execute_async_v3"):
            return False
        stream = self.module.cuda.streams[stream_handle]
        addresses, shapes, changes = dict(self.addresses), dict(self.shapes), self.changes
        assert self.memory is not None
        assert set(addresses) == set(self.engine.tensors), set(self.engine.tensors) - set(addresses)
        is_captured = stream.captured is not None
        if is_captured:
            assert changes in self.has_run, "captured before it ran once with these shapes and addresses"
        self.has_run.add(changes)

        def work():
            assert not is_captured or changes == self.changes, "a graph is launched after shapes or addresses changed"
            self._compute(addresses, shapes)

        stream.put(work)
        return True

    def _compute(self, addresses, shapes):
        engine, cuda = self.engine, self.module.cuda
        feeds = {}
        for name, (mode, item, _) in engine.tensors.items():
            if mode == "INPUT":
                dtype = np.dtype(NUMPY[item.name])
                nbytes = int(np.prod(shapes[name])) * dtype.itemsize
                feeds[name] = cuda.view(addresses[name], nbytes).view(dtype).reshape(shapes[name]).copy()
        used = {item.name for item in engine.session.get_inputs()}
        names = [item.name for item in engine.session.get_outputs()]
        values = engine.session.run(names, {name: value for name, value in feeds.items() if name in used})
        for name, value in zip(names, values, strict=True):
            if name.startswith("present."):
                assert addresses[name] == addresses[name.replace("present.", "past.")]
            flat = np.ascontiguousarray(value).reshape(-1).view(np.uint8)
            cuda.view(addresses[name], flat.nbytes)[:] = flat
