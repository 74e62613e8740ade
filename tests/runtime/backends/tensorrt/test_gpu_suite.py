import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[4]


@pytest.mark.slow
def test_the_tests_for_gpus_pass_on_the_doubles_and_end_with_their_table():
    pytest.importorskip("torch")
    words = [
        sys.executable,
        "-m",
        "pytest",
        "tests/gpu/test_answers.py",
        "tests/gpu/test_device.py",
        "-p",
        "gpu_doubles",
    ]
    result = subprocess.run([*words, "-k", "not bf16"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout
    assert "what this GPU answered" in result.stdout
    assert "skipped" not in result.stdout
    for question in ("a  fp16 prefill of 95", "b  fp16 ragged batch", "e  greedy tokens chosen on the device"):
        assert question in result.stdout
