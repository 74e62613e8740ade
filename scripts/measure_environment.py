"""What `pip install piston[ort]` costs: bytes to download, bytes installed without pip, and seconds to import.

Run it with any Python; it makes its own environments in a temporary directory and needs the package index.
"""

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
NOT_SOURCE = (".*", "models", "bundles", "build", "*.egg-info", "__pycache__", "tests")
ROUNDS = 9


def main() -> None:
    """Measure and print JSON."""
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        source = shutil.copytree(ROOT, work / "source", ignore=shutil.ignore_patterns(*NOT_SOURCE))
        subprocess.run([sys.executable, "-m", "venv", work / "venv"], check=True)
        python = work / "venv" / "bin" / "python"
        pip = [python, "-m", "pip", "--quiet", "--disable-pip-version-check"]
        wanted = ["-c", ROOT / "constraints.txt", f"{source}[ort]"]
        subprocess.run([*pip, "wheel", "--wheel-dir", work / "wheels", *wanted], check=True)
        subprocess.run(
            [*pip, "install", "--no-compile", "--no-index", "-f", work / "wheels", "piston[ort]"], check=True
        )
        site = next((work / "venv" / "lib").glob("python*/site-packages"))
        result = {
            "download_bytes": sum(path.stat().st_size for path in (work / "wheels").iterdir()),
            "installed_bytes": installed_bytes(site),
            "python_start_s": seconds([python, "-c", "pass"]),
            "import_piston_runtime_s": seconds([python, "-c", "import piston.runtime"]),
            "import_load_s": seconds([python, "-c", "from piston.runtime import load"]),
            "piston_help_s": seconds([work / "venv" / "bin" / "piston", "--help"]),
        }
    print(json.dumps(result, indent=1))


def installed_bytes(site: Path) -> int:
    """Bytes below site-packages, without pip and what a new environment brings along."""
    given = ("pip", "setuptools", "pkg_resources", "_distutils_hack", "distutils")
    files = (path for path in site.rglob("*") if path.is_file())
    kept = (path for path in files if path.relative_to(site).parts[0].split("-")[0].split(".")[0] not in given)
    return sum(path.stat().st_size for path in kept if path.suffix != ".pyc")


def seconds(command: list[object]) -> float:
    """Median wall time of a whole process, the first run (cold byte code) left out."""
    times = []
    for _ in range(ROUNDS + 1):
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


if __name__ == "__main__":
    main()
