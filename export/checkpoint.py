"""What the user brought: a Hugging Face directory, a hub id or a GGUF file, checked and loaded in float32."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from piston.core.bundle.gguf_header import GgufHeader
from piston.core.bundle.interface import CacheSpec, FloatType
from piston.core.bundle.manifest import sha256_of
from piston.core.cache_dir import expand_user
from piston.core.errors import CheckpointError, CheckpointNotFoundError, MisuseError, UnsupportedModelError
from piston.export.architectures import check_supported
from piston.export.gguf.config import gguf_config, set_sampling
from piston.export.gguf.tensors import alone, check_tensors, restore_head_order
from piston.export.quiet import quiet

WEIGHT_PATTERNS = ("*.safetensors", "pytorch_model*.bin")
CONFIG_FILES = ("*.json", "*.model", "*.jinja", "additional_chat_templates/*.jinja", "*.txt")


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A checkpoint on this disk."""

    directory: Path
    name: str
    gguf: str | None = None  # file name inside directory
    revision: str | None = None
    trust_remote_code: bool = False
    header: GgufHeader | None = field(default=None, repr=False, compare=False)  # of the GGUF file

    @property
    def arguments(self) -> dict[str, Any]:
        """What every from_pretrained call needs; a GGUF file is read by its header and `alone`."""
        return {"pretrained_model_name_or_path": str(self.directory), "trust_remote_code": self.trust_remote_code}

    def hashes(self) -> dict[str, str]:
        """SHA-256 of every file that the export reads."""
        patterns = (self.gguf,) if self.gguf else (*WEIGHT_PATTERNS, *CONFIG_FILES)
        paths = {path for pattern in patterns for path in self.directory.glob(pattern)}
        return {path.relative_to(self.directory).as_posix(): sha256_of(path) for path in sorted(paths)}


def locate(source: str, *, revision: str | None = None, trust_remote_code: bool = False) -> Checkpoint:
    """Find a checkpoint; a hub id is downloaded (or taken from the hub's cache).

    Raises:
        CheckpointNotFoundError: nothing is there, or the hub does not give it.
        CheckpointError: the directory holds no model, or the header of the GGUF file is damaged.
        MisuseError: a revision of something local.
    """
    path = expand_user(source)
    if revision is not None and path.exists():
        raise MisuseError(f"--revision {revision} belongs to a hub id; {path} is a local checkpoint.")
    if path.is_file():
        if path.suffix != ".gguf":
            raise CheckpointError(
                f"{path} is a file but not .gguf; give a checkpoint directory, a hub id or a GGUF file."
            )
        return Checkpoint(directory=path.parent, name=path.stem, gguf=path.name, header=GgufHeader.read(path))
    if not path.is_dir():
        path, revision = _download(source, revision, with_code=trust_remote_code)
    if not (path / "config.json").is_file():
        raise CheckpointError(f"{path} has no config.json; give the directory that save_pretrained wrote.")
    if not any(next(path.glob(pattern), None) for pattern in WEIGHT_PATTERNS):
        raise CheckpointError(f"{path} has no weights ({' or '.join(WEIGHT_PATTERNS)}).")
    name = source if not Path(source).exists() else path.resolve().name
    return Checkpoint(directory=path, name=name, revision=revision, trust_remote_code=trust_remote_code)


