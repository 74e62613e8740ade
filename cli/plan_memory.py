"""How much memory a model takes at a batch and a length: weights, cache, activations, and what is always there.

Predictions, from the manifest and the graph's header alone. For ort-cpu they were compared with the resident memory of
real processes (scripts/measure_footprint.py): SmolLM2-135M, off by at most 5 % in float32 and w8a8 (1 x 512, 8 x 1,024;
the embedding's part was learned from these) and in w8 and w4 (1 x 2,048, 4 x 4,096; these were not looked at before).
For the GPU targets they have not been compared with anything yet.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from piston.core.bundle import GRAPH
from piston.core.bundle.manifest import CacheSpec, Manifest
from piston.core.bundle.onnx_header import OnnxHeader
from piston.core.errors import MisuseError
from piston.runtime.memory_budget import weights_bytes

DEVICE_TARGETS = ("tensorrt-rtx", "tensorrt", "ort-cuda")
TARGETS = ("ort-cpu", *DEVICE_TARGETS)
TOLERANCE = 0.10  # of the predicted resident memory on ort-cpu, in the range that was measured
# Python, numpy, tokenizers and ONNX Runtime in a process that has loaded nothing (1.32, Linux).
PROCESS_BYTES = 110_000_000
# CUDA context, TensorRT or ONNX Runtime, and kernels. An assumption: no GPU was at hand.
DEVICE_BYTES = 700_000_000
CHUNK = 128  # tokens of a prefill step
# Widths of a layer's tensors that are alive at once, in hidden sizes: residual, norm, gate, up and their product.
ALIVE = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """Bytes by what takes them, at one batch and length."""

    target: str
    batch: int
    length: int
    weights: int
    cache: int
    activations: int
    fixed: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.cache + self.activations + self.fixed

    def parts(self) -> dict[str, int]:
        """By name, the order of the picture."""
        return {
            "weights": self.weights,
            "cache": self.cache,
            "activations": self.activations,
            "process" if self.target == "ort-cpu" else "context": self.fixed,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A model on a target: all that its footprint depends on, beside batch and length."""

    target: str
    weights: int
    cache: CacheSpec
    hidden_size: int
    vocab_size: int
    max_positions: int

    def at(self, batch: int, length: int) -> Footprint:
        """The footprint with `batch` slots of `length` positions, all filled."""
        item = 4 if self.target == "ort-cpu" else 2
        heads = max(self.hidden_size // self.cache.head_dim, 1)
        tokens = max(batch, CHUNK if self.target == "ort-cpu" else CHUNK * batch)
        scores = heads * min(tokens, CHUNK) * length * 4 if self.target == "ort-cpu" else 0
        activations = tokens * self.hidden_size * ALIVE * item + scores + batch * self.vocab_size * 4
        return Footprint(
            target=self.target,
            batch=batch,
            length=length,
            weights=self.weights,
            cache=batch * length * self.cache.bytes_per_token,
            activations=activations,
            fixed=PROCESS_BYTES if self.target == "ort-cpu" else DEVICE_BYTES,
        )

    def largest_batch(self, length: int, memory: int) -> int:
        """Slots of `length` positions that fit into `memory` bytes; 0 if not even one does."""
        low, high = 0, 1
        while high <= 1 << 20 and self.at(high, length).total <= memory:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.at(middle, length).total <= memory else (low, middle)
        return low

    def largest_length(self, batch: int, memory: int) -> int:
        """Positions that each of `batch` slots may have, at most those of the model; 0 if none fits."""
        low, high = 0, self.max_positions + 1
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.at(batch, middle).total <= memory else (low, middle)
        return low


def planned(directory: Path, manifest: Manifest, target: str) -> Planned:
    """What a model directory or bundle becomes on a target.

    Raises:
        MisuseError: the target is unknown, or a bundle has no engine for it.
        BundleCorruptError: the graph cannot be read.
    """
    if target not in TARGETS:
        raise MisuseError(f"{target!r} is no target that can be planned; there are {', '.join(TARGETS)}.")
    cache = manifest.cache if target == "ort-cpu" else _on_device(manifest.cache)
    if manifest.kind == "bundle":
        engine = next((spec for spec in manifest.engines if spec.target.partition(":")[0] == target), None)
        if engine is None:
            there = ", ".join(spec.target for spec in manifest.engines) or "none"
            raise MisuseError(f"{directory} has no engine for {target} (it has {there}); plan its model directory.")
        weights, cache = weights_bytes(manifest, engine), engine.cache
        weights += _embedding(manifest) if target == "ort-cpu" else 0
    else:
        weights = _weights(OnnxHeader.read(directory / GRAPH).weights, manifest, on_device=target != "ort-cpu")
        if target == "ort-cpu" and cache.dtype in ("float16", "bfloat16"):
            cache = replace(cache, dtype="float32")
    return Planned(
        target=target,
        weights=weights,
        cache=cache,
        hidden_size=manifest.model.hidden_size,
        vocab_size=manifest.model.vocab_size,
        max_positions=manifest.model.max_positions,
    )


def _on_device(cache: CacheSpec) -> CacheSpec:
    return replace(cache, dtype="float16") if cache.dtype == "float32" else cache


def _weights(by_type: Mapping[str, int], manifest: Manifest, *, on_device: bool) -> int:
    """Bytes of the weights once built: float32 on the CPU, 16 bits on a GPU, integers as they are."""
    total = sum(by_type.values())
    wide, narrow = by_type.get("float32", 0), by_type.get("float16", 0) + by_type.get("bfloat16", 0)
    if on_device:
        return total - wide // 2
    head = manifest.model.vocab_size * manifest.model.hidden_size
    # A quantized model's head becomes INT8 in blocks of 32 beside the embedding, which stays as it is.
    return total + narrow + (head + head // 8 if _is_quantized(manifest) else 0) + _embedding(manifest)


def _embedding(manifest: Manifest) -> int:
    """What the embedding takes beyond its bytes in the file, as was measured with ONNX Runtime 1.32 on the CPU.

    Tied to a float head it is there twice, as it is and repacked. Beside an INT8 head it stays in the file, of which
    the operating system reads the rows that are used.
    """
    nbytes = 4 * manifest.model.vocab_size * manifest.model.hidden_size
    return -nbytes if _is_quantized(manifest) else nbytes


def _is_quantized(manifest: Manifest) -> bool:
    return manifest.model.scheme.partition("+")[0] != "fp"
