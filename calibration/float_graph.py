"""A model directory's graph while it is quantized, and the writing of what came out."""

import dataclasses
import hashlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

import onnx_ir as ir

from piston.calibration.graph.convolutions import Convolution, find_convolutions
from piston.calibration.graph.linears import Linear, by_input, find_linears
from piston.calibration.observe.collect import collect
from piston.calibration.observe.consumers import Consumer
from piston.calibration.observe.inputs import RowsLike
from piston.core.bundle import GRAPH, GRAPH_DATA, graph_dir
from piston.core.bundle.examples import EXAMPLES
from piston.core.bundle.external_data import check_external_data
from piston.core.bundle.interface import DECODER, MODULE
from piston.core.bundle.manifest import Manifest, record_files, sha256_of
from piston.core.errors import MisuseError
from piston.runtime.bundle import Bundle

COPIED = ("tokenizer.json", "answers.tokenizer.json", "chat_template.jinja", EXAMPLES)


@dataclass(slots=True)
class ModelGraph:
    """One graph of an open float model directory, and its layers."""

    directory: Path  # that the graph's files are in
    manifest: Manifest  # of this graph alone
    model: ir.Model
    linears: list[Linear]
    convolutions: list[Convolution]  # of a module of one's own
    folder: str = ""  # of the graph in the model directory, where that has several
    observed: Path | None = None  # the directory that activations are observed in, where it is another

    @classmethod
    def open(cls, directory: Path) -> Self:
        """The graph of a model that has one; raises as `open_graphs`."""
        (graph,) = open_graphs(directory)
        return cls(graph.directory, graph.manifest, graph.model, graph.linears, graph.convolutions)

    @property
    def layer_names(self) -> list[str]:
        """Of linears and convolutions."""
        return [linear.name for linear in self.linears] + [each.name for each in self.convolutions]

    @property
    def sha256(self) -> str:
        """Of the graph's own files, as the manifest records them."""
        return _joined(self.hashes)

    @property
    def hashes(self) -> list[str]:
        """SHA-256 of its files."""
        return [self.manifest.files[name].sha256 for name in (GRAPH, GRAPH_DATA) if name in self.manifest.files]

    def collect(self, rows: RowsLike, consumers: Mapping[str, Consumer], **options: Any) -> None:
        """Run the float graph over the rows; see `piston.calibration.observe.collect`."""
        if self.observed is not None:
            collect(self.observed, rows, consumers, **options)
        else:
            collect(self.directory, rows, consumers, manifest=self.manifest, **options)

    def groups(self) -> dict[str, list[Linear]]:
        """Input name -> the linears of the layers that read it."""
        return by_input(linear for linear in self.linears if not linear.is_head and not linear.is_transposed)

    def save_float(self, directory: Path) -> None:
        """Write the graph as it is now as a model directory of its own, for another pass over it."""
        directory.mkdir(parents=True, exist_ok=True)
        ir.save(self.model, directory / GRAPH, external_data=GRAPH_DATA)
        dataclasses.replace(self.manifest, files=record_files(directory)).write(directory)

    def release(self) -> None:
        """Give the weights' memory back; only what lies on disk is left."""
        self.model.graph.initializers.clear()
        self.linears.clear()
        self.convolutions.clear()

    def save(self, work: Path) -> None:
        """Write the graph as it is now into its folder of the model directory `work`."""
        (work / self.folder).mkdir(exist_ok=True)
        ir.save(self.model, work / self.folder / GRAPH, external_data=GRAPH_DATA)


def open_graphs(directory: Path) -> list[ModelGraph]:
    """Verify and load the graphs of a model directory; weights stay on disk until they are read.

    Raises:
        BundleError: no verified model directory.
        MisuseError: a bundle, a smaller type than float32, quantized already, or without any layer.
    """
    manifest = Bundle.open(directory).manifest
    if manifest.kind != "model":
        raise MisuseError(f"{directory} is a bundle; calibrate the model directory it was built from.")
    if manifest.model.scheme != "fp":
        raise MisuseError(f"{directory} is quantized already ({manifest.model.scheme}); calibrate the float one.")
    if manifest.model.dtype != "float32":
        raise MisuseError(
            f"{directory} is {manifest.model.dtype}, and ONNX Runtime measures in float32 on the CPU; "
            "export it with --dtype fp32."
        )
    check_external_data(directory, manifest)
    found = []
    for name in manifest.graphs:
        folder = graph_dir(name, manifest.graphs)
        model = ir.load(directory / folder / GRAPH)
        convolutions = find_convolutions(model) if name == MODULE else []
        alone = _alone(manifest, name, folder)
        linears = find_linears(model, is_decoder=name == DECODER)
        found.append(ModelGraph(directory / folder, alone, model, linears, convolutions, folder))
    if not any(graph.linears or graph.convolutions for graph in found):
        raise MisuseError(f"{directory} has no linear layer and no convolution; there is nothing to quantize.")
    return found


def hash_of(graphs: Sequence[ModelGraph]) -> str:
    """SHA-256 of a model's own files, as the manifest records them: what a recipe is made for."""
    return _joined([sha256 for graph in graphs for sha256 in graph.hashes])


def publish(
    graphs: Sequence[ModelGraph],
    manifest: Manifest,
    directory: Path,
    work: Path,
    scheme: str,
    calibration: Mapping[str, Any],
) -> Manifest:
    """Write the quantized model directory into `work`; `manifest` is of the float one at `directory`."""
    for name in COPIED:
        if (directory / name).is_file():
            shutil.copyfile(directory / name, work / name)
    for graph in graphs:
        graph.save(work)
    tools = {name: version(name) for name in ("numpy", "onnx", "onnx-ir", "onnxruntime")}
    made_by = {
        "stage": "calibrate",
        "piston": version("piston"),
        "source": {"manifest_sha256": sha256_of(directory / "manifest.json"), **_origin(manifest)},
        "tools": tools,
        "calibration": dict(calibration),
    }
    made = dataclasses.replace(
        manifest,
        model=dataclasses.replace(manifest.model, scheme=scheme),
        files=record_files(work),
        made_by=made_by,
    )
    made.write(work)
    return made


def _alone(manifest: Manifest, name: str, folder: str) -> Manifest:
    """The manifest of one graph, whose files are named as in its folder."""
    if not folder:
        return manifest
    files = {file: manifest.files[f"{folder}/{file}"] for file in (GRAPH, GRAPH_DATA)
             if f"{folder}/{file}" in manifest.files}  # fmt: skip
    return dataclasses.replace(manifest, graphs={name: manifest.graphs[name]}, files=files)


def _joined(hashes: Sequence[str]) -> str:
    return hashlib.sha256(" ".join(hashes).encode()).hexdigest()


def _origin(manifest: Manifest) -> dict[str, Any]:
    names = ("stage", "piston", "source", "tools", "parity")
    return {name: manifest.made_by[name] for name in names if name in manifest.made_by}
