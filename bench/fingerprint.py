"""Fingerprint of the machine: processor, instructions, threads, GPU, system, versions, load."""

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from piston.core.machine import num_cores, num_cpus, read_or_empty

# Instructions that decide how fast matrix products run.
_TELLING = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "asimd", "i8mm", "sve")
_PACKAGES = ("piston", "onnxruntime", "numpy", "tokenizers")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint:
    """A machine; `differences` says whether figures of two machines can be compared."""

    cpu: str
    architecture: str
    instructions: tuple[str, ...]
    num_cores: int  # physical, that this process may use
    num_cpus: int  # logical, that this process may use
    threads: int  # given to every system under test
    memory_bytes: int
    gpu: str | None
    driver: str | None
    system: str
    versions: dict[str, str]
    load_average: float | None  # of the minute before the run; None where the system has none

    def differences(self, other: "Fingerprint") -> list[str]:
        """Differences from `other` that affect speed, as `what: there, here`."""
        names = ("cpu", "architecture", "instructions", "num_cores", "num_cpus", "threads", "memory_bytes")
        pairs = [(name, getattr(other, name), getattr(self, name)) for name in (*names, "gpu", "driver", "system")]
        named = sorted(set(self.versions) | set(other.versions))
        pairs += [(name, other.versions.get(name), self.versions.get(name)) for name in named if name != "piston"]
        return [f"{name}: {_plain(there)}, here {_plain(here)}" for name, there, here in pairs if there != here]


def take_fingerprint(threads: int) -> Fingerprint:
    """Describe this machine."""
    gpu, driver = _gpu()
    text = read_or_empty(Path("/proc/cpuinfo"))
    return Fingerprint(
        cpu=_cpu(text),
        architecture=platform.machine(),
        instructions=tuple(flag for flag in _TELLING if re.search(rf"\b{flag}\b", text)),
        num_cores=num_cores(),
        num_cpus=num_cpus(),
        threads=threads,
        memory_bytes=_memory(),
        gpu=gpu,
        driver=driver,
        system=f"{platform.system()} {platform.release()}",
        versions=_versions(),
        load_average=_load(),
    )


def _plain(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _cpu(text: str) -> str:
    match = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    if match is None:
        return platform.processor() or platform.machine()
    # A virtual machine often gives every processor the same name; family and model still identify the generation.
    numbers = re.findall(r"^(?:cpu family|model|stepping)\s*:\s*(\d+)$", text, re.MULTILINE)[:3]
    return f"{' '.join(match[1].split())} ({'/'.join(numbers)})" if numbers else match[1]


def _memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 0


def _load() -> float | None:
    try:
        return round(os.getloadavg()[0], 2)
    except (AttributeError, OSError):
        return None


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _gpu() -> tuple[str | None, str | None]:
    """Names of the GPUs and the driver version from nvidia-smi; (None, None) without it."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None, None
    query = [tool, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        found = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return None, None
    rows = [line.split(", ") for line in found.stdout.splitlines() if ", " in line]
    if found.returncode != 0 or not rows:
        return None, None
    return " + ".join(row[0] for row in rows), rows[0][-1]
