"""Which of `pytest -n 2 --dist loadfile` runs what: the tests of a file go to one worker, and what takes longest first.

pytest-xdist's `--dist loadgroup` groups nothing under pytest 9: it appends the group to a name that pytest no longer
reads. A test that is alone then sets up the fixtures of its file, and those of the session, in both workers.
"""

import os
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
# Files that share the demo model, which is exported and built once.
TOGETHER = (
    "end_to_end/test_clean_environment.py",
    "end_to_end/test_gpu_doubles.py",
    "end_to_end/test_real_calibration.py",
    "end_to_end/test_real_model.py",
    "end_to_end/test_tensorrt_rtx.py",
)
DEMO = "end_to_end/ with the demo model"  # their group
LONGEST = (
    DEMO,
    "end_to_end/test_sequence_matrix.py",
    "end_to_end/",
    "export/test_zoo.py",
    "export/test_encoder_decoder.py",
    "engines/tensorrt/test_zoo_plans.py",  # reads what test_zoo.py exported
    "engines/test_own_kernels.py",
    "calibration/schemes/test_layerwise_gptq.py",
    "export/",
    "engines/test_own_kernels_encoders.py",
    "distillation/test_exported.py",
    "calibration/test_encoder_decoders.py",
    "explanation/",
    "runtime/tasks/test_automatic_speech_recognition.py",
    "engines/",
)


def take_share_of_processors(index: int, count: int) -> None:
    """Of two workers on two cores each has one: threads that wait for work take none from the other worker."""
    processors = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, processors[index % count :: count] or processors)


if (worker := os.environ.get("PYTEST_XDIST_WORKER")) and hasattr(os, "sched_setaffinity"):
    # Before numpy is imported: its threads are as many as the processors it finds then, and they wait in loops.
    assert "numpy" not in sys.modules
    take_share_of_processors(int(worker.removeprefix("gw")), int(os.environ["PYTEST_XDIST_WORKER_COUNT"]))


def group_of(nodeid: str) -> str:
    """What one worker runs as a whole: a file, or the files of TOGETHER."""
    file = nodeid.partition("::")[0].removeprefix(f"{TESTS.name}/")
    return DEMO if file in TOGETHER else file


def place_of(nodeid: str) -> int:
    """Of a test's group in the order of LONGEST."""
    return next((place for place, start in enumerate(LONGEST) if group_of(nodeid).startswith(start)), len(LONGEST))


@pytest.hookimpl(tryfirst=True, optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        _split_scope = staticmethod(group_of)

    return Scheduling(config, log)


def pytest_collection_modifyitems(config, items):
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: place_of(item.nodeid))
