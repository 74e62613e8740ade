"""How much memory a model takes at a batch and a length: weights, cache, activations, and a fixed part.

Predictions, from the manifest and the graph's header alone. For ort-cpu they were compared with the resident memory of
real processes (scripts/measure_footprint.py): SmolLM2-135M, off by at most 5 % in float32 and w8a8 (1 x 512, 8 x 1,024;
the embedding's part was fitted to these) and in w8 and w4 (1 x 2,048, 4 x 4,096; nothing was fitted to these).
Encoders and encoder-decoders were off by at most 8 %: MiniLM in float32 and w8a8 (1 x 256, 8 x 256, 32 x 128) and
DistilBERT (8 x 512), also for ort-cpu:avx512; T5 (1 x 256, 8 x 256) and Marian (1 x 64) in w8a8; Whisper base in both.
ENCODER_PROCESS_BYTES, SECOND_GRAPH_BYTES and ALIVE_INT8 were fitted to these. A float head is taken for tied: of one
that is not, as of some T5 in float32, a third too much is predicted. Decoders on ort-cpu:avx512, and all on GPUs, have
not been compared with anything yet.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from piston.core.bundle import GRAPH
from piston.core.bundle.interface import DECODER, ENCODER, MODULE, CacheSpec
from piston.core.bundle.manifest import EngineSpec, Manifest
from piston.core.bundle.onnx_header import OnnxHeader
from piston.core.errors import BundleError, MisuseError
from piston.core.machine import num_cores
from piston.runtime import kernels
from piston.runtime.backends.registry import compute_capabilities_of, evaluate_candidates, family_of
from piston.runtime.bundle import Bundle
from piston.runtime.encoder import TOKENS_PER_THREAD
from piston.runtime.memory_budget import weights_bytes

DEVICE_TARGETS = ("tensorrt-rtx", "tensorrt", "ort-cuda")
TARGETS = ("ort-cpu", kernels.TARGET, *DEVICE_TARGETS)
TOLERANCE = 0.10  # of the predicted resident memory on ort-cpu, in the range that was measured
# Python, numpy, tokenizers and ONNX Runtime in a process that has loaded nothing (1.32, Linux).
PROCESS_BYTES, ENCODER_PROCESS_BYTES = 110_000_000, 85_000_000
SECOND_GRAPH_BYTES = 10_000_000  # ONNX Runtime's, of an encoder-decoder
# CUDA context, TensorRT or ONNX Runtime, and kernels. An assumption: not measured on a GPU.
DEVICE_BYTES = 700_000_000
# Widths of a layer's tensors that are alive at once, in hidden sizes: residual, norm, gate, up and their product.
ALIVE = 16
ALIVE_INT8 = 36  # of an encoder in w8a8 on ort-cpu, which has codes and sums in INT32 besides
NO_STATES = CacheSpec(())
USUAL_HEAD = 64  # numbers of a head, where the manifest does not say how many heads an encoder has


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """Bytes of each part at one batch and length."""

    target: str
    batch: int
    length: int
    weights: int
    cache: int
    activations: int
    fixed: int

    @property
    def total(self) -> int:
        """The sum."""
        return self.weights + self.cache + self.activations + self.fixed

    def parts(self) -> dict[str, int]:
        """The parts by name, in the order of the bar."""
        return {
            "weights": self.weights,
            "cache": self.cache,
            "activations": self.activations,
            "context" if family_of(self.target) in DEVICE_TARGETS else "process": self.fixed,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A model on a target: everything that its footprint depends on, except batch and length."""

    target: str
    weights: int
    cache: CacheSpec  # without states where there is no decoder
    hidden_size: int
    vocab_size: int
    max_positions: int
    chunk: int  # tokens of one prefill step
    cross: CacheSpec = NO_STATES  # what an encoder writes for the decoder
    num_heads: int = 0  # of an encoder
    run_tokens: int | None = None  # of texts that an encoder reads in one run, where that is bounded
    is_w8a8: bool = False
    max_batch: int | None = None  # rows that a plan was built for
    capacity: int | None = None  # positions of a plan's rows, whatever is requested

    def at(self, batch: int, length: int) -> Footprint:
        """The footprint with `batch` slots, or texts read together, of `length` positions, all filled."""
        on_device = family_of(self.target) in DEVICE_TARGETS
        steps = [self._decoder(batch, length)] if self.cache.states else [self._encoder(batch, length)]
        if self.cross.states:  # sources are encoded one by one
            steps.append(self._encoder(1, self._source(length)))
        sources = sum(self.cross.array_bytes(batch, self._source(length)))
        return Footprint(
            target=self.target,
            batch=batch,
            length=length,
            weights=self.weights,
            cache=batch * (self.capacity or length) * self.cache.bytes_per_token + sources,
            activations=max(steps),
            fixed=DEVICE_BYTES if on_device else self._process(),
        )

    def _decoder(self, batch: int, length: int) -> int:
        """Bytes of a step: rows are prefilled in chunks one after another, and decoded together."""
        chunk = min(self.chunk, length)
        heads = max(self.hidden_size // int(self.cache.states[0].shape[-1]), 1)
        keys = max(length, self._source(length)) if self.cross.states else length
        return self._tokens(max(batch, chunk)) + self._scores(heads, chunk * keys) + batch * self.vocab_size * 4

    def _encoder(self, batch: int, length: int) -> int:
        """Bytes of a run that reads whole texts."""
        if self.run_tokens is not None:  # the rest of the batch is read in further runs
            batch = min(batch, max(self.run_tokens // length, 1))
        alive = ALIVE_INT8 if self.is_w8a8 and self.target == "ort-cpu" else ALIVE
        return self._tokens(batch * length, alive) + self._scores(self.num_heads, batch * length**2)

    def _process(self) -> int:
        if not self.cache.states:
            return ENCODER_PROCESS_BYTES
        return PROCESS_BYTES + (SECOND_GRAPH_BYTES if self.cross.states else 0)

    def _tokens(self, count: int, alive: int = ALIVE) -> int:
        return count * self.hidden_size * alive * (2 if family_of(self.target) in DEVICE_TARGETS else 4)

    def _scores(self, heads: int, pairs: int) -> int:
        """Of queries and keys; other targets than ort-cpu never hold all of them at once."""
        return heads * pairs * 4 if self.target == "ort-cpu" else 0

    def _source(self, length: int) -> int:
        """Positions of a source."""
        return self.cross.num_positions or length

    def largest_batch(self, length: int, memory: int) -> int:
        """Slots of `length` positions that fit into `memory` bytes; 0 if not even one does."""
        low, high = 0, 1
        while high <= 1 << 20 and self.at(high, length).total <= memory:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.at(middle, length).total <= memory else (low, middle)
        return low if self.max_batch is None else min(low, self.max_batch)

    def largest_length(self, batch: int, memory: int) -> int:
        """Positions that each of `batch` slots may have, at most those of the model; 0 if none fits."""
        low, high = 0, self.max_positions + 1
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.at(batch, middle).total <= memory else (low, middle)
        return low


def planned(directory: Path, manifest: Manifest, target: str, sm: str | None = None) -> Planned:
    """The plan of a model directory or bundle on a target; `sm`, such as sm89, is the GPU it is planned for.

    Of a bundle it is the engine that `load` takes for the target, on this machine or on that GPU.

    Raises:
        MisuseError: the target is unknown, a bundle has no engine for it, or it is of a module of one's own.
        BundleCorruptError: the graph cannot be read.
    """
    if MODULE in manifest.graphs:
        raise MisuseError(
            f"{directory} is of a module of your own: its inputs decide the memory; measure it: `piston bench BUNDLE`."
        )
    if target not in TARGETS:
        raise MisuseError(f"{target!r} is not a target that can be planned; the targets are {', '.join(TARGETS)}.")
    on_device = family_of(target) in DEVICE_TARGETS
    got: Mapping[str, Any] = {}
    cache, cross = (_stored(spec, on_device=on_device) for spec in (manifest.cache, manifest.cross))
    if manifest.kind == "bundle":
        engine = _engine(Bundle(directory, manifest), target, sm)
        target, got = engine.target, engine.actual
        weights, cache, cross = weights_bytes(manifest, engine), engine.cache, engine.cross
        weights += 0 if on_device else _embedding(manifest)
    else:
        folders = manifest.graphs if len(manifest.graphs) > 1 else ("",)
        by_type: Counter[str] = Counter()
        for folder in folders:
            by_type.update(OnnxHeader.read(directory / folder / GRAPH).weights)
        weights = _weights(by_type, manifest, on_device=on_device)
    is_plan = family_of(target).startswith("tensorrt")
    return Planned(
        target=target,
        weights=weights,
        cache=cache,
        cross=cross,
        num_heads=manifest.model.num_heads or manifest.model.hidden_size // USUAL_HEAD,
        run_tokens=None if on_device or manifest.cache.states else TOKENS_PER_THREAD * num_cores(),
        is_w8a8=manifest.model.scheme.startswith("w8a8"),
        hidden_size=manifest.model.hidden_size,
        vocab_size=manifest.model.vocab_size,
        max_positions=_number(got, "max_positions") or manifest.model.max_positions,
        chunk=(is_plan and _number(got, "chunk")) or _chunk(target),
        max_batch=_number(got, "max_batch") if is_plan else None,
        capacity=_number(got, "capacity") if is_plan else None,
    )


def _engine(bundle: Bundle, target: str, sm: str | None) -> EngineSpec:
    from piston.runtime.backends.tensorrt.plan import runs_on

    there = ", ".join(spec.target for spec in bundle.manifest.engines) or "none"
    try:
        verdicts = evaluate_candidates(bundle, target)
    except BundleError:
        raise MisuseError(
            f"{bundle.directory} has no engine for {target} (it has {there}); plan its model directory."
        ) from None
    if sm is None:  # where none runs here, the first that would be tried elsewhere
        return next((verdict.spec for verdict in verdicts if verdict.problem is None), verdicts[0].spec)
    if fitting := [verdict.spec for verdict in verdicts if runs_on(compute_capabilities_of(verdict.spec), sm)]:
        return fitting[0]
    raise MisuseError(f"{bundle.directory} has no engine for {target} on {sm} (it has {there}); build one for it.")


def _chunk(target: str) -> int:
    """Tokens of a prefill step, as the engine of the target has it."""
    from piston.runtime.backends.ort_cpu import KERNELS_CHUNK, PREFILL_CHUNK
    from piston.runtime.backends.ort_cuda import PREFILL_CHUNK as ORT_CUDA_CHUNK
    from piston.runtime.backends.tensorrt.interface import CHUNK as TENSORRT_CHUNK

    chunks = {"ort-cpu": PREFILL_CHUNK, kernels.TARGET: KERNELS_CHUNK, "ort-cuda": ORT_CUDA_CHUNK}
    return chunks.get(target, TENSORRT_CHUNK)


def _number(got: Mapping[str, Any], name: str) -> int | None:
    return found if isinstance(found := got.get(name), int) else None


def _stored(spec: CacheSpec, *, on_device: bool) -> CacheSpec:
    """As an engine that is built has the states: 16 bits on a GPU, float32 on the CPU, INT8 as it is."""
    if not spec.states or spec.dtype == "int8":
        return spec
    if on_device:
        return spec.with_dtype("float16") if spec.dtype == "float32" else spec
    return spec.with_dtype("float32")


def _weights(by_type: Mapping[str, int], manifest: Manifest, *, on_device: bool) -> int:
    """Bytes of the weights once built: float32 on the CPU, 16 bits on a GPU, integers as they are."""
    total = sum(by_type.values())
    wide, narrow = by_type.get("float32", 0), by_type.get("float16", 0) + by_type.get("bfloat16", 0)
    if on_device:
        return total - wide // 2
    if DECODER not in manifest.graphs:
        return total + narrow + _embedding(manifest)
    head = manifest.model.vocab_size * manifest.model.hidden_size
    # A quantized model's head becomes INT8 in blocks of 32; the embedding stays as it is.
    return total + narrow + (head + head // 8 if _is_quantized(manifest) else 0) + _embedding(manifest)


def _embedding(manifest: Manifest) -> int:
    """Memory that the embedding takes beyond its bytes in the file, measured with ONNX Runtime 1.32 on the CPU.

    Tied to a float head it is in memory twice, as stored and repacked. With an INT8 head, or without one as in an
    encoder, it stays in the mapped file, of which the operating system reads only the rows that are used.
    """
    nbytes = 4 * manifest.model.vocab_size * manifest.model.hidden_size
    encoder = manifest.graphs.get(ENCODER)
    reads_tokens = encoder is not None and any(tensor.role == "tokens" for tensor in encoder.inputs)
    change = -nbytes if reads_tokens else 0
    if DECODER in manifest.graphs:
        change += -nbytes if _is_quantized(manifest) else nbytes
    return change


def _is_quantized(manifest: Manifest) -> bool:
    return manifest.model.scheme.partition("+")[0] != "fp"
