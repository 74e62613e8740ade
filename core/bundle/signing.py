"""Detached signatures of bundles, in the format of minisign (jedisct1.github.io/minisign): Ed25519 over BLAKE2b-512.

What is signed is manifest.json, which holds the hash of every other file. `minisign -Vm manifest.json -p KEY.pub`
checks the same signature. Secret keys are files without a password (minisign -W), as a CI system keeps them; others are
refused, and minisign itself signs with them.
"""

import base64
import binascii
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from piston.core.errors import MissingExtraError, MisuseError, SignatureError

SUFFIX = ".minisig"
_ALGORITHM, _PREHASHED, _NO_PASSWORD, _CHECKSUM = b"Ed", b"ED", b"\0\0", b"B2"
_UNTRUSTED, _TRUSTED = "untrusted comment: ", "trusted comment: "
_PUBLIC_SIZE, _SECRET_SIZE, _SIGNATURE_SIZE, _GLOBAL_SIZE = 42, 158, 74, 64
MAX_BYTES = 64 * 1024  # of a key or a signature


@dataclass(frozen=True, slots=True)
class PublicKey:
    """The key that others check with: 8 bytes of name and 32 of key."""

    name: bytes
    key: bytes

    @classmethod
    def parse(cls, text: str, source: str) -> Self:
        """Read a .pub file's text, or its second line alone. Raises MisuseError."""
        raw = _decoded(_last_line(text), source, "a public key")
        if len(raw) != _PUBLIC_SIZE or raw[:2] != _ALGORITHM:
            raise MisuseError(f"{source} is no public key of minisign.")
        return cls(raw[2:10], raw[10:])

    def __str__(self) -> str:
        return base64.b64encode(_ALGORITHM + self.name + self.key).decode()

    @property
    def shown_name(self) -> str:
        """As minisign prints it."""
        return self.name[::-1].hex().upper()


@dataclass(frozen=True, slots=True, repr=False)
class SecretKey:
    """The key that signs; never printed."""

    name: bytes
    seed: bytes
    public: bytes

    @classmethod
    def parse(cls, text: str, source: str) -> Self:
        """Read a secret key file's text. Raises MisuseError for one with a password, and for what is none."""
        raw = _decoded(_last_line(text), source, "a secret key")
        if len(raw) != _SECRET_SIZE or raw[:2] != _ALGORITHM or raw[4:6] != _CHECKSUM:
            raise MisuseError(f"{source} is no secret key of minisign.")
        if raw[2:4] != _NO_PASSWORD:
            raise MisuseError(f"{source} has a password; sign with `minisign -Sm BUNDLE/manifest.json -s {source}`.")
        name, seed, public, checksum = raw[54:62], raw[62:94], raw[94:126], raw[126:]
        # minisign -W leaves the checksum empty; the halves of the key then have to fit.
        if any(checksum) and hashlib.blake2b(_ALGORITHM + raw[54:126], digest_size=32).digest() != checksum:
            raise MisuseError(f"The secret key {source} is damaged: its checksum is wrong.")
        private = _ed25519().Ed25519PrivateKey.from_private_bytes(seed)
        if private.public_key().public_bytes_raw() != public:
            raise MisuseError(f"The secret key {source} is damaged: its halves do not fit.")
        return cls(name, seed, public)

    @classmethod
    def new(cls) -> Self:
        """A random key."""
        private = _ed25519().Ed25519PrivateKey.generate()
        return cls(os.urandom(8), private.private_bytes_raw(), private.public_key().public_bytes_raw())

    @property
    def public_key(self) -> PublicKey:
        """The other half."""
        return PublicKey(self.name, self.public)

    def to_text(self) -> str:
        """The file."""
        body = self.name + self.seed + self.public
        checksum = hashlib.blake2b(_ALGORITHM + body, digest_size=32).digest()
        raw = _ALGORITHM + _NO_PASSWORD + _CHECKSUM + bytes(48) + body + checksum
        return f"{_UNTRUSTED}minisign secret key\n{base64.b64encode(raw).decode()}\n"

    def sign(self, data: bytes, comment: str) -> str:
        """A signature file of `data` and of the comment, one line."""
        private = _ed25519().Ed25519PrivateKey.from_private_bytes(self.seed)
        signature = private.sign(hashlib.blake2b(data).digest())
        whole = private.sign(signature + comment.encode())
        first = base64.b64encode(_PREHASHED + self.name + signature).decode()
        return (
            f"{_UNTRUSTED}signature of a Piston bundle's manifest\n{first}\n"
            f"{_TRUSTED}{comment}\n{base64.b64encode(whole).decode()}\n"
        )


@dataclass(frozen=True, slots=True)
class Signer:
    """Whose signature a bundle must have, and where that lies if not beside the manifest."""

    key: PublicKey
    signature: Path | None = None

    @classmethod
    def of(cls, public_key: Path, signature: Path | None = None) -> Self:
        """The signer of a .pub file; raises MisuseError."""
        return cls(PublicKey.parse(read_text(public_key, "the public key"), str(public_key)), signature)

    def check(self, data: bytes, manifest: Path) -> str:
        """Check the signature over `data`, the bytes of the file `manifest`; its trusted comment.

        Raises:
            SignatureError: there is none, or as check_signature says.
            MisuseError: the file of the signature cannot be read.
            MissingExtraError: cryptography is not installed.
        """
        path = self.signature or manifest.with_name(manifest.name + SUFFIX)
        if not path.exists():
            raise SignatureError(f"There is no signature {path}; sign with `piston sign`, or name it by --signature.")
        return check_signature(data, read_text(path, "the signature"), self.key, str(path))


def check_signature(data: bytes, text: str, key: PublicKey, source: str) -> str:
    """Check a signature file over `data`; its trusted comment.

    Raises:
        SignatureError: it is of another key, over other bytes, or no signature.
    """
    lines = text.split("\n")
    if len(lines) not in {4, 5} or not lines[2].startswith(_TRUSTED):
        raise SignatureError(f"{source} is no signature of minisign.")
    try:
        first, whole = _decoded(lines[1], source, "a signature"), _decoded(lines[3], source, "a signature")
    except MisuseError as problem:
        raise SignatureError(str(problem)) from None
    comment = lines[2].removeprefix(_TRUSTED).rstrip("\r")
    if len(first) != _SIGNATURE_SIZE or len(whole) != _GLOBAL_SIZE or first[:2] not in {_PREHASHED, _ALGORITHM}:
        raise SignatureError(f"{source} is no signature of minisign.")
    if first[2:10] != key.name:
        raise SignatureError(
            f"{source} is of the key {first[2:10][::-1].hex().upper()}, not of {key.shown_name}; it is another's."
        )
    message = hashlib.blake2b(data).digest() if first[:2] == _PREHASHED else data
    _check(key, first[10:], message, f"{source} is not over these bytes: the manifest was changed after it was signed.")
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
        raise MisuseError(f"{path} is no text, so not {what}.") from None


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
        raise MisuseError(f"{source} is not {what} of minisign.") from None
