"""Slots and positions that an engine is loaded with: as requested, as built, or as a container allows."""

from collections.abc import Mapping
from typing import Any

from piston.core.bundle.manifest import EngineSpec, Manifest
from piston.core.errors import BundleCorruptError, HostMemoryError, MisuseError
from piston.runtime.backends.registry import Sizes

WORKING = 64_000_000  # bytes for activations, logits and the interpreter's growth while decoding
MOST_ROWS = 1 << 16  # beyond what any engine decodes together
LEAST_LENGTH = 64  # positions below which a cache is of no use


def sizes_for(
    manifest: Manifest,
    spec: EngineSpec,
    *,
    max_batch: int | None,
    max_length: int | None,
    threads: int = 0,
    memory: int | None = None,
) -> tuple[Sizes, tuple[str, ...]]:
    """Slots and positions of an engine, and a remark about each that is smaller than built.

    None means as the bundle was built. Where cache and weights do not fit into `memory` bytes, these values are made
    smaller: first the slots, then the positions. Values that the caller gave are never changed.

    Raises:
        MisuseError: a value below 1, or more positions than the engine has.
        HostMemoryError: it does not fit even with the smallest allowed values.
        BundleCorruptError: the manifest states sizes that are not numbers.
    """
    positions = manifest.model.max_positions
    slots = max_batch if max_batch is not None else _stated(spec.requested, "max_batch", 1)
    length = max_length if max_length is not None else _stated(spec.requested, "max_length", positions)
    limit = _stated(spec.actual, "max_positions", positions)
    if not 1 <= slots <= MOST_ROWS or length < 1:
        raise MisuseError(
            f"max_batch is {slots} and max_length {length}; both must be at least 1, and max_batch at most "
            f"{MOST_ROWS:,}."
        )
    if length > limit:
        raise MisuseError(
            f"max_length is {length:,}, but the engine was built for {limit:,} positions; lower it, or build the "
            "bundle with a larger --max-length."
        )
    if memory is None:
        return Sizes(num_slots=slots, capacity=length, threads=threads), ()
    weights = weights_bytes(manifest, spec)
    bytes_per_position = spec.cache.bytes_per_token + spec.cross.bytes_per_token  # a source has as many as an answer
    room = (memory - weights - WORKING) // bytes_per_position  # positions, over all slots
    fitted_slots = slots if max_batch is not None else max(min(slots, room // length), 1)
    fitted_length = length if max_length is not None else min(length, room // fitted_slots)
    if fitted_slots * fitted_length > room or (fitted_length < min(length, LEAST_LENGTH)):
        needed = fitted_slots * max(fitted_length, min(length, LEAST_LENGTH)) * bytes_per_position
        raise HostMemoryError(
            f"{_size(weights + WORKING)} of weights and work and {_size(needed)} of cache do not fit into the "
            f"{_size(memory)} that this container leaves; raise its memory limit, or lower max_batch or max_length."
        )
    changed = [("max_batch", slots, fitted_slots), ("max_length", length, fitted_length)]
    remarks = tuple(
        f"{name} is {fitted:,} instead of {built:,}: this container leaves {_size(memory)} of memory."
        for name, built, fitted in changed
        if fitted < built
    )
    return Sizes(num_slots=fitted_slots, capacity=fitted_length, threads=threads), remarks


def weights_bytes(manifest: Manifest, spec: EngineSpec) -> int:
    """Bytes of an engine's files, which is about the memory it takes when loaded."""
    directories = {path.rpartition("/")[0] for path in spec.files.values()}
    return sum(record.size for name, record in manifest.files.items() if name.rpartition("/")[0] in directories)


def _stated(sizes: Mapping[str, Any], name: str, default: int) -> int:
    value = sizes.get(name, default)
    if not isinstance(value, int):
        raise BundleCorruptError(f"The manifest states {name} as {value!r}, it must be an integer; build it again.")
    return value


def _size(nbytes: int) -> str:
    return f"{nbytes / 1e6:,.0f} MB"
