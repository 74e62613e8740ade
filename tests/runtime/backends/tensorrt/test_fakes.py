"""The doubles of CUDA and TensorRT against the real modules, whose functions can be asked for without a GPU."""

import ast
import importlib.util
import inspect
import re
from pathlib import Path

import fake_cuda
import fake_tensorrt
import pytest

import piston.runtime.backends.cuda_driver
import piston.runtime.backends.tensorrt
from piston.runtime.backends.cuda_driver import has_driver

ENUMS = (
    "DataType",
    "ExecutionContextAllocationStrategy",
    "CudaGraphStrategy",
    "DynamicShapesKernelSpecializationStrategy",
)
CLASSES = ("Runtime", "ICudaEngine", "IRuntimeConfig", "IRuntimeCache", "IExecutionContext")


@pytest.fixture(scope="module")
def real_cuda():
    return pytest.importorskip("cuda.bindings.runtime")


INSTALLED = [name for name in ("tensorrt_rtx", "tensorrt") if importlib.util.find_spec(name)]


@pytest.fixture(scope="module", params=INSTALLED or ["tensorrt_rtx"])
def trt(request):
    return pytest.importorskip(request.param)


def methods():
    """Every method and property of the doubles, but for what makes them doubles."""
    own = {"module", "note", "data", "engine", "strategy"}
    for name in CLASSES:
        members = vars(getattr(fake_tensorrt, name))
        for member, value in members.items():
            if not member.startswith("_") and member not in own:
                yield name, member, value


def parameters_of(docstring):
    """The parameters of each overload that a pybind11 docstring lists, self left out."""
    found = re.findall(r"^(?:\d+\. )?\w+\(self: [\w.]+(?:, )?(.*)\) -> .*$", docstring, re.MULTILINE)
    return [re.findall(r"(\w+): ", re.sub(r"<[^>]*>|\[[^\]]*\]", "", parameters)) for parameters in found]


@pytest.mark.parametrize("name", fake_cuda.FUNCTIONS)
def test_a_function_of_cuda_has_the_real_parameters(real_cuda, name):
    ours = list(inspect.signature(getattr(fake_cuda.FakeCudaRuntime, name)).parameters)[1:]
    assert ours == list(inspect.signature(getattr(real_cuda, name)).parameters)


@pytest.mark.parametrize("name", ["cudaMalloc", "cudaMallocHost", "cudaStreamCreateWithFlags", "cudaMemGetInfo"])
def test_a_function_of_cuda_returns_as_many_values_as_the_real_one(real_cuda, name):
    if has_driver():
        pytest.skip("there is a CUDA driver: the call would do something")
    arguments = [1] * len(inspect.signature(getattr(real_cuda, name)).parameters)
    status, *rest = getattr(real_cuda, name)(*arguments)
    assert status == real_cuda.cudaError_t.cudaErrorInsufficientDriver
    assert 1 + len(rest) == fake_cuda.ARITY[name]


@pytest.mark.parametrize("name", [name for name in fake_cuda.FUNCTIONS if name != "cudaGetLastError"])
def test_the_documented_results_of_cuda_are_as_many_as_ours(real_cuda, name):
    returns = getattr(real_cuda, name).__doc__.partition("Returns\n-------\n")[2].partition("\nSee Also")[0]
    lines = [line for line in returns.splitlines() if line and not line.startswith((" ", "\t"))]
    assert len(lines) == fake_cuda.ARITY[name]


def test_the_constants_of_cuda_are_the_real_ones(real_cuda):
    for enum in (fake_cuda.cudaError_t, fake_cuda.cudaMemcpyKind, fake_cuda.cudaStreamCaptureMode):
        for member in enum:
            assert int(getattr(getattr(real_cuda, enum.__name__), member.name)) == member
    for name in ("cudaStreamNonBlocking", "cudaEventDisableTiming"):
        assert getattr(real_cuda, name) == getattr(fake_cuda.FakeCudaRuntime, name)


def test_piston_calls_no_function_of_cuda_that_the_double_lacks():
    words = set(re.findall(r"\bcuda[A-Z]\w+", Path(piston.runtime.backends.cuda_driver.__file__).read_text()))
    known = {*fake_cuda.FUNCTIONS, *dir(fake_cuda.FakeCudaRuntime), "cudaGetError"}
    members = {member.name for enum in (fake_cuda.cudaError_t, fake_cuda.cudaMemcpyKind) for member in enum}
    assert words - known - members <= {"cudaStreamCaptureModeThreadLocal"}


@pytest.mark.parametrize(("owner", "name", "value"), list(methods()))
def test_a_method_of_tensorrt_is_really_there_with_these_parameters(trt, owner, name, value):
    if not hasattr(trt, owner) and trt.__name__ == "tensorrt":
        pytest.skip(f"{owner} is TensorRT-RTX's alone")
    real = getattr(getattr(trt, owner), name)
    if not inspect.isfunction(value):
        assert not callable(real) or isinstance(real, property)
        return
    ours = list(inspect.signature(value).parameters)[1:]
    assert ours in parameters_of(real.__doc__)


@pytest.mark.parametrize("name", ENUMS)
def test_the_enumerations_of_tensorrt_have_our_members(trt, name):
    if not hasattr(trt, name) and trt.__name__ == "tensorrt":
        pytest.skip(f"{name} is TensorRT-RTX's alone")
    real = getattr(trt, name).__members__
    assert {member.name for member in getattr(fake_tensorrt, name)} <= set(real)


def test_severities_are_ordered_as_in_tensorrt(trt):
    assert {member.name: int(member) for member in fake_tensorrt.Severity} == {
        name: int(value) for name, value in trt.ILogger.Severity.__members__.items()
    }


def test_piston_touches_nothing_of_tensorrt_that_the_double_lacks():
    known = {name for owner in CLASSES for name in dir(getattr(fake_tensorrt, owner))}
    used = set()
    for path in Path(piston.runtime.backends.tensorrt.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            is_part = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name | ast.Attribute)
            owner = getattr(node.value, "attr", getattr(node.value, "id", "")) if is_part else ""
            if owner in {"engine", "_context", "_config", "_runtime", "config"}:
                used.add(node.attr)
    used -= {"bind", "shape", "run", "close", "use_memory", "check_capturable"}  # of our own Context
    assert used
    assert used <= known


def test_the_real_logger_collects_what_tensorrt_says(trt):
    from piston.core.errors import EngineError
    from piston.runtime.backends.tensorrt.log import accepted, log_of, reported

    log = log_of(trt)
    runtime = trt.Runtime(log)
    with (
        pytest.raises(EngineError, match=r"TensorRT failed while loading nothing: .*erializ"),
        reported(log, "loading nothing"),
    ):
        accepted(runtime.deserialize_cuda_engine(b"vtrt" + bytes(100)))
