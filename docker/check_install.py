"""Check what was installed into an image, strip what no image needs, and write its bill of materials (CycloneDX 1.6).

Run by the Dockerfiles with the standard library alone. Fails where the runtime would carry PyTorch or a compiler.
"""

import argparse
import json
import shutil
import subprocess
import sys
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any

BARRED = ("torch", "transformers", "onnx", "onnx-ir", "onnxscript", "pip")
STRIPPED = (
    "numpy/*/tests",
    "numpy/f2py",
    "numpy/tests",
    "onnxruntime/tools",
    "onnxruntime/transformers",
    "onnxruntime/quantization",
)
IMPORTS = "import piston.cli.main, piston.runtime.model, piston.runtime.backends.ort_cpu, onnxruntime"


def main(arguments: list[str] | None = None) -> int:
    """Check, strip, write; the exit status is 1 where something barred is installed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path, help="what `pip install --target` wrote")
    parser.add_argument("--allow-torch", action="store_true", help="this is the image that exports and builds")
    parser.add_argument("--write-sbom", type=Path, metavar="FILE")
    options = parser.parse_args(arguments)
    installed = sorted(distributions(path=[str(options.directory)]), key=lambda found: found.name.lower())
    if not options.allow_torch:
        if found := [item.name for item in installed if item.name.lower() in BARRED]:
            sys.stderr.write(f"error: the runtime must not carry {', '.join(found)}\n")
            return 1
        strip(options.directory)
    subprocess.run([sys.executable, "-c", IMPORTS], check=True, env={"PYTHONPATH": str(options.directory)})
    if options.write_sbom is not None:
        options.write_sbom.write_text(json.dumps(sbom(installed), indent=1) + "\n", encoding="utf-8")
    return 0


def strip(directory: Path) -> None:
    """Drop what only developers of the packages run."""
    for pattern in STRIPPED:
        for path in directory.glob(pattern):
            shutil.rmtree(path)
    shutil.rmtree(directory / "bin", ignore_errors=True)  # scripts for an interpreter elsewhere


def sbom(installed: list[Distribution]) -> dict[str, Any]:
    """A CycloneDX 1.6 document (https://cyclonedx.org/docs/1.6/json/) of Python packages."""
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "components": [component(item) for item in installed],
    }


def component(item: Distribution) -> dict[str, Any]:
    """One package; its licence as the package states it."""
    purl = f"pkg:pypi/{item.name.lower().replace('_', '-')}@{item.version}"
    described: dict[str, Any] = {
        "type": "library",
        "bom-ref": purl,
        "name": item.name,
        "version": item.version,
        "purl": purl,
    }
    if expression := item.metadata.get("License-Expression"):
        described["licenses"] = [{"expression": expression}]
    elif (name := item.metadata.get("License")) and "\n" not in name:
        described["licenses"] = [{"license": {"name": name}}]
    return described


if __name__ == "__main__":
    sys.exit(main())
