"""Detached signatures of bundles, in the format of minisign (jedisct1.github.io/minisign): Ed25519 over BLAKE2b-512.

The signature covers manifest.json, which holds the hash of every other file: `minisign -Sm BUNDLE/manifest.json`.
"""

import base64
import binascii
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from piston.core.errors import MissingExtraError, MisuseError, SignatureError

SUFFIX = ".minisig"
_ALGORITHM, _PREHASHED = b"Ed", b"ED"
_TRUSTED = "trusted comment: "
_PUBLIC_SIZE, _SIGNATURE_SIZE, _GLOBAL_SIZE = 42, 74, 64
MAX_BYTES = 64 * 1024  # of a key or a signature


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A public key: 8 bytes of key id and 32 of key."""

    name: bytes
    key: bytes

    @classmethod
    def parse(cls, text: str, source: str) -> Self:
        """Read a .pub file's text, or its second line alone. Raises MisuseError."""
        raw = _decoded(_last_line(text), source, "a public key")
        if len(raw) != _PUBLIC_SIZE or raw[:2] != _ALGORITHM:
            raise MisuseError(f"{source} is not a minisign public key.")
        return cls(raw[2:10], raw[10:])

    @property
    def shown_name(self) -> str:
        """As minisign prints it."""
        return self.name[::-1].hex().upper()


@dataclass(frozen=True, slots=True)
class Signer:
    """The key that must have signed a bundle, and the signature's path if it is not next to the manifest."""

    key: PublicKey
    signature: Path | None = None

    @classmethod
    def of(cls, public_key: Path, signature: Path | None = None) -> Self:
        """The signer of a .pub file; raises MisuseError."""
        return cls(PublicKey.parse(read_text(public_key, "the public key"), str(public_key)), signature)

    def check(self, data: bytes, manifest: Path) -> str:
        """Check the signature of `data`, the bytes of the file `manifest`; return its trusted comment.

        Raises:
            SignatureError: there is none, or see check_signature.
            MisuseError: the file of the signature cannot be read.
            MissingExtraError: cryptography is not installed.
        """
        path = self.signature or manifest.with_name(manifest.name + SUFFIX)
        if not path.exists():
            raise SignatureError(
                f"There is no signature {path}; sign with `minisign -Sm {manifest}`, or name it by --signature."
            )
        return check_signature(data, read_text(path, "the signature"), self.key, str(path))


def check_signature(data: bytes, text: str, key: PublicKey, source: str) -> str:
    """Check a signature file against `data`; return its trusted comment.

    Raises:
        SignatureError: it was made with another key, for other bytes, or is not a signature.
    """
    lines = text.split("\n")
    if len(lines) not in {4, 5} or not lines[2].startswith(_TRUSTED):
        raise SignatureError(f"{source} is not a minisign signature.")
    try:
        first, whole = _decoded(lines[1], source, "a signature"), _decoded(lines[3], source, "a signature")
    except MisuseError as problem:
        raise SignatureError(str(problem)) from None
    comment = lines[2].removeprefix(_TRUSTED).rstrip("\r")
    if len(first) != _SIGNATURE_SIZE or len(whole) != _GLOBAL_SIZE or first[:2] not in {_PREHASHED, _ALGORITHM}:
        raise SignatureError(f"{source} is not a minisign signature.")
    if first[2:10] != key.name:
        raise SignatureError(
            f"{source} was made with the key {first[2:10][::-1].hex().upper()}, not with {key.shown_name}."
        )
    message = hashlib.blake2b(data).digest() if first[:2] == _PREHASHED else data
    _check(key, first[10:], message, f"{source} does not match the manifest, which was changed after it was signed.")
    _check(key, whole, first[10:] + comment.encode(), f"The trusted comment of {source} was changed.")
    return comment


def read_text(path: Path, what: str) -> str:
    """The text of a key or signature file; raises MisuseError."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise MisuseError(f"{path} is too long for {what}.")
        return path.read_text(encoding="utf-8")
    except OSError as problem:
        raise MisuseError(f"Cannot read {what} {path}: {problem.strerror}.") from None
    except UnicodeDecodeError:
        raise MisuseError(f"{path} is not text, so it is not {what}.") from None


def _check(key: PublicKey, signature: bytes, message: bytes, otherwise: str) -> None:
    from cryptography.exceptions import InvalidSignature

    try:
        _ed25519().Ed25519PublicKey.from_public_bytes(key.key).verify(signature, message)
    except InvalidSignature:
        raise SignatureError(f"{otherwise} Do not trust the bundle.") from None


def _ed25519() -> Any:
    try:
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError:
        raise MissingExtraError("Signatures need cryptography; pip install 'piston[sign]'.") from None
    return ed25519


def _last_line(text: str) -> str:
    return next((line for line in reversed(text.split("\n")) if line.strip()), "")


def _decoded(line: str, source: str, what: str) -> bytes:
    try:
        return base64.b64decode(line.strip(), validate=True)
    except (binascii.Error, ValueError):
        raise MisuseError(f"{source} is not {what} in minisign's format.") from None
