"""A checkpoint becomes a model directory: canonical graph, manifest, tokenizer. The only folder that knows torch."""

import dataclasses
import gc
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from piston.core.atomic_dir import atomic_dir, check_free
from piston.core.bundle import GRAPH, GRAPH_DATA
from piston.core.bundle.interface import CacheSpec, FloatType
from piston.core.bundle.manifest import Manifest, ModelSpec, record_files
from piston.core.cache_dir import expand_user
from piston.core.console import Progress

Dtype = Literal["auto", "fp32", "fp16", "bf16"]
DTYPES: dict[str, FloatType] = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    """How to export.

    `context` is the number of positions, by default what the checkpoint was trained for; `chat_template` the name of
    one of several chat templates, by default "default".
    """

    dtype: Dtype = "auto"
    context: int | None = None
    revision: str | None = None
    trust_remote_code: bool = False
    chat_template: str | None = None
    overwrite: bool = False
    check_parity: bool = True


def export_model(
    source: str | Path, out: str | Path, options: ExportOptions | None = None, progress: Progress | None = None
) -> Manifest:
    """Export a checkpoint (directory, hub id or .gguf file) to the model directory `out`.

    Raises:
        CheckpointError: it cannot be read, or is of a kind that is not supported (UnsupportedModelError).
        ParityError: the graph does not answer as transformers does.
        MisuseError: the checkpoint has no chat template of the name that was asked for.
        OutputExistsError: `out` is there. In every case nothing is left at `out`.
    """
    from piston.export.checkpoint import check_weights, load_config, locate, weights_dtype
    from piston.export.generation_defaults import check_readable
    from piston.export.rotary import positions_of

    options, progress, out = options or ExportOptions(), progress or Progress(quiet=True), Path(out)
    check_free(out, overwrite=options.overwrite, reads=[expand_user(source)])
    checkpoint = locate(str(source), revision=options.revision, trust_remote_code=options.trust_remote_code)
    reads = [checkpoint.directory / (checkpoint.gguf or "")]
    config = load_config(checkpoint)
    positions = positions_of(config, options.context)
    check_readable(checkpoint)
    stored = check_weights(checkpoint, config)
    wanted, remark = weights_dtype(checkpoint, stored)
    remarks = [remark] if remark is not None and options.dtype == "auto" else []
    wanted = DTYPES.get(options.dtype, wanted)
    with atomic_dir(out, overwrite=options.overwrite, reads=reads) as work:
        return _Export(checkpoint, config, positions, wanted, options, progress, remarks).run(work)


@dataclass(slots=True)
class _Export:
    """One export under way."""

    checkpoint: Any
    config: Any
    positions: int
    dtype: FloatType
    options: ExportOptions
    progress: Progress
    remarks: list[str]  # what the person who exports should know

    def run(self, work: Path) -> Manifest:
        from piston.export.checkpoint import cache_spec_of, load_model, translated
        from piston.export.generation_defaults import read_defaults
        from piston.export.parity import check_parity, take_reference
        from piston.export.tokenizer import write_tokenizer

        with self.progress.phase("loading the checkpoint"):
            model: Any = load_model(self.checkpoint)
        runs = f"transformers cannot run {self.checkpoint.name} itself"
        with translated(runs):
            cache = cache_spec_of(model)
        defaults = read_defaults(self.checkpoint, model.generation_config)
        with translated(f"The tokenizer of {self.checkpoint.name} cannot be used"):
            template = self.options.chat_template
            tokenizer, remarks = write_tokenizer(self.checkpoint, self.config, defaults, work, template)
        self.remarks += [*remarks, *defaults.remarks]
        vocab_size, architecture = int(model.get_output_embeddings().weight.shape[0]), type(model).__name__
        with self.progress.phase("asking transformers for reference answers"), translated(runs):
            reference = take_reference(model, vocab_size, self.positions) if self.options.check_parity else None
        with self.progress.phase("tracing to ONNX"), translated(f"{architecture} cannot be traced to ONNX"):
            self._trace(model, cache, work)
        del model
        gc.collect()
        parity = None
        if reference is not None:
            with self.progress.phase("comparing ONNX Runtime with transformers"):
                parity = dataclasses.asdict(check_parity(work / GRAPH, cache, reference))
        if self.dtype != "float32":
            with self.progress.phase(f"rounding to {self.dtype}"):
                _round(work, self.dtype)
        with self.progress.phase("hashing"):
            spec = ModelSpec(
                name=self.checkpoint.name,
                architecture=architecture,
                num_layers=cache.num_layers,
                hidden_size=int(getattr(self.config, "hidden_size", None) or self.config.n_embd),
                vocab_size=vocab_size,
                max_positions=self.positions,
                dtype=self.dtype,
            )
            manifest = Manifest.of_decoder(
                kind="model",
                model=spec,
                cache=cache.with_dtype(self.dtype),
                tokenizer=tokenizer,
                generation=defaults.sampling,
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
            "remarks": self.remarks,
        }


def _round(work: Path, dtype: str) -> None:
    """Replace the float32 graph, checked above, by its rounding; the weights pass through memory one at a time."""
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
