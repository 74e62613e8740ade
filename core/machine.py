"""How many processors this process may use, given its CPU affinity and a container's CPU quota."""

import math
import os
from pathlib import Path

from piston.core.control_groups import Version, groups

ROOT = Path("/")


def num_cpus(root: Path = ROOT) -> int:
    """Logical processors, at least 1: those of its CPU affinity, but no more than the CPU quota, rounded up.

    `root` is where /proc and /sys are found.
    """
    return _within_quota(len(_bound_to()), root)


def num_cores(root: Path = ROOT) -> int:
    """Physical cores, limited as in `num_cpus`: more threads than that do not speed up matrix products."""
    cpus = _bound_to()
    topology, files = root / "sys/devices/system/cpu", ("physical_package_id", "core_id")
    cores = {tuple(read_or_empty(topology / f"cpu{cpu}" / "topology" / file) for file in files) for cpu in cpus}
    return _within_quota(len(cores) if all(all(core) for core in cores) else len(cpus), root)


def _bound_to() -> set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def _within_quota(count: int, root: Path) -> int:
    quotas = [_quota(directory, version) for directory, version in groups(root, "cpu")]
    return max(min([count, *(math.ceil(quota) for quota in quotas if quota is not None)]), 1)


def _quota(directory: Path, version: Version) -> float | None:
    """The CPU quota of a group in processors; None where it is not limited."""
    if version == 1:
        quota, period = read_or_empty(directory / "cpu.cfs_quota_us"), read_or_empty(directory / "cpu.cfs_period_us")
    else:
        quota, _, period = read_or_empty(directory / "cpu.max").partition(" ")
    try:
        time, of = int(quota), int(period)
    except ValueError:  # no such group, or "max"
        return None
    return time / of if time > 0 and of > 0 else None  # version 1 writes -1 for no limit


def read_or_empty(path: Path) -> str:
    """A file's text without surrounding white space; empty where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
