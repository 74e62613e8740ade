"""How many processors this process may use."""

import os
from pathlib import Path


def num_cpus() -> int:
    """Logical processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def num_cores() -> int:
    """Physical cores this process may use: threads beyond them do not speed products up."""
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    topology = "/sys/devices/system/cpu/cpu{}/topology/{}"
    files = ("physical_package_id", "core_id")
    cores = {tuple(read_or_empty(topology.format(cpu, file)) for file in files) for cpu in os.sched_getaffinity(0)}
    return len(cores) if all(all(core) for core in cores) else num_cpus()


def read_or_empty(path: str) -> str:
    """A file's text without surrounding white space; empty where it cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