def load_config(checkpoint: Checkpoint) -> Any:
    """Read the config and refuse, before any weight is read, what cannot be exported.

    Raises:
        CheckpointError: the config cannot be parsed.
        UnsupportedModelError: unknown architecture, mixture of experts, or weights quantized already.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    with quiet(), _translated(checkpoint, "config"):
        if checkpoint.header is not None:
            config = gguf_config(checkpoint.header)
            check_tensors(checkpoint.header, config)
        else:
            config = AutoConfig.from_pretrained(**checkpoint.arguments)
    names = getattr(config, "architectures", None)
    if not names:  # GGUF
        mapping = AutoModelForCausalLM._model_mapping  # noqa: SLF001
        names = (
            [mapping[type(config)].__name__] if type(config) in mapping else [f"of model type {config.model_type!r}"]
        )
    check_supported(names[0])
    if getattr(config, "quantization_config", None):
        raise UnsupportedModelError(
            f"{checkpoint.name} is quantized already; export the float checkpoint it came from."
        )
    return config


def load_model(checkpoint: Checkpoint) -> nn.Module:
    """Load the weights in float32 for evaluation, with transformers' eager attention.

    Raises:
        CheckpointError: a file is damaged, or the model needs a tensor that no file holds.
    """
    from transformers import AutoModelForCausalLM, GgufConfig

    with quiet(), _translated(checkpoint, "weights"), contextlib.ExitStack() as stack:
        arguments = checkpoint.arguments
        if checkpoint.header is not None:
            # Where the package `kernels` is installed, blocks would stay packed in modules that cannot be exported.
            arguments = stack.enter_context(alone(checkpoint.header)) | {
                "quantization_config": GgufConfig(dequantize=True),
                "config": gguf_config(checkpoint.header),
            }
        model, loading = AutoModelForCausalLM.from_pretrained(
            **arguments,
            dtype=torch.float32,
            attn_implementation="eager",
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # told below, by name
        )
    # transformers would go on with random values in their place
    if missing := sorted(loading["missing_keys"]):
        raise CheckpointError(f"{checkpoint.name} lacks {len(missing)} tensors, {missing[0]} first; it is incomplete.")
    if wrong := sorted(loading["mismatched_keys"], key=str):
        name, stored, expected = wrong[0]
        raise CheckpointError(
            f"{checkpoint.name} stores {name} as {list(stored)}, but its config says {list(expected)}; one is wrong."
        )
    if checkpoint.header is not None:
        restore_head_order(model, checkpoint.header)
        set_sampling(model.generation_config, checkpoint.header)
    model.requires_grad_(requires_grad=False)
    return model.eval()  # type: ignore[no-any-return]


def weights_dtype(checkpoint: Checkpoint, config: Any) -> FloatType:
    """The float type the checkpoint stores: float32, float16 or bfloat16. GGUF is dequantized to float32."""
    dtype = str(getattr(config, "dtype", None) or "float32").removeprefix("torch.")
    if checkpoint.gguf:
        return "float32"
    return {"float16": "float16", "bfloat16": "bfloat16"}.get(dtype, "float32")  # type: ignore[return-value]


def cache_spec_of(model: nn.Module) -> CacheSpec:
    """Ask the model what it caches, by running two tokens."""
    with torch.no_grad(), quiet():
        layers = model(torch.tensor([[1, 2]]), use_cache=True).past_key_values.layers
    kept = [(layer.keys, layer.values) for layer in layers if layer.keys is not None]
    if not kept:
        raise UnsupportedModelError("No layer keeps keys and values; it is no decoder that Piston exports.")
    sizes = [[(part.shape[1], part.shape[3]) for part in pair] for pair in kept]
    return CacheSpec.of_layers(sizes, "float32")


def _download(source: str, revision: str | None, *, with_code: bool) -> tuple[Path, str]:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        patterns = [*WEIGHT_PATTERNS, *CONFIG_FILES, *(["*.py"] if with_code else [])]
        path = Path(snapshot_download(source, revision=revision, allow_patterns=patterns))
    except HFValidationError:
        raise CheckpointNotFoundError(f"{source} is neither a directory, nor a .gguf file, nor a hub id.") from None
    except Exception as problem:  # the hub client raises many types, offline and online
        reason = str(problem).strip().splitlines()[0] if str(problem).strip() else type(problem).__name__
        raise CheckpointNotFoundError(
            f"{source} is no local directory or .gguf file, and the hub does not give it: {reason}"
        ) from problem
    return path, path.name  # a snapshot's directory is named by its commit


@contextlib.contextmanager
def _translated(checkpoint: Checkpoint, what: str) -> Iterator[None]:
    """transformers, safetensors and gguf raise whatever comes up; all of it means an unreadable checkpoint."""
    try:
        yield
    except (CheckpointError, MemoryError):
        raise
    except Exception as problem:
        lines = [line.strip() for line in str(problem).splitlines() if line.strip()] or [type(problem).__name__]
        told = " ".join(lines[: 2 if lines[0].endswith(":") else 1])  # a validator says what is wrong on the next line
        raise CheckpointError(f"The {what} of {checkpoint.name} cannot be read: {told}") from problem
