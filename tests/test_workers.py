"""Two workers: the fixtures of a file are made once."""

import os
import re
import subprocess
import sys
from pathlib import Path

from workers import TOGETHER, group_of

SUPPORT = Path(__file__).parent / "support"
FILE = """
import pytest
from pathlib import Path

@pytest.fixture(scope="module")
def made():
    with Path("made.txt").open("a") as log:
        log.write(f"{__name__}\\n")

@pytest.mark.parametrize("index", range(6))
def test_uses_it(made, index):
    pass
"""


def test_a_file_goes_to_one_worker_and_sets_up_its_fixtures_once(tmp_path):
    names = ["test_first", "test_second", "test_third"]
    for name in names:
        (tmp_path / f"{name}.py").write_text(FILE)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    words = ["-m", "pytest", "-q", "-p", "workers", "-p", "no:cacheprovider", "-n", "2", "--dist", "loadfile"]
    environment = os.environ | {"PYTHONPATH": str(SUPPORT)}
    done = subprocess.run(
        [sys.executable, *words], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    assert sorted((tmp_path / "made.txt").read_text().split()) == names


def test_files_that_share_the_demo_model_are_one_group():
    assert len({group_of(f"tests/{file}::test[x]") for file in TOGETHER}) == 1
    assert group_of("tests/export/test_a.py::test[a::b]") == "export/test_a.py"


def test_they_are_the_files_that_use_its_fixtures():
    tests = SUPPORT.parent
    made = re.findall(r"^def (\w+)\(", (tests / "end_to_end/conftest.py").read_text(encoding="utf-8"), re.MULTILINE)
    assert "demo_model_dir" in made
    uses = re.compile(rf"def \w+\([^)]*\b({'|'.join(made)})\b")
    found = [path for path in tests.glob("end_to_end/test_*.py") if uses.search(path.read_text(encoding="utf-8"))]
    assert {path.relative_to(tests).as_posix() for path in found} == set(TOGETHER)
