"""What follows the encoder in a checkpoint of sentence-transformers: pooling, dense layers, normalization.

modules.json lists the modules in order, each with the directory of its config.json. All of it becomes part of the
graph. A checkpoint without modules.json gets the mean of its tokens, as sentence-transformers gives it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from piston.checkpoint.checkpoint import Checkpoint, translated
from piston.checkpoint.json_files import read_json, read_object, read_optional
from piston.checkpoint.task import MODULES, TRANSFORMER
from piston.core.bundle.manifest import stays_inside
from piston.core.errors import CheckpointError, UnsupportedModelError
from piston.export.heads import last_token

POOLING, DENSE, NORMALIZE = "Pooling", "Dense", "Normalize"
# Key of the older form, which has one for each mode, in the order in which several are joined.
OLDER = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
ACTIVATIONS: Mapping[str, Callable[[], nn.Module]] = {
    "Identity": nn.Identity,
    "Tanh": nn.Tanh,
    "ReLU": nn.ReLU,
    "GELU": nn.GELU,
    "SiLU": nn.SiLU,
    "Sigmoid": nn.Sigmoid,
}


def _cls(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    del mask
    return hidden[:, 0]


def _max(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return hidden.masked_fill(~mask[..., None], torch.finfo(hidden.dtype).min).amax(dim=1)


def _mean(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    weights = mask[..., None].to(hidden.dtype)
    return (hidden * weights).sum(dim=1) / weights.sum(dim=1)


def _mean_sqrt(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    weights = mask[..., None].to(hidden.dtype)
    return (hidden * weights).sum(dim=1) / weights.sum(dim=1).sqrt()


def _weighted_mean(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    weights = (mask * torch.arange(1, mask.shape[1] + 1)[None])[..., None].to(hidden.dtype)
    return (hidden * weights).sum(dim=1) / weights.sum(dim=1)


# Hidden states [batch, seq, hidden] and a mask bool [batch, seq] of what is no padding, to [batch, hidden].
POOLINGS: Mapping[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "cls": _cls,
    "max": _max,
    "mean": _mean,
    "mean_sqrt_len_tokens": _mean_sqrt,
    "weightedmean": _weighted_mean,
    "lasttoken": last_token,
}


class Normalize(nn.Module):
    """To length 1."""

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        """Of each row [batch, dim]."""
        return functional.normalize(pooled, p=2.0, dim=1)


class SentenceHead(nn.Module):
    """Pooling, and what follows it."""

    def __init__(self, modes: tuple[str, ...], layers: list[nn.Module]) -> None:
        super().__init__()
        self.modes = modes
        self.layers = nn.ModuleList(layers)

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Hidden states [batch, seq, hidden] and a mask bool [batch, seq] to [batch, dim]."""
        parts = [POOLINGS[mode](hidden, mask) for mode in self.modes]
        pooled = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
        for layer in self.layers:
            pooled = layer(pooled)
        return pooled


@dataclass(frozen=True, slots=True)
class SentenceModules:
    """The head, and what the checkpoint says of texts."""

    head: SentenceHead
    max_length: int | None  # tokens of a text, its frame included
    is_lowercase: bool  # texts are written small first
    prompts: Mapping[str, str]
    default_prompt: str | None
    remarks: tuple[str, ...]

    @property
    def is_normalized(self) -> bool:
        """Whether embeddings have length 1."""
        return any(isinstance(layer, Normalize) for layer in self.head.layers)


def read_modules(checkpoint: Checkpoint) -> SentenceModules:
    """Read modules.json and what it names.

    Raises:
        CheckpointError: a file is missing or damaged.
        UnsupportedModelError: a module, a pooling or an activation that has no form in the graph.
    """
    directory = checkpoint.directory
    texts = read_optional(directory / "sentence_bert_config.json")
    saved = read_optional(directory / "config_sentence_transformers.json")
    remarks: tuple[str, ...] = ()
    if (directory / MODULES).is_file():
        head = _head(directory)
    else:
        head = SentenceHead(("mean",), [])
        remarks = (f"the checkpoint has no {MODULES}: embeddings are the mean of the tokens, not normalized.",)
    prompts, default = saved.get("prompts") or {}, saved.get("default_prompt_name")
    if not isinstance(prompts, dict) or not all(isinstance(text, str | None) for text in prompts.values()):
        raise CheckpointError(f"The prompts of {checkpoint.name} are {prompts!r:.60}; they must be texts by name.")
    prompts = {name: text or "" for name, text in prompts.items()}
    if default is not None and (not isinstance(default, str) or default not in prompts):
        raise CheckpointError(f"{checkpoint.name} names {default!r} as its default prompt, and has no such prompt.")
    length = texts.get("max_seq_length")
    if length is not None and (not isinstance(length, int) or length < 2):  # noqa: PLR2004
        raise CheckpointError(f"max_seq_length of {checkpoint.name} is {length!r}; it must be an integer from 2.")
    return SentenceModules(head.eval(), length, bool(texts.get("do_lower_case")), prompts, default, remarks)


