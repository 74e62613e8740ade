"""Whole model directories of a few toys."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def model_dir(toys) -> Path:
    """A llama toy as `piston export` writes it."""
    return toys.model_dir()


@pytest.fixture(scope="session")
def bfloat16_model_dir(toys) -> Path:
    """The same in bfloat16."""
    return toys.model_dir(dtype="bfloat16")


def widen(model):
    for layer in model.model.layers:
        layer.mlp.down_proj.weight *= 6e4 / layer.mlp.down_proj.weight.abs().max()


@pytest.fixture(scope="session")
def wide_model_dir(toys) -> Path:
    """A llama toy whose weights fit float16 and whose residual stream does not, as Gemma 3's does not."""
    return toys.model_dir(edit=widen)


@pytest.fixture(scope="session")
def model_dir_with_heads(toys):
    """model_dir_with_heads(head_dim) -> a llama toy with heads of that width, quantized to w8a8."""

    def with_heads_of(head_dim: int) -> Path:
        sizes = {"hidden_size": 4 * head_dim, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": head_dim}
        return toys.model_dir(scheme="w8a8", intermediate_size=192, **sizes)

    return with_heads_of


@pytest.fixture(scope="session")
def fitting_model_dir(model_dir_with_heads) -> Path:
    """A llama toy of widths that Piston's own kernels take, quantized to w8a8."""
    return model_dir_with_heads(32)
