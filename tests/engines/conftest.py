"""Whole model directories of a few toys, exported once per session."""

import functools
from pathlib import Path

import pytest
import torch
from checkpoints import write_checkpoint
from quantized import quantize_model_dir

from piston.export import ExportOptions, export_model


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory) -> Path:
    """A llama toy as `piston export` writes it."""
    return exported(tmp_path_factory.mktemp("export"), torch.float32)


@pytest.fixture(scope="session")
def bfloat16_model_dir(tmp_path_factory) -> Path:
    """The same in bfloat16."""
    return exported(tmp_path_factory.mktemp("export16"), torch.bfloat16)


def exported(directory: Path, dtype: torch.dtype) -> Path:
    write_checkpoint(directory / "checkpoint", "llama", dtype)
    export_model(directory / "checkpoint", directory / "model", ExportOptions(check_parity=False))
    return directory / "model"


@pytest.fixture(scope="session")
def wide_model_dir(tmp_path_factory) -> Path:
    """A llama toy whose weights fit float16 and whose residual stream does not, as Gemma 3's does not."""
    directory = tmp_path_factory.mktemp("wide")
    model = write_checkpoint(directory / "checkpoint")
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.down_proj.weight *= 6e4 / layer.mlp.down_proj.weight.abs().max()
    model.save_pretrained(directory / "checkpoint")
    export_model(directory / "checkpoint", directory / "model", ExportOptions(check_parity=False))
    return directory / "model"


@pytest.fixture(scope="session")
def fitting_model_dir(tmp_path_factory) -> Path:
    """A llama toy of widths that Piston's own kernels take, quantized to w8a8."""
    directory = tmp_path_factory.mktemp("fitting")
    return with_heads_of(32, directory)


def with_heads_of(head_dim: int, directory: Path) -> Path:
    """A llama toy with heads of that width, quantized to w8a8."""
    sizes = {"hidden_size": 4 * head_dim, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": head_dim}
    write_checkpoint(directory / "checkpoint", "llama", torch.float32, intermediate_size=192, **sizes)
    export_model(directory / "checkpoint", directory / "float", ExportOptions(check_parity=False))
    return quantize_model_dir(directory / "float", directory / "model", "w8a8")


@pytest.fixture(scope="session")
def model_dir_with_heads(tmp_path_factory):
    """model_dir_with_heads(head_dim) -> such a toy, exported and quantized once per session."""
    return functools.cache(lambda head_dim: with_heads_of(head_dim, tmp_path_factory.mktemp("heads")))
