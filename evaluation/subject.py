"""What is evaluated: a bundle, or a model directory whose canonical graph ONNX Runtime runs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from piston.core.bundle import GRAPH
from piston.core.bundle.manifest import TEXT_GENERATION
from piston.core.errors import BundleError, MisuseError
from piston.runtime.backends.registry import select_engine
from piston.runtime.bundle import Bundle
from piston.runtime.model import LanguageModel
from piston.runtime.tasks.text_generation import open_model
from piston.runtime.text.chat_template import ChatTemplate
from piston.runtime.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Opened:
    """A loaded subject."""

    path: str
    target: str
    model: LanguageModel


@dataclass(frozen=True, slots=True)
class Subject:
    """A path whose manifest and tokenizer are read, and whose engine is not."""

    bundle: Bundle
    tokenizer: Tokenizer
    template: ChatTemplate | None
    target: str | None

    @classmethod
    def read(cls, path: Path, target: str | None = None) -> Self:
        """Read the manifest and the tokenizer; the files' hashes are checked by `open`.

        Raises:
            BundleError: it is neither a bundle nor a model directory, or cannot run here.
            MisuseError: a target was asked of a model directory, or it is no language model.
        """
        bundle = Bundle.open(path, verify=False)
        bundle.manifest.require_task(TEXT_GENERATION, path)
        if bundle.manifest.kind == "bundle":
            bundle.engines(target)
        elif target is not None:
            raise MisuseError(f"{path} is a model directory and runs as it is; --target is for bundles.")
        elif bundle.manifest.cache.dtype != "float32":
            raise BundleError(
                f"{path} is in {bundle.manifest.cache.dtype}, which ONNX Runtime does not run on a CPU; "
                f"evaluate a bundle: `piston build {path} -o BUNDLE --target ort-cpu`."
            )
        return cls(bundle, bundle.tokenizer(), bundle.chat_template(), target)

    @property
    def max_positions(self) -> int:
        """Positions that the model, or the built engine, supports."""
        manifest = self.bundle.manifest
        if manifest.kind != "bundle":
            return manifest.model.max_positions
        built = select_engine(self.bundle, self.target)[0].actual.get("max_positions")
        return built if isinstance(built, int) else manifest.model.max_positions

    def open(self, *, num_slots: int, capacity: int, threads: int = 0) -> Opened:
        """Check the files' hashes and load; raises as `load` does."""
        path, manifest = self.bundle.directory, self.bundle.manifest
        if manifest.kind == "bundle":
            model = open_model(
                self.bundle,
                target=self.target,
                max_batch=num_slots,
                max_length=capacity,
                threads=threads,
                best_only=True,
            )
            return Opened(str(path), model.target, model)
        manifest.verify(path)

        from piston.runtime.backends.ort_cpu import OrtEngine
        from piston.runtime.backends.session import OrtOptions

        options = OrtOptions(threads=threads, optimize=True)
        engine = OrtEngine.open(path / GRAPH, manifest.cache, num_slots=num_slots, capacity=capacity, options=options)
        return Opened(str(path), "none", LanguageModel(manifest, engine, self.tokenizer, self.template))
