"""Toy models as the stages write them: made once for all workers, and kept in .cache/toys until their sources change.

An entry depends on the toy's configuration, on the code of Piston and the versions of libraries that wrote it, and on
the files here that make toys. A session works on copies, so no test can damage what the next session reads.
"""

import contextlib
import functools
import inspect
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from piston.core.bundle.interface import CacheSpec
from piston.core.bundle.manifest import sha256_of
from piston.core.schema import to_plain, validated
from piston.pipeline.cache import Cache
from piston.pipeline.cache_key import code_of, digest_of, machine, tools_of

ROOT = Path(__file__).parents[2] / ".cache/toys"
MAX_BYTES = 10**9
MAKERS = (
    "zoo.py",
    "checkpoints.py",
    "encoders.py",
    "encoder_decoders.py",
    "sentencepiece_files.py",
    "speech.py",
    "canonical.py",
    "quantized.py",
    "toys.py",
)
STATES = "states.json"


class Toys:
    """Toys of one session, each a copy in `directory` that is read and not written. What is returned is shared."""

    def __init__(self, directory: Path, root: Path = ROOT) -> None:
        self._directory = directory
        self._cache = Cache(root, MAX_BYTES)
        self._copies: dict[str, Path] = {}

    def close(self) -> None:
        """Remove what was not used for longest where the cache is too large."""
        self._cache.release()
        self._cache.evict()

    def graph(self, model_type: str = "llama", **config: Any) -> Any:
        """The canonical graph of a toy of the zoo in float32: a canonical.Toy."""
        from canonical import Toy

        def make(out: Path) -> None:
            from canonical import export_toy
            from zoo import make

            spec = export_toy(make(model_type, **config), out)
            (out / STATES).write_text(json.dumps(to_plain(spec)), encoding="utf-8")

        copy = self._copy("graph", {"type": model_type, "config": config}, "export", make)
        return Toy(copy / "model.onnx", validated(CacheSpec, json.loads((copy / STATES).read_text(encoding="utf-8"))))

    def model_dir(
        self,
        model_type: str = "llama",
        *,
        dtype: str = "float32",
        scheme: str = "fp",
        keep: tuple[str, ...] = (),
        edit: Callable[[Any], None] | None = None,
        **config: Any,
    ) -> Path:
        """A model directory as `piston export` writes it, without its parity check.

        Args:
            model_type: of the zoo.
            dtype: of the checkpoint.
            scheme: of quantized.py; without "fp" the linears are rounded to nearest but for those that hold a `keep`.
            keep: parts of the names of linears that stay in float.
            edit: changes the weights of the checkpoint in place; its source is part of the key.
            config: what differs from the zoo's configuration.
        """
        if scheme != "fp":
            return self._quantized(scheme, keep, {"dtype": dtype, "edit": edit, "model_type": model_type} | config)

        def make(out: Path) -> None:
            import torch
            from checkpoints import write_checkpoint

            from piston.export import ExportOptions, export_model

            model = write_checkpoint(out / "checkpoint", model_type, getattr(torch, dtype), **config)
            if edit is not None:
                with torch.no_grad():
                    edit(model)
                model.save_pretrained(out / "checkpoint")
            export_model(out / "checkpoint", out / "model", ExportOptions(check_parity=False))
            shutil.rmtree(out / "checkpoint")

        what = {"type": model_type, "config": config, "dtype": dtype}
        if edit is not None:
            what["edit"] = inspect.getsource(edit)
        return self._copy("model", what, "export", make) / "model"

    def exported(self, write: Callable[..., Any], *arguments: Any, **options: Any) -> Path:
        """What `piston export` makes of the checkpoint that `write(directory, *arguments, **options)` writes.

        Args:
            write: a function of a module in MAKERS.
            arguments: and `options`, as JSON has them.

        Returns: the model directory, its parity checked; the checkpoint is `checkpoint` beside it.
        """

        def make(out: Path) -> None:
            from piston.export import export_model

            write(out / "checkpoint", *arguments, **options)
            export_model(out / "checkpoint", out / "model")

        what = {"write": write.__qualname__, "arguments": arguments, "options": options}
        return self._copy("exported", what, "export", make) / "model"

    def calibrated(
        self,
        model_dir: Path,
        recipe: Any,
        data: str | Callable[[Path], Path] | None = None,
        *,
        bounds: tuple[str, ...] = (),
        **rows: Any,
    ) -> Path:
        """The model directory that `piston calibrate` makes of another.

        Args:
            model_dir: in float.
            recipe: a piston.calibration Recipe.
            data: a text to calibrate on, or a function of a module in MAKERS that writes files below a directory and
                returns the one to read; None where the recipe reads nothing.
            bounds: of its check; without one those of the task.
            rows: of RowOptions, for that data and for the data of the check.
        """

        def make(out: Path) -> None:
            from piston.calibration.calibrate import CheckOptions, calibrate
            from piston.data.rows import RowOptions

            paths = []
            if callable(data):
                (out / "data").mkdir()
                paths = [data(out / "data")]
            elif data is not None:
                paths = [out / "data.txt"]
                paths[0].write_text(data, encoding="utf-8")
            calibrate(
                model_dir, out / "model", recipe, paths, rows=RowOptions(**rows), checked=CheckOptions(bounds=bounds)
            )

        named = data.__qualname__ if callable(data) else data
        what = {"recipe": recipe.to_json(), "data": named, "rows": rows, "bounds": bounds}
        what["model"] = sha256_of(model_dir / "manifest.json")
        return self._copy("calibrated", what, "calibrate", make) / "model"

    def built(self, model_dir: Path, targets: tuple[str, ...] = ("ort-cpu",), **options: Any) -> Path:
        """The bundle that piston.engines.build makes of a model directory."""

        def make(out: Path) -> None:
            from piston.engines import build

            build(model_dir, out / "bundle", targets, **options)

        what = {"targets": targets, "build": options, "model": sha256_of(model_dir / "manifest.json")}
        return self._copy("bundle", what, "build", make) / "bundle"

    def bundle(
        self, targets: tuple[str, ...] = ("ort-cpu",), *, build: dict[str, Any] | None = None, **model: Any
    ) -> Path:
        """The bundle that piston.engines.build(**build) makes of the model directory that `model` describes."""
        return self.built(self.model_dir(**model), targets, **(build or {}))

    def _quantized(self, scheme: str, keep: tuple[str, ...], model: dict[str, Any]) -> Path:
        source = self.model_dir(**model)

        def make(out: Path) -> None:
            from quantized import quantize_model_dir

            quantize_model_dir(source, out / "model", scheme, keep)

        what = {"scheme": scheme, "keep": keep, "model": sha256_of(source / "manifest.json")}
        return self._copy("quantized", what, "calibrate", make) / "model"

    def _copy(self, kind: str, what: dict[str, Any], verb: str, make: Callable[[Path], None]) -> Path:
        key = digest_of([kind, what, _made_by(verb)])
        if key in self._copies:
            return self._copies[key]
        with contextlib.redirect_stderr(io.StringIO()), self._cache.locked(kind, key):  # another worker may make it
            entry = self._cache.find(kind, key)
            if entry is not None and (damage := entry.damage()):
                self._cache.remove(entry.directory, damage)
                entry = None
            if entry is None:
                with self._cache.making(kind, key) as making:
                    make(making.output)
                entry = self._cache.find(kind, key)
            self._copies[key] = Path(shutil.copytree(entry.output, self._directory / f"{kind}-{len(self._copies)}"))
        return self._copies[key]


@functools.cache
def _made_by(verb: str) -> dict[str, Any]:
    here = Path(__file__).parent
    makers = {name: sha256_of(here / name) for name in MAKERS}
    return {"code": code_of(verb), "tools": tools_of(verb), "machine": machine(), "makers": makers}
