"""Checks what this machine has and lacks for each target. Imports no engine library."""

import platform
import re
import sys
from collections.abc import Callable
from importlib import metadata

from piston.cli.checks.finding import Finding, Level
from piston.runtime.backends.cuda_driver import has_driver

RUNTIME = ("numpy", "jinja2", "tokenizers")
# target: distributions of which one must be installed, the extra that installs it, whether it needs a GPU to run
TARGETS = {
    "ort-cpu": (("onnxruntime", "onnxruntime-gpu"), "piston[ort]", False),
    "ort-cuda": (("onnxruntime-gpu",), "onnxruntime-gpu", True),
    "tensorrt-rtx": (("tensorrt-rtx-cu13", "tensorrt_rtx"), "piston[rtx]", True),
    "tensorrt": (("tensorrt-cu13", "tensorrt", "tensorrt-lean-cu13"), "piston[trt]", True),
}
Installed = Callable[[str], str | None]


def installed_version(distribution: str) -> str | None:
    """The version of an installed distribution, None without one."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def least_versions() -> dict[str, str]:
    """The lowest version of each distribution that Piston's metadata allows."""
    found = (re.match(r"([\w.-]+)(?:\[[^]]*])?\s*>=\s*([\d.]+)", line) for line in metadata.requires("piston") or [])
    return {match[1].lower(): match[2] for match in found if match}


def examine_machine(
    installed: Installed = installed_version,
    least: dict[str, str] | None = None,
    *,
    driver: bool | None = None,
) -> list[Finding]:
    """Findings about Python, the runtime's packages, the GPU driver, and each target."""
    least = least_versions() if least is None else least
    has_gpu = has_driver() if driver is None else driver
    shown = f"Python {platform.python_version()} on {platform.machine()}, {sys.platform}"
    findings = [Finding("python", "ok", shown), *_required(installed, least), _driver(installed, has_gpu=has_gpu)]
    findings += [finding for target in TARGETS for finding in _target(target, installed, least, has_gpu=has_gpu)]
    if installed("onnxruntime") and installed("onnxruntime-gpu"):
        says = "onnxruntime and onnxruntime-gpu are both installed: they overwrite one another's files"
        fix = "pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu"
        findings.append(Finding("onnxruntime", "wrong", says, fix))
    if not any(found.level == "ok" and found.subject in TARGETS for found in findings):
        findings.append(Finding("targets", "wrong", "no engine can run here", "pip install 'piston[ort]'"))
    return findings


def is_older(version: str, least: str) -> bool:
    """Whether a version is below another, by the numbers it begins with."""
    parts = [[int(part) for part in re.findall(r"\d+", text.partition("+")[0])] for text in (version, least)]
    return parts[0] < parts[1]


def _required(installed: Installed, least: dict[str, str]) -> list[Finding]:
    findings = []
    for name in RUNTIME:
        version, lowest = installed(name), least.get(name, "0")
        if version is None or is_older(version, lowest):
            says = "it is not installed" if version is None else f"{version} is older than {lowest}"
            findings.append(Finding(name, "wrong", says, f"pip install '{name}>={lowest}'"))
        else:
            findings.append(Finding(name, "ok", version))
    return findings


def _driver(installed: Installed, *, has_gpu: bool) -> Finding:
    if not has_gpu:
        return Finding(
            "cuda", "missing", "no NVIDIA driver: nothing runs on a GPU here; TensorRT-RTX engines can still be built"
        )
    if (version := installed("cuda-bindings")) is None:
        return Finding("cuda", "missing", "a driver, but cuda-bindings is not installed", "pip install 'piston[cuda]'")
    return Finding("cuda", "ok", f"a driver and cuda-bindings {version}")


def _target(target: str, installed: Installed, least: dict[str, str], *, has_gpu: bool) -> list[Finding]:
    names, extra, needs_gpu = TARGETS[target]
    name, version = next(((name, found) for name in names if (found := installed(name))), (names[0], None))
    if version is None:
        level: Level = "missing"
        return [Finding(target, level, f"{name} is not installed", f"pip install '{extra}'")]
    if is_older(version, lowest := least.get(name, "0")):
        return [Finding(target, "wrong", f"{name} {version} is older than {lowest}", f"pip install '{name}>={lowest}'")]
    if needs_gpu and not has_gpu:
        return [Finding(target, "missing", f"{name} {version} is installed, but this machine has no GPU")]
    return [Finding(target, "ok", f"{name} {version}")]
