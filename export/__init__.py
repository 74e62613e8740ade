"""A checkpoint becomes a model directory: canonical graph, manifest, tokenizer. The only folder that knows torch."""

import dataclasses
import gc
import resource
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from piston.core.atomic_dir import check_free, staged_dir
from piston.core.bundle import GRAPH, GRAPH_DATA
from piston.core.bundle.manifest import CacheSpec, FloatType, Manifest, ModelSpec, record_files
from piston.core.console import Progress

Dtype = Literal["auto", "fp32", "fp16", "bf16"]
DTYPES: dict[str, FloatType] = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    """How to export. `context` is the number of positions, by default what the checkpoint was trained for."""

    dtype: Dtype = "auto"
    context: int | None = None
    revision: str | None = None
    trust_remote_code: bool = False
    overwrite: bool = False
    check_parity: bool = True


def export_model(
    source: str | Path, out: str | Path, options: ExportOptions | None = None, progress: Progress | None = None
) -> Manifest:
    """Export a checkpoint (directory, hub id or .gguf file) to the model directory `out`.

    Raises:
        CheckpointError: it cannot be read, or is of a kind that is not supported (UnsupportedModelError).
        ParityError: the graph does not answer as transformers does.
        OutputExistsError: `out` is there. In every case nothing is left at `out`.
    """
    from piston.export.checkpoint import load_config, locate
    from piston.export.rotary import positions_of

    options, progress, out = options or ExportOptions(), progress or Progress(quiet=True), Path(out)
    check_free(out, overwrite=options.overwrite)
    checkpoint = locate(str(source), revision=options.revision, trust_remote_code=options.trust_remote_code)
    config = load_config(checkpoint)
    positions = positions_of(config, options.context)
    with staged_dir(out, overwrite=options.overwrite) as work:
        return _Export(checkpoint, config, positions, options, progress).run(work)


@dataclass(slots=True)
class _Export:
    """One export under way."""

    checkpoint: Any
    config: Any
    positions: int
    options: ExportOptions
    progress: Progress

    def run(self, work: Path) -> Manifest:
        from piston.export.checkpoint import cache_spec_of, load_model, weights_dtype
        from piston.export.parity import check_parity, take_reference
        from piston.export.tokenizer import sampling_defaults, write_tokenizer

        with self.progress.phase("loading the checkpoint"):
            model: Any = load_model(self.checkpoint)
            cache = cache_spec_of(model)
        tokenizer = write_tokenizer(self.checkpoint, self.config, model.generation_config, work)
        defaults = sampling_defaults(model.generation_config)
        vocab_size, architecture = int(model.get_output_embeddings().weight.shape[0]), type(model).__name__
        with self.progress.phase("asking transformers for reference answers"):
            reference = take_reference(model, vocab_size, self.positions) if self.options.check_parity else None
        with self.progress.phase("tracing to ONNX"):
            self._trace(model, cache, work)
        del model
        gc.collect()
        parity = None
        if reference is not None:
            with self.progress.phase("comparing ONNX Runtime with transformers"):
                parity = dataclasses.asdict(check_parity(work / GRAPH, cache, reference))
        wanted: FloatType = DTYPES.get(self.options.dtype) or weights_dtype(self.checkpoint, self.config)
        if wanted != "float32":
            with self.progress.phase(f"rounding to {wanted}"):
                _round(work, wanted)
        with self.progress.phase("hashing"):
            spec = ModelSpec(
                name=self.checkpoint.name,
                architecture=architecture,
                num_layers=cache.num_layers,
                hidden_size=int(getattr(self.config, "hidden_size", None) or self.config.n_embd),
                vocab_size=vocab_size,
                max_positions=self.positions,
                dtype=wanted,
            )
            manifest = Manifest(
                kind="model",
                model=spec,
                cache=dataclasses.replace(cache, dtype=wanted),
                tokenizer=tokenizer,
                generation=defaults,
                files=record_files(work),
                made_by=self._provenance(parity),
            )
        manifest.write(work)
        return manifest

    def _trace(self, model: Any, cache: CacheSpec, work: Path) -> None:
        import onnx_ir as ir

        from piston.export.passes import canonicalize
        from piston.export.trace import trace

        graph = trace(model, cache, self.positions)
        canonicalize(graph)
        ir.save(graph, work / GRAPH, external_data=GRAPH_DATA)
        # onnxscript 0.7's rewrite rules, which live as long as the process, remember the last graph they matched.
        for value in graph.graph.initializers.values():
            value.const_value = None

    def _provenance(self, parity: dict[str, Any] | None) -> dict[str, Any]:
        tools = ("torch", "transformers", "onnx", "onnx-ir", "onnxscript", "onnxruntime")
        return {
            "stage": "export",
            "piston": version("piston"),
            "source": {"revision": self.checkpoint.revision, "sha256": self.checkpoint.hashes()},
            "tools": {name: version(name) for name in tools},
            "parity": parity,
        }


def _round(work: Path, dtype: str) -> None:
    """Replace the float32 graph, proved above, by its rounding; the weights pass through memory one at a time."""
    import onnx_ir as ir

    from piston.export.passes.cast_precision import CastPrecisionPass

    graph = ir.load(work / GRAPH)
    CastPrecisionPass(dtype)(graph)
    narrow = work / "narrow"
    narrow.mkdir()
    ir.save(graph, narrow / GRAPH, external_data=GRAPH_DATA)
    for name in (GRAPH, GRAPH_DATA):
        (narrow / name).replace(work / name)
    narrow.rmdir()


def peak_rss_bytes() -> int:
    """The most memory this process has held, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
