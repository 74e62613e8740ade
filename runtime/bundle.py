"""A bundle on disk: manifest, engines, tokenizer, template. Opening verifies it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from piston.core.bundle.manifest import FILE_NAME, EngineSpec, Manifest, read_manifest
from piston.core.bundle.signing import Signer
from piston.core.errors import BundleCorruptError, BundleError
from piston.runtime.text.chat_template import ChatTemplate
from piston.runtime.text.tokenizer import Tokenizer

TOKENIZER, TEMPLATE = "tokenizer.json", "chat_template.jinja"
ANSWERS = "answers.tokenizer.json"  # decodes, of a model whose answers are spelled otherwise than what it reads


@dataclass(frozen=True, slots=True)
class Bundle:
    """A verified directory and its manifest."""

    directory: Path
    manifest: Manifest
    manifest_bytes: bytes = b""  # that the manifest was read from
    signed: str | None = None  # the trusted comment of the signature, if that was checked

    @classmethod
    def open(cls, directory: str | Path, *, verify: bool = True, signer: Signer | None = None) -> Self:
        """Read the manifest and check every file's hash; `verify=False` leaves the hashes to the caller.

        With a `signer` the signature is checked first, on the same bytes that are then parsed as the manifest.

        Raises:
            BundleNotFoundError, BundleCorruptError, BundleTooNewError: see Manifest.
            SignatureError, MisuseError, MissingExtraError: see Signer.
        """
        path = Path(directory)
        data = read_manifest(path)
        signed = None if signer is None else signer.check(data, path / FILE_NAME)
        manifest = Manifest.parse(data, source=str(path / FILE_NAME))
        if verify:
            manifest.verify(path)
        return cls(path, manifest, data, signed)

    def engines(self, target: str | None = None) -> tuple[EngineSpec, ...]:
        """The engine of a target, those of a family such as tensorrt-rtx, or all of them; at least one.

        Raises:
            BundleError: this is a model directory, or no engine has that target.
        """
        if self.manifest.kind != "bundle":
            raise BundleError(
                f"{self.directory} is a model directory, not a bundle; "
                f"run `piston build {self.directory} -o BUNDLE --target ort-cpu` first."
            )
        for admits in (lambda spec: target in (None, spec.target), lambda spec: spec.target.split(":")[0] == target):
            if specs := tuple(spec for spec in self.manifest.engines if admits(spec)):
                return specs
        present = ", ".join(spec.target for spec in self.manifest.engines) or "none"
        raise BundleError(f"{self.directory} has no engine for {target or 'any target'}; it has: {present}.")

    def engine(self, target: str | None = None) -> EngineSpec:
        """The first of `engines`, whether it runs here or not; raises as that does."""
        return self.engines(target)[0]

    def tokenizer(self) -> Tokenizer:
        """Open tokenizer.json, and that of answers where there is one."""
        spec = self.manifest.tokenizer
        return Tokenizer.open(
            self.directory / TOKENIZER,
            bos_token_id=spec.bos_token_id,
            eos_token_ids=spec.eos_token_ids,
            answers=self.directory / ANSWERS if ANSWERS in self.manifest.files else None,
            unknown_ids=spec.unknown_ids,
        )

    def chat_template(self) -> ChatTemplate | None:
        """The checkpoint's chat template, if it has one, not yet compiled; raises BundleCorruptError."""
        spec = self.manifest.tokenizer
        if not spec.has_chat_template:
            return None
        try:
            source = (self.directory / TEMPLATE).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as problem:
            raise BundleCorruptError(
                f"Cannot read the chat template {self.directory / TEMPLATE} ({problem}); make the bundle again."
            ) from problem
        return ChatTemplate(source, special_tokens=spec.special_tokens)
