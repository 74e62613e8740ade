"""What the user brought: a Hugging Face directory, a hub id or a GGUF file, checked and loaded in float32."""

import contextlib
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from piston.checkpoint.architectures import check_supported
from piston.checkpoint.config_checks import check_config, check_written_labels, check_written_sizes, num_layers_of
from piston.checkpoint.gguf.config import gguf_config, set_sampling
from piston.checkpoint.gguf.tensors import alone, check_tensors, restore_head_order
from piston.checkpoint.json_files import read_object
from piston.checkpoint.quiet import quiet
from piston.checkpoint.weight_files import (
    StoredTensor,
    check_sizes,
    float_type_of,
    is_buffer,
    other_shape,
    stored_tensors,
)
from piston.core.bundle.gguf_header import GgufHeader
from piston.core.bundle.interface import CacheSpec, FloatType
from piston.core.bundle.manifest import sha256_of
from piston.core.cache_dir import expand_user
from piston.core.errors import CheckpointError, CheckpointNotFoundError, Error, MisuseError, UnsupportedModelError

WEIGHT_PATTERNS = ("*.safetensors", "pytorch_model*.bin")
ADAPTER_FILE = "adapter_config.json"
LONGEST_REASON = 400  # characters of another library's message
CONFIG_FILES = ("*.json", "*.model", "*.jinja", "additional_chat_templates/*.jinja", "*.txt")
# Modules behind the transformer, as sentence-transformers stores them: 1_Pooling, 2_Dense.
MODULE_FILES = tuple(f"[0-9]*_*/{name}" for name in ("config.json", "model.safetensors", "pytorch_model.bin"))


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

    def written_config(self) -> dict[str, Any]:
        """The object in config.json; empty where there is none, which `load_config` refuses."""
        try:
            return {} if self.gguf else read_object(self.directory / "config.json")
        except CheckpointError:
            return {}

    def hashes(self) -> dict[str, str]:
        """SHA-256 of every file that the export reads."""
        patterns = (self.gguf,) if self.gguf else (*WEIGHT_PATTERNS, *CONFIG_FILES, *MODULE_FILES)
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
    if (path / ADAPTER_FILE).exists():
        raise CheckpointError(
            f"{path} holds an adapter ({ADAPTER_FILE}), which would change the answers; merge it into the base model "
            "first (PEFT's merge_and_unload, then save_pretrained), or move it away to export the base model alone."
        )
    if not (path / "config.json").is_file():
        raise CheckpointError(f"{path} has no config.json; give the directory that save_pretrained wrote.")
    if not any(next(path.glob(pattern), None) for pattern in WEIGHT_PATTERNS):
        raise CheckpointError(f"{path} has no weights ({' or '.join(WEIGHT_PATTERNS)}).")
    name = source if not Path(source).exists() else path.resolve().name
    return Checkpoint(directory=path, name=name, revision=revision, trust_remote_code=trust_remote_code)


CAUSAL_LM = "AutoModelForCausalLM"  # the class of transformers that a task's model is loaded by


def check_decoder(config: Any) -> None:
    """Raise UnsupportedModelError for the config of what is no decoder that Piston exports."""
    mapping = auto_class(CAUSAL_LM)._model_mapping  # noqa: SLF001
    built = [mapping[type(config)].__name__] if type(config) in mapping else []
    # A config names its class, GGUF does not; transformers builds that of the model type, unless it is remote code.
    named = getattr(config, "architectures", None)
    if not isinstance(named, list) or not named:
        named = built or [f"of model type {config.model_type!r}"]
    for name in (str(named[0]), *built):
        check_supported(name)


def auto_class(name: str) -> Any:
    """AutoModelForCausalLM and its kin."""
    import transformers

    return getattr(transformers, name)


def load_config(checkpoint: Checkpoint, check: Callable[[Any], None] = check_decoder) -> Any:
    """Read the config and refuse, before any weight is read, what cannot be exported; `check` knows architectures.

    Raises:
        CheckpointError: the config cannot be parsed.
        UnsupportedModelError: unknown architecture, mixture of experts, or weights quantized already.
    """
    from transformers import AutoConfig

    try:
        with quiet(), _reading(checkpoint, "config"):
            if checkpoint.header is not None:
                config = gguf_config(checkpoint.header)
                check_tensors(checkpoint.header, config)
            else:
                config = AutoConfig.from_pretrained(**checkpoint.arguments)
    except CheckpointError:
        written = checkpoint.written_config()
        check_written_sizes(checkpoint.name, written)  # a size of 0 is a division by zero in there
        check_written_labels(checkpoint.name, written)
        raise
    check(config)
    if getattr(config, "quantization_config", None):
        raise UnsupportedModelError(
            f"{checkpoint.name} is quantized already; export the float checkpoint it came from."
        )
    with quiet():
        check_config(checkpoint.name, config)
    return config


