"""A bundle's bill of materials in CycloneDX 1.6: the model, what it was made from, the data, and the tools.

The same bundle gives the same document: it holds no time, and its serial number is derived from the manifest's hash.
Licences are stated where they are known: for tools installed in the recorded version, and for the model if the caller
names one.
"""

import importlib.metadata
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from piston.core.bundle.manifest import FILE_NAME, Manifest, sha256_of
from piston.core.bundle.provenance import checkpoint_hashes, stages_of

SPEC_VERSION = "1.6"
Component = dict[str, Any]


def sbom_of(directory: Path, manifest: Manifest, model_license: str | None = None) -> dict[str, Any]:
    """The document; `model_license` is an SPDX expression."""
    made = list(stages_of(manifest.made_by))
    model = _model(manifest, model_license)
    files = [_file(name, record.sha256) for name, record in sorted(manifest.files.items())]
    data = _unique(item for stage in made for item in _data(stage))
    tools = _unique(_tool(name, version) for stage in made for name, version in stage.get("tools", {}).items())
    serial = uuid.uuid5(uuid.NAMESPACE_URL, f"piston:{sha256_of(directory / FILE_NAME)}")
    parts = [*files, *data, *tools]
    return {
        "$schema": f"http://cyclonedx.org/schema/bom-{SPEC_VERSION}.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": SPEC_VERSION,
        "serialNumber": f"urn:uuid:{serial}",
        "version": 1,
        "metadata": {
            "component": model,
            "tools": {"components": [_piston(str(manifest.made_by.get("piston", "unknown")))]},
        },
        "components": parts,
        "dependencies": [
            {"ref": model["bom-ref"], "dependsOn": sorted(part["bom-ref"] for part in parts)},
            *({"ref": part["bom-ref"]} for part in parts),
        ],
    }


def _model(manifest: Manifest, model_license: str | None) -> Component:
    spec = manifest.model
    properties = {
        "piston:scheme": spec.scheme,
        "piston:dtype": spec.dtype,
        **{f"piston:engine:{engine.target}": str(engine.actual.get("dtype", "")) for engine in manifest.engines},
    }
    hashes = checkpoint_hashes(manifest.made_by)
    component: Component = {
        "type": "machine-learning-model",
        "bom-ref": "model",
        "name": spec.name,
        "modelCard": {
            "modelParameters": {"task": "text-generation", "modelArchitecture": spec.architecture},
        },
        "properties": [{"name": name, "value": value} for name, value in properties.items()],
    }
    if hashes:
        ancestors = [
            {"type": "file", "name": name, "hashes": [_hash(sha256)]} for name, sha256 in sorted(hashes.items())
        ]
        component["pedigree"] = {"ancestors": ancestors, "notes": "the checkpoint that was exported"}
    if model_license is not None:
        component["licenses"] = [{"expression": model_license}]
    return component


def _file(name: str, sha256: str) -> Component:
    return {"type": "file", "bom-ref": f"file:{name}", "name": name, "hashes": [_hash(sha256)]}


def _data(stage: Mapping[str, Any]) -> Iterator[Component]:
    calibration = stage.get("calibration")
    data = calibration.get("data") if isinstance(calibration, Mapping) else None
    for file in data.get("files", ()) if isinstance(data, Mapping) else ():
        yield {
            "type": "data",
            "bom-ref": f"data:{file['sha256']}",
            "name": file["name"],
            "hashes": [_hash(file["sha256"])],
            "data": [{"type": "dataset", "name": file["name"], "description": "calibration text"}],
        }


def _tool(name: str, version: str) -> Component:
    component = {
        "type": "library",
        "bom-ref": f"pypi:{name}@{version}",
        "name": name,
        "version": version,
        "purl": f"pkg:pypi/{quote(name.lower().replace('_', '-'))}@{quote(version)}",
    }
    expression = _license(name, version)
    return component | ({"licenses": [{"expression": expression}]} if expression is not None else {})


def _license(name: str, version: str) -> str | None:
    """The SPDX expression of an installed distribution of that version (PEP 639); older metadata has none."""
    try:
        metadata = importlib.metadata.metadata(name)
    except importlib.metadata.PackageNotFoundError:
        return None
    if metadata["Version"] != version or "License-Expression" not in metadata:
        return None
    return str(metadata["License-Expression"])


def _piston(version: str) -> Component:
    return {"type": "application", "bom-ref": f"pypi:piston@{version}", "name": "piston", "version": version}


def _hash(sha256: str) -> dict[str, str]:
    return {"alg": "SHA-256", "content": sha256}


def _unique(components: Iterator[Component]) -> list[Component]:
    found = {component["bom-ref"]: component for component in components}
    return [found[ref] for ref in sorted(found)]
