"""Modules of one's own: a bundle becomes a Module, arrays in, arrays out."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from piston.core.bundle.examples import EXAMPLES, Example, read_examples
from piston.core.bundle.hashing import Hashing
from piston.core.bundle.interface import MODULE, GraphInterface
from piston.core.errors import MisuseError
from piston.runtime.bundle import Bundle

if TYPE_CHECKING:
    from piston.core.bundle.manifest import EngineSpec, Manifest
    from piston.runtime.backends.session import Session

TASK = "module"
Array = NDArray[Any]


class Module:
    """A loaded bundle of a module; a context manager that frees the engine."""

    def __init__(self, manifest: "Manifest", session: "Session", directory: Path) -> None:
        self.manifest = manifest
        self.interface: GraphInterface = manifest.graphs[MODULE]
        self.target = ""  # of the engine, as the bundle names it
        self.remarks: tuple[str, ...] = ()  # where `load` deviated from what the bundle was built for, and why
        self._session = session
        self._directory = directory

    @property
    def examples(self) -> list[Example]:
        """Inputs, and the outputs that the module gave for them when it was exported; raises BundleCorruptError."""
        return read_examples(self._directory / EXAMPLES)

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Array]:
        """Compute every output by name.

        Args:
            feeds: an array for each input, of its type and its shape; axes of one name have one size.

        Raises:
            MisuseError: an input is missing, unknown, or of another type or shape.
            EngineError: the backend fails.
        """
        return self._session.run(self.checked(feeds))

    def checked(self, feeds: Mapping[str, Any]) -> dict[str, Array]:
        """The feeds as arrays of the inputs' types; Python numbers and lists become arrays. Raises as `run` does."""
        known = {tensor.name: tensor for tensor in self.interface.inputs}
        if set(feeds) != set(known):
            odd = min(set(feeds) ^ set(known))
            verb = "is no input" if odd in feeds else "is missing"
            raise MisuseError(f"{odd!r} {verb}; the inputs are: {', '.join(known)}.")
        arrays = {}
        for name, given in feeds.items():
            array = np.asarray(given) if isinstance(given, np.ndarray) else np.asarray(given, known[name].dtype)
            if array.dtype.name != known[name].dtype:
                raise MisuseError(f"{name!r} is {array.dtype}; it must be {known[name].dtype}.")
            arrays[name] = np.ascontiguousarray(array)
        try:
            self.interface.sizes_of({name: array.shape for name, array in arrays.items()})
        except ValueError as problem:
            raise MisuseError(f"{problem}.") from None
        return arrays

    def close(self) -> None:
        """Free the engine."""
        self._session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_model(
    bundle: Bundle,
    *,
    target: str | None = None,
    max_batch: int | None = None,
    max_length: int | None = None,
    threads: int = 0,
) -> Module:
    """Load an engine of a bundle that was opened unverified; arguments and errors as of `piston.runtime.load`."""
    bundle.manifest.require_task(TASK, bundle.directory)
    if max_batch is not None or max_length is not None:
        raise MisuseError("A module has no max_batch and no max_length: its inputs say how large they may be.")
    hashing = Hashing.begin(bundle.manifest, bundle.directory)
    from piston.runtime.backends.registry import Sizes, candidates, open_session
    from piston.runtime.loading import open_first

    def opened(spec: "EngineSpec") -> Module:
        session = open_session(bundle, spec, Sizes(num_slots=1, capacity=1, threads=threads))
        model = Module(bundle.manifest, session, bundle.directory)
        model.target = spec.target
        return model

    model, remarks = open_first(candidates(bundle, target), opened)
    model.remarks = remarks
    try:
        hashing.result()
    except BaseException:
        model.close()
        raise
    return model
