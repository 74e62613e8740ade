"""manifest.json, which describes a model directory or a bundle, as frozen dataclasses.

The stages that write it and the runtime that reads it import it from here. A reader ignores fields that it does not
know, unless the manifest names them in `requires`. Manifests of schema 1 are converted to this form when read.
"""

import dataclasses
import hashlib
import json
import os
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

from piston.core.bundle.interface import DECODER, CacheSpec, FloatType, GraphInterface, StateSpec, decoder_interface
from piston.core.errors import BundleCorruptError, BundleNotFoundError, BundleTooNewError, MisuseError
from piston.core.json_text import json_text
from piston.core.schema import SchemaError, validated

SCHEMA = 2
FILE_NAME = "manifest.json"
HASHED_AT_ONCE = 1 << 24  # bytes

Kind = Literal["model", "bundle"]
TEXT_GENERATION = "text-generation"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """The model as the checkpoint's config describes it."""

    name: str
    architecture: str
    num_layers: int
    hidden_size: int
    vocab_size: int
    max_positions: int  # positions the graph is correct for: its rotary or learned table ends here
    dtype: FloatType
    scheme: str = "fp"
    num_heads: int = 0  # of attention in an encoder; 0 where there is none, or from before this was recorded


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerSpec:
    """Which ids and texts frame a conversation; the vocabulary itself is tokenizer.json."""

    eos_token_ids: tuple[int, ...] = ()
    bos_token_id: int | None = None
    pad_token_id: int | None = None
    special_tokens: Mapping[str, str] = field(default_factory=dict)  # bos_token, eos_token, ...: template variables
    has_chat_template: bool = False
    # Where tokenizer.json has ids that the model does not have: the first of them, and the token that they become.
    unknown_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec:
    """One engine of a bundle: its file and states for each graph, the requested options and the actual result."""

    target: str
    files: Mapping[str, str]  # graph -> file, relative to the bundle
    states: Mapping[str, tuple[StateSpec, ...]]  # graph -> states as this target stores them: types differ by target
    requested: Mapping[str, Any]
    actual: Mapping[str, Any]

    @classmethod
    def of(
        cls,
        *,
        target: str,
        path: str,
        cache: CacheSpec | None = None,
        requested: Mapping[str, Any],
        actual: Mapping[str, Any],
        graph: str = DECODER,
    ) -> Self:
        """An engine of one graph; a graph without a cache has no states."""
        states = () if cache is None else cache.states
        return cls(target=target, files={graph: path}, states={graph: states}, requested=requested, actual=actual)

    @property
    def path(self) -> str:
        """The file of the only graph, or of the decoder."""
        return self.files[DECODER] if DECODER in self.files else next(iter(self.files.values()))

    @property
    def cache(self) -> CacheSpec:
        """The states that the decoder's steps write; none where there is no decoder."""
        return CacheSpec.of_kind(self.states.get(DECODER, ()), cross=False)

    @property
    def cross(self) -> CacheSpec:
        """The states of the decoder that the encoder writes; none where there is no encoder, or no decoder."""
        return CacheSpec.of_kind(self.states.get(DECODER, ()), cross=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRecord:
    """Size and hash of one file of the directory."""

    sha256: str
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A model directory (kind "model", canonical graphs) or a bundle (engines)."""

    kind: Kind
    task: str = TEXT_GENERATION  # what it is for, named as the Hugging Face hub does
    model: ModelSpec
    graphs: Mapping[str, GraphInterface]
    tokenizer: TokenizerSpec
    files: Mapping[str, FileRecord]
    engines: tuple[EngineSpec, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)  # of the task: labels, pooling, prompts by name
    requires: tuple[str, ...] = ()  # fields that a reader must know
    generation: Mapping[str, Any] = field(default_factory=dict)  # the checkpoint's sampling defaults, not applied
    made_by: Mapping[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA

    @property
    def cache(self) -> CacheSpec:
        """The states that the decoder's steps write; none where there is no decoder."""
        return CacheSpec.of_kind(self.graphs[DECODER].states if DECODER in self.graphs else (), cross=False)

    @property
    def cross(self) -> CacheSpec:
        """The states of the decoder that the encoder writes; none where there is no encoder, or no decoder."""
        return CacheSpec.of_kind(self.graphs[DECODER].states if DECODER in self.graphs else (), cross=True)

    def require_task(self, task: str, source: str | Path) -> None:
        """Raise MisuseError for a manifest of another task; `source` is the directory that it is of."""
        if self.task != task:
            raise MisuseError(
                f"{source} is for {self.task}, and a model for {task} is needed here; `piston run {source}` does what "
                "it is for."
            )

    @classmethod
    def of_decoder(cls, *, cache: CacheSpec, model: ModelSpec, **fields: Any) -> Self:
        """The manifest of a language model: its one graph is the decoder."""
        return cls(model=model, graphs={DECODER: decoder_interface(cache, model.vocab_size)}, **fields)

    @classmethod
    def read(cls, directory: Path) -> Self:
        """Read and validate directory/manifest.json.

        Raises:
            BundleNotFoundError: there is no manifest.
            BundleCorruptError: it is not JSON, or does not have this form.
            BundleTooNewError: its schema is newer than this version knows.
        """
        return cls.parse(read_manifest(directory), source=str(directory / FILE_NAME))

    @classmethod
    def parse(cls, data: bytes, source: str = FILE_NAME) -> Self:
        """Validate the bytes of a manifest; `source` names it in errors. Raises as `read` does."""
        try:
            parsed = json.loads(data.decode("utf-8"))
        except (ValueError, RecursionError) as problem:
            raise BundleCorruptError(f"{source} cannot be read ({problem}); make the directory again.") from None
        return cls.from_json(parsed, source=source)

    @classmethod
    def from_json(cls, data: object, source: str = FILE_NAME) -> Self:
        """Validate parsed JSON; `source` names it in errors. Raises as `read` does."""
        schema = data.get("schema") if isinstance(data, dict) else None
        if not isinstance(schema, int) or isinstance(schema, bool) or schema < 1:
            raise BundleCorruptError(f"{source} has no schema number; it is not a manifest.")
        if schema > SCHEMA:
            raise BundleTooNewError(
                f"{source} has schema {schema}, but this Piston reads up to {SCHEMA}; upgrade Piston or build it again."
            )
        try:
            if schema < SCHEMA:
                from piston.core.bundle.schema1 import upgraded  # rare: every start would pay for its classes

                data = upgraded(data)
            found = typing.cast("Self", validated(cls, data, ignore_unknown=True))
        except SchemaError as problem:
            raise BundleCorruptError(f"{source}: {problem}; make the directory again.") from None
        known = {item.name for item in dataclasses.fields(cls)}
        if unknown := [name for name in found.requires if name not in known]:
            raise BundleTooNewError(
                f"{source} requires {unknown[0]!r}, which this Piston does not know; upgrade Piston."
            )
        found.check_graphs(source)
        return found

    def check_graphs(self, source: str) -> None:
        """Raise BundleCorruptError where graphs, engines and states contradict one another or the task."""
        if self.task == TEXT_GENERATION and (DECODER not in self.graphs or not self.graphs[DECODER].states):
            raise BundleCorruptError(f"{source} is for {self.task}, but has no decoder with states; make it again.")
        every = [*(graph.states for graph in self.graphs.values())]
        every += [states for engine in self.engines for states in engine.states.values()]
        for state in (state for states in every for state in states):
            if state.problem is not None:
                raise BundleCorruptError(
                    f"{source}: the state {state.input!r} is wrong: {state.problem}; make it again."
                )
        for engine in self.engines:
            if set(engine.files) != set(self.graphs) or set(engine.states) != set(self.graphs):
                raise BundleCorruptError(
                    f"{source}: the engine {engine.target!r} has the graphs {', '.join(engine.files) or 'none'}, the "
                    f"manifest has {', '.join(self.graphs)}; build it again."
                )
            for graph, states in engine.states.items():
                if [state.input for state in states] != [state.input for state in self.graphs[graph].states]:
                    raise BundleCorruptError(
                        f"{source}: the engine {engine.target!r} has other states than its graph; build it again."
                    )

    def write(self, directory: Path) -> None:
        """Write directory/manifest.json."""
        text = json_text(dataclasses.asdict(self), indent=1, ensure_ascii=False)
        (directory / FILE_NAME).write_text(text + "\n", encoding="utf-8")

    def verify(self, directory: Path) -> None:
        """Check that every recorded file is there with the recorded bytes.

        Raises:
            BundleCorruptError: naming the first file that is missing, escapes the directory, or differs, or the
                engine whose file is not recorded.
        """
        for engine in self.engines:
            for name in engine.files.values():
                if name not in self.files:
                    raise BundleCorruptError(
                        f"{directory} has an engine {name!r}, which is not among the recorded files; build it again."
                    )
        for name, record in self.files.items():
            path = directory / name
            if not stays_inside(name):
                raise BundleCorruptError(
                    f"{directory} records {name!r}, which is outside the directory; do not trust it."
                )
            if not os.path.isfile(path):  # noqa: PTH113 - Path.is_file raises on a name that is too long (3.11)
                raise BundleCorruptError(f"{directory} lacks {name}; copy it whole or make it again.")
            if path.stat().st_size != record.size:
                size = path.stat().st_size
                raise BundleCorruptError(f"{path} has {size} bytes, {record.size} were recorded; make it again.")
            if sha256_of(path) != record.sha256:
                raise BundleCorruptError(f"{path} is not the file that was recorded (SHA-256 differs); make it again.")


def read_manifest(directory: Path) -> bytes:
    """The bytes of directory/manifest.json, which a signature covers. Raises as Manifest.read does."""
    try:
        return (directory / FILE_NAME).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise BundleNotFoundError(
            f"No {FILE_NAME} in {directory}; give a directory that `piston export` or `piston build` wrote."
        ) from None
    except (ValueError, OSError) as problem:
        raise BundleCorruptError(
            f"{directory / FILE_NAME} cannot be read ({problem}); make the directory again."
        ) from None


def stays_inside(name: str) -> bool:
    """Whether a recorded file name, joined to a directory, stays inside it; links are not followed."""
    path = Path(name)
    return not path.anchor and ".." not in path.parts


def sha256_of(path: Path) -> str:
    """Hash a file in bounded memory.

    In large pieces: between two of them the thread waits for the interpreter lock, which loading keeps busy.
    """
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        piece = memoryview(bytearray(max(1, min(HASHED_AT_ONCE, os.fstat(file.fileno()).st_size))))
        while count := file.readinto(piece):
            digest.update(piece[:count])
    return digest.hexdigest()


def record_files(directory: Path) -> dict[str, FileRecord]:
    """Record every file below directory, except the manifest itself, by its relative name."""
    paths = sorted(path for path in directory.rglob("*") if path.is_file() and path != directory / FILE_NAME)
    return {
        path.relative_to(directory).as_posix(): FileRecord(sha256=sha256_of(path), size=path.stat().st_size)
        for path in paths
    }