def _head(directory: Path) -> SentenceHead:
    listed = read_json(directory / MODULES)
    if not isinstance(listed, list) or not all(isinstance(item, dict) and "type" in item for item in listed):
        raise CheckpointError(f"{directory / MODULES} is no list of modules; copy it again.")
    kinds = [str(item["type"]).rpartition(".")[2] for item in listed]
    if kinds[:2] != [TRANSFORMER, POOLING] or listed[0].get("path"):
        raise UnsupportedModelError(
            f"{directory / MODULES} begins with {', '.join(kinds[:2]) or 'nothing'}; a transformer in the checkpoint's "
            "own directory and a pooling are supported."
        )
    layers = []
    for item, kind in list(zip(listed, kinds, strict=True))[2:]:
        if kind == DENSE:
            layers += _dense(module_path(directory, item))
        elif kind == NORMALIZE:
            layers.append(Normalize())
        else:
            raise UnsupportedModelError(
                f"The module {kind} in {directory / MODULES} has no form in the graph; Dense and Normalize may follow "
                "the pooling."
            )
    return SentenceHead(_modes(module_path(directory, listed[1])), layers)


def module_path(directory: Path, listed: Mapping[str, Any]) -> Path:
    """The directory of a module of modules.json; raises CheckpointError where it is not in that of the checkpoint."""
    path = str(listed.get("path", ""))
    if not stays_inside(path):
        raise CheckpointError(f"{directory / MODULES} names {path!r:.60}, which is no directory next to it.")
    return directory / path


def _modes(path: Path) -> tuple[str, ...]:
    config = read_object(path / "config.json")
    given = config.get("pooling_mode")
    if given is None:
        given = [mode for key, mode in OLDER.items() if config.get(key)] or ["mean"]
    modes = (given,) if isinstance(given, str) else tuple(map(str, given))
    if unknown := [mode for mode in modes if mode not in POOLINGS]:
        raise UnsupportedModelError(f"There is no pooling {unknown[0]!r}; there are {', '.join(POOLINGS)}.")
    if config.get("include_prompt") is False:
        raise UnsupportedModelError(f"{path / 'config.json'} leaves prompts out of the pooling; that is not supported.")
    return modes


def _dense(path: Path) -> list[nn.Module]:
    config = read_object(path / "config.json")
    name = str(config.get("activation_function", "torch.nn.modules.activation.Tanh")).rpartition(".")[2]
    if name not in ACTIVATIONS:
        raise UnsupportedModelError(f"The activation {name!r} of {path} is not one of {', '.join(ACTIVATIONS)}.")
    inputs = {config.get(key, "sentence_embedding") for key in ("module_input_name", "module_output_name")}
    if config.get("use_residual") or not inputs <= {"sentence_embedding", None}:
        raise UnsupportedModelError(f"{path} is more than a dense layer on the pooled vector; that is not supported.")
    with translated(f"The dense layer {path} cannot be read"):
        weights = {key.removeprefix("linear."): value.float() for key, value in _tensors(path).items()}
        sizes = [config.get("out_features"), config.get("in_features")]
        if (stored := list(weights["weight"].shape)) != sizes:  # before memory is taken for what is stated
            raise CheckpointError(f"The dense layer {path} stores {stored} weights, but its config says {sizes}.")
        layer = nn.Linear(stored[1], stored[0], bias=bool(config.get("bias", True)))
        layer.load_state_dict(weights)
    return [layer.requires_grad_(requires_grad=False), ACTIVATIONS[name]()]


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    if (file := path / "model.safetensors").is_file():
        from safetensors.torch import load_file

        return load_file(file)
    if (file := path / "pytorch_model.bin").is_file():
        found: dict[str, torch.Tensor] = torch.load(file, map_location="cpu", weights_only=True)
        return found
    raise CheckpointError(f"{path} has no weights (model.safetensors or pytorch_model.bin); copy it again.")
