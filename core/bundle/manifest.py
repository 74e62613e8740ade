"""What a model directory or a bundle says of itself: manifest.json, as frozen dataclasses.

The runtime owns this contract; the stages that write it import it from here. Unknown fields are an error: a manifest
either means what this version understands or is refused.
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

from piston.core.errors import BundleCorruptError, BundleNotFoundError, BundleTooNewError
from piston.core.schema import ShapeError, shaped

SCHEMA = 1
FILE_NAME = "manifest.json"
HASHED_AT_ONCE = 1 << 24  # bytes

Kind = Literal["model", "bundle"]
FloatType = Literal["float32", "float16", "bfloat16"]
CacheType = Literal["float32", "float16", "bfloat16", "int8"]
ITEM_SIZES: Mapping[CacheType, int] = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """The decoder as the checkpoint's config describes it."""

    name: str
    architecture: str
    num_layers: int
    hidden_size: int
    vocab_size: int
    max_positions: int  # positions the graph is right for: its rotary or learned table ends here
    dtype: FloatType
    scheme: str = "fp"


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheSpec:
    """One key and one value tensor per layer, each [batch, num_kv_heads, capacity, head_dim]."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    dtype: CacheType

    @property
    def bytes_per_token(self) -> int:
        """Bytes that one position of one row takes over all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * ITEM_SIZES[self.dtype]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerSpec:
    """Which ids and texts frame a conversation; the vocabulary itself is tokenizer.json."""

    eos_token_ids: tuple[int, ...] = ()
    bos_token_id: int | None = None
    pad_token_id: int | None = None
    special_tokens: Mapping[str, str] = field(default_factory=dict)  # bos_token, eos_token, ...: template variables
    has_chat_template: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec:
    """One engine of a bundle: what was asked of the build and what came out."""

    target: str
    path: str
    cache: CacheSpec  # of this engine: targets differ in the type they keep
    asked: Mapping[str, Any]
    got: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRecord:
    """Size and hash of one file beside the manifest."""

    sha256: str
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A model directory (kind "model", one canonical graph) or a bundle (engines)."""

    kind: Kind
    model: ModelSpec
    cache: CacheSpec
    tokenizer: TokenizerSpec
    files: Mapping[str, FileRecord]
    engines: tuple[EngineSpec, ...] = ()
    generation: Mapping[str, Any] = field(default_factory=dict)  # the checkpoint's sampling defaults, not applied
    made_by: Mapping[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA

    @classmethod
    def read(cls, directory: Path) -> Self:
        """Read and validate directory/manifest.json.

        Raises:
            BundleNotFoundError: there is no manifest.
            BundleCorruptError: it is not JSON, or not of this shape.
            BundleTooNewError: its schema is later than this version knows.
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
                f"{source} has schema {schema}, this Piston reads up to {SCHEMA}; upgrade Piston or build it again."
            )
        try:
            return typing.cast("Self", shaped(cls, data))
        except ShapeError as problem:
            raise BundleCorruptError(f"{source}: {problem}; make the directory again.") from None

    def write(self, directory: Path) -> None:
        """Write directory/manifest.json."""
        text = json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False)
        (directory / FILE_NAME).write_text(text + "\n", encoding="utf-8")

    def verify(self, directory: Path) -> None:
        """Check that every recorded file is there with the recorded bytes.

        Raises:
            BundleCorruptError: naming the first file that is missing, escapes the directory, or differs, or the
                engine that is none of the recorded files.
        """
        for engine in self.engines:
            if engine.path not in self.files:
                raise BundleCorruptError(
                    f"{directory} has an engine {engine.path!r}, which is not among the recorded files; build it again."
                )
        for name, record in self.files.items():
            path = directory / name
            if not stays_inside(name):
                raise BundleCorruptError(f"{directory} records {name!r}, which lies outside it; do not trust it.")
            if not os.path.isfile(path):  # noqa: PTH113 - Path.is_file raises on a name that is too long (3.11)
                raise BundleCorruptError(f"{directory} lacks {name}; copy it whole or make it again.")
            if path.stat().st_size != record.size:
                size = path.stat().st_size
                raise BundleCorruptError(f"{path} has {size} bytes, {record.size} were recorded; make it again.")
            if sha256_of(path) != record.sha256:
                raise BundleCorruptError(f"{path} is not the file that was recorded (SHA-256 differs); make it again.")


def read_manifest(directory: Path) -> bytes:
    """The bytes of directory/manifest.json: what a signature is over. Raises as Manifest.read does."""
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
    """Whether a recorded file name, joined to a directory, lies in that directory; links are not followed."""
    path = Path(name)
    return not path.anchor and ".." not in path.parts


def sha256_of(path: Path) -> str:
    """Hash a file in bounded memory.

    In large pieces: between two of them a thread waits for the interpreter, which loading keeps busy.
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