def check_weights(checkpoint: Checkpoint, config: Any, auto: str = CAUSAL_LM) -> dict[str, StoredTensor]:
    """Compare the headers of the weight files with the config, before any memory is taken; what the files hold.

    Raises:
        CheckpointError: a header is damaged, a tensor has another shape, or the files hold far less than the model.
    """
    if checkpoint.gguf:
        return {}
    with _reading(checkpoint, "weights"):
        stored = stored_tensors(checkpoint.directory)
    if (layers := num_layers_of(config)) > len(stored):
        raise CheckpointError(
            f"The config of {checkpoint.name} says {layers:,} layers, but its files hold {len(stored)} tensors; one "
            "is wrong, or a file is missing."
        )
    with quiet(), _reading(checkpoint, "config"), torch.device("meta"):
        model = auto_class(auto).from_config(config, trust_remote_code=checkpoint.trust_remote_code)
    check_sizes(checkpoint.name, model, stored)
    return stored


def load_model(checkpoint: Checkpoint, auto: str = CAUSAL_LM, unused: tuple[str, ...] = ()) -> nn.Module:
    """Load the weights in float32 for evaluation, with transformers' eager attention.

    Tensors whose names begin with one of `unused` do not matter: the task reads nothing that is computed from them.

    Raises:
        CheckpointError: a file is damaged, the model needs a tensor that no file holds, or does not take one they hold.
    """
    from transformers import GgufConfig

    with quiet(), _reading(checkpoint, "weights"), contextlib.ExitStack() as stack:
        arguments = checkpoint.arguments
        if checkpoint.header is not None:
            # Where the package `kernels` is installed, blocks would stay packed in modules that cannot be exported.
            arguments = stack.enter_context(alone(checkpoint.header)) | {
                "quantization_config": GgufConfig(dequantize=True),
                "config": gguf_config(checkpoint.header),
            }
        model, loading = auto_class(auto).from_pretrained(
            **arguments,
            dtype=torch.float32,
            attn_implementation="eager",
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # told below, by name
        )
    # transformers would go on with random values in their place
    if missing := sorted(name for name in loading["missing_keys"] if not name.startswith(unused)):
        raise CheckpointError(f"{checkpoint.name} lacks {len(missing)} tensors, {missing[0]} first; it is incomplete.")
    if wrong := sorted(loading["mismatched_keys"], key=str):
        raise other_shape(checkpoint.name, model, *wrong[0])
    if checkpoint.header is not None:
        restore_head_order(model, checkpoint.header)
        set_sampling(model.generation_config, checkpoint.header)
    if extra := sorted(
        name for name in loading["unexpected_keys"] if not is_buffer(name) and not name.startswith(unused)
    ):
        shown = ", ".join(extra[:3]) + (", ..." if len(extra) > 3 else "")  # noqa: PLR2004
        raise CheckpointError(
            f"{checkpoint.name} stores {len(extra)} tensors that {type(model).__name__} with this config does not "
            f"take: {shown}; correct config.json (a bias, a number of layers) or remove them."
        )
    model.requires_grad_(requires_grad=False)
    return model.eval()  # type: ignore[no-any-return]


def weights_dtype(checkpoint: Checkpoint, stored: Mapping[str, StoredTensor]) -> tuple[FloatType, str | None]:
    """The float type that the files store, whatever the config says, and a remark where they mix several.

    GGUF is dequantized to float32.
    """
    return ("float32", None) if checkpoint.gguf else float_type_of(stored)


def cache_spec_of(model: nn.Module) -> CacheSpec:
    """Ask the model what it caches, by running a token."""
    with torch.no_grad(), quiet():
        layers = model(torch.zeros(1, 1, dtype=torch.int64), use_cache=True).past_key_values.layers
    kept = [(layer.keys, layer.values) for layer in layers if layer.keys is not None]
    if not kept:
        raise UnsupportedModelError("No layer keeps keys and values; it is no decoder that Piston exports.")
    sizes = [[(part.shape[1], part.shape[3]) for part in pair] for pair in kept]
    return CacheSpec.of_layers(sizes, "float32")


def _download(source: str, revision: str | None, *, with_code: bool) -> tuple[Path, str]:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        patterns = [*WEIGHT_PATTERNS, *CONFIG_FILES, *MODULE_FILES, *(["*.py"] if with_code else [])]
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
def translated(problem: str) -> Iterator[None]:
    """Tell whatever transformers, torch, safetensors and gguf raise as one line that begins with `problem`."""
    try:
        yield
    except (Error, MemoryError):
        raise
    except Exception as cause:
        lines = str(cause).strip().splitlines() or [type(cause).__name__]
        reason = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]  # a heading says nothing
        raise CheckpointError(f"{problem}: {textwrap.shorten(reason, LONGEST_REASON)}") from cause


def _reading(checkpoint: Checkpoint, what: str) -> contextlib.AbstractContextManager[None]:
    return translated(f"The {what} of {checkpoint.name} cannot be read")
