"""What only a GPU can answer. `pytest tests/gpu` runs it all and ends with a table; without a GPU all is skipped.

The questions are those of docs/gpu.md. A test fails where an answer would make Piston wrong, and otherwise writes down
what it saw.
"""

import contextlib
import importlib

import pytest

from piston.core.errors import Error
from piston.runtime.backends.cuda_driver import Cuda

FINDINGS = pytest.StashKey[list]()
DATA_CENTRE = {"sm90", "sm100", "sm103"}  # TensorRT-RTX does not build for these


def pytest_configure(config):
    config.stash[FINDINGS] = []


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.parent.name == "gpu":
            item.add_marker(pytest.mark.gpu)


def pytest_terminal_summary(terminalreporter, config):
    if not config.stash[FINDINGS]:
        return
    terminalreporter.section("what this GPU answered")
    width = max(len(subject) for _, subject, _ in config.stash[FINDINGS])
    for question, subject, found in sorted(config.stash[FINDINGS], key=lambda finding: finding[0]):
        terminalreporter.write_line(f"{question}  {subject:{width}}  {found}")


@pytest.fixture
def finding(request):
    """finding(question, subject, what was seen): a row of the table."""
    return lambda question, subject, seen: request.config.stash[FINDINGS].append((question, subject, str(seen)))


@pytest.fixture(scope="session")
def cuda():
    try:
        return Cuda.open()
    except Error as problem:
        pytest.skip(str(problem))


@pytest.fixture(scope="session")
def device(cuda, request):
    device = cuda.device()
    seen = f"{device.name}, {device.sm}, {device.total_bytes / 1e9:.1f} GB"
    request.config.stash[FINDINGS].append(("-", "device", seen))
    return device


@pytest.fixture(scope="session")
def target(device, request):
    """The TensorRT target of this GPU whose module is installed."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("torch")
    names = {"tensorrt": f"tensorrt:{device.sm}", "tensorrt_rtx": f"tensorrt-rtx:{device.sm}"}
    usable = ["tensorrt"] if device.sm in DATA_CENTRE else ["tensorrt", "tensorrt_rtx"]
    for module in usable:
        with contextlib.suppress(ImportError):
            version = importlib.import_module(module).__version__
            request.config.stash[FINDINGS].append(("-", "compiler", f"{module} {version}"))
            return names[module]
    pytest.skip(f"{device.name} ({device.sm}) needs {' or '.join(usable)}, which is not installed")


@pytest.fixture(scope="session")
def bundle_of(target, toys, tmp_path_factory):
    """bundle_of(scheme, dtype, max_length, **config): a seeded Llama with an engine for the GPU and one for the CPU."""
    from piston.engines import build

    made = {}

    def bundle_of(scheme="fp", dtype="fp16", max_length=96, **config):
        key = (scheme, dtype, max_length, *sorted(config.items()))
        if key not in made:
            source = toys.model_dir(scheme=scheme, **({"max_position_embeddings": max_length} | config))
            made[key] = tmp_path_factory.mktemp("gpu") / "bundle"
            build(source, made[key], ["ort-cpu", target], max_batch=4, max_length=max_length, dtype=dtype)
        return made[key]

    return bundle_of
