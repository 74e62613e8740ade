import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from piston.bench.neighbours import neighbours

needs_proc = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="no /proc")


def children():
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()


def cpu_ticks(pid):
    return sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]))


@needs_proc
def test_so_many_processes_are_busy_until_the_block_ends():
    before = set(children())
    with neighbours(2):
        busy = set(children()) - before
        assert len(busy) == 2
        deadline = time.monotonic() + 20
        while not all(cpu_ticks(pid) >= 2 for pid in busy) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert all(cpu_ticks(pid) >= 2 for pid in busy)
    assert set(children()) == before


@needs_proc
def test_they_end_with_a_failure_in_the_block():
    before = set(children())
    with pytest.raises(RuntimeError, match="measuring"), neighbours(1):
        raise RuntimeError("measuring")
    assert set(children()) == before


@needs_proc
def test_they_do_not_outlive_a_benchmark_that_was_killed():
    script = (
        "import os, sys; from pathlib import Path; from piston.bench.neighbours import neighbours\n"
        "with neighbours(1):\n"
        "    print(Path(f'/proc/self/task/{os.getpid()}/children').read_text(), flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        busy = int(parent.stdout.readline())
        parent.kill()
    deadline = time.monotonic() + 20
    while is_running(busy) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(busy)


def is_running(pid):
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"
