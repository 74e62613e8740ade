"""Memory that a container leaves to this process, from Linux control groups, and memory that it has used.

https://docs.kernel.org/admin-guide/cgroup-v2.html, https://docs.kernel.org/admin-guide/cgroup-v1/memory.html
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from piston.core.control_groups import groups

UNLIMITED = 1 << 60  # version 1 writes the largest number of pages it can count instead of a word


@dataclass(frozen=True, slots=True)
class Names:
    """File names of one version of control groups."""

    limit: str
    usage: str
    reclaimable: str  # of memory.stat: page cache that the kernel gives up first


NAMES = {
    1: Names("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    2: Names("memory.max", "memory.current", "inactive_file"),
}


def container_memory(root: Path = Path("/")) -> int | None:
    """Bytes that the tightest limit leaves to this process; None without a limit.

    `root` is where /proc and /sys are found. A group that cannot be read counts as not limited.
    """
    left = [_left(directory, NAMES[version]) for directory, version in groups(root, "memory")]
    return min((room for room in left if room is not None), default=None)


def _left(directory: Path, names: Names) -> int | None:
    try:
        limit = int((directory / names.limit).read_text())
        usage = int((directory / names.usage).read_text())
        stat = dict(line.split() for line in (directory / "memory.stat").read_text().splitlines())
        reclaimable = int(stat.get(names.reclaimable, 0))
    except (OSError, ValueError):  # no such group, or "max"
        return None
    return None if limit >= UNLIMITED else max(limit - usage + reclaimable, 0)


def peak_memory() -> int:
    """Peak resident memory of this process in bytes.

    On Linux it counts from the start of the program: getrusage counts from the fork, with the parent's memory.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        import resource  # Windows has no such module but must be able to import this one

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
