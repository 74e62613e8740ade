"""A model directory's graph while it is quantized, and the writing of what came out."""

import dataclasses
import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

import onnx_ir as ir

from piston.calibration.graph.convolutions import Convolution, find_convolutions
from piston.calibration.graph.linears import Linear, by_input, find_linears
from piston.calibration.recipe import HEAD
from piston.core.bundle import GRAPH, GRAPH_DATA
from piston.core.bundle.examples import EXAMPLES
from piston.core.bundle.external_data import check_external_data
from piston.core.bundle.interface import MODULE
from piston.core.bundle.manifest import Manifest, record_files, sha256_of
from piston.core.errors import MisuseError
from piston.runtime.bundle import Bundle

BESIDE = ("tokenizer.json", "chat_template.jinja", EXAMPLES)


@dataclass(slots=True)
class ModelGraph:
    """An open float model directory: its graph and its linears."""

    directory: Path
    manifest: Manifest
    model: ir.Model
    linears: list[Linear]
    convolutions: list[Convolution]  # of a module of one's own
    observed: Path | None = None  # the model directory that activations are observed in, where it is another

    @classmethod
    def open(cls, directory: Path) -> Self:
        """Verify and load; weights stay on disk until they are read.

        Raises:
            BundleError: no verified model directory.
            MisuseError: a bundle, several graphs, a smaller type than float32, or quantized already.
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
        if len(manifest.graphs) > 1:
            raise MisuseError(
                f"{directory} is for {manifest.task} and has the graphs {', '.join(manifest.graphs)}; models of one "
                "graph can be calibrated. Build it as it is."
            )
        check_external_data(directory, manifest)
        model = ir.load(directory / GRAPH)
        convolutions = find_convolutions(model) if MODULE in manifest.graphs else []
        found = cls(directory, manifest, model, find_linears(model), convolutions)
        if not found.linears and not convolutions:
            raise MisuseError(f"{directory} has no linear layer and no convolution; there is nothing to quantize.")
        return found

    @property
    def sha256(self) -> str:
        """Of the model's own files, as the manifest records them: what a recipe is made for."""
        hashes = [self.manifest.files[name].sha256 for name in (GRAPH, GRAPH_DATA) if name in self.manifest.files]
        return hashlib.sha256(" ".join(hashes).encode()).hexdigest()

    def groups(self) -> dict[str, list[Linear]]:
        """Input name -> the linears of the layers that read it."""
        return by_input(linear for linear in self.linears if linear.name != HEAD and not linear.is_transposed)

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

    def publish(self, work: Path, scheme: str, calibration: Mapping[str, Any]) -> Manifest:
        """Write the quantized model directory into `work`."""
        for name in BESIDE:
            if (self.directory / name).is_file():
                shutil.copyfile(self.directory / name, work / name)
        ir.save(self.model, work / GRAPH, external_data=GRAPH_DATA)
        tools = {name: version(name) for name in ("numpy", "onnx", "onnx-ir", "onnxruntime")}
        made_by = {
            "stage": "calibrate",
            "piston": version("piston"),
            "source": {"manifest_sha256": sha256_of(self.directory / "manifest.json"), **_origin(self.manifest)},
            "tools": tools,
            "calibration": dict(calibration),
        }
        manifest = dataclasses.replace(
            self.manifest,
            model=dataclasses.replace(self.manifest.model, scheme=scheme),
            files=record_files(work),
            made_by=made_by,
        )
        manifest.write(work)
        return manifest


def _origin(manifest: Manifest) -> dict[str, Any]:
    names = ("stage", "piston", "source", "tools", "parity")
    return {name: manifest.made_by[name] for name in names if name in manifest.made_by}
