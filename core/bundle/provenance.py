"""The stages that made a model directory or a bundle, from the nested made_by of its manifest."""

from collections.abc import Iterator, Mapping
from typing import Any


def stages_of(made_by: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """What each stage recorded, the last one first; a manifest may hold any value there."""
    value: Any = made_by
    while isinstance(value, Mapping):
        yield value
        source = value.get("source")
        # build nests its input below source.made_by, calibrate next to source.manifest_sha256
        nested = isinstance(source, Mapping) and ("made_by" in source or "source" in source)
        value = source.get("made_by", source) if nested and isinstance(source, Mapping) else None


def checkpoint_hashes(made_by: Mapping[str, Any]) -> dict[str, str]:
    """SHA-256 of each file of the checkpoint; none where the first stage recorded none."""
    *_, first = stages_of(made_by)
    source = first.get("source")
    hashes = source.get("sha256") if isinstance(source, Mapping) else None
    return {str(name): str(sha256) for name, sha256 in hashes.items()} if isinstance(hashes, Mapping) else {}
