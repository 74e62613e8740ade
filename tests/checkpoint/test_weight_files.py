"""Types of the tensors in the files: they decide what `--dtype auto` means."""

import json
import shutil

import pytest
import torch
from checkpoints import edit_config, write_checkpoint
from safetensors.torch import load_file, save_file

from piston.checkpoint.checkpoint import check_weights, load_config, load_model, locate, weights_dtype
from piston.core.errors import UnsupportedModelError


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    directory = tmp_path_factory.mktemp("checkpoint")
    write_checkpoint(directory)
    return directory


@pytest.fixture
def checkpoint(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "checkpoint")


@pytest.mark.parametrize(
    ("dtype", "expected"), [(torch.float32, "float32"), (torch.float16, "float16"), (torch.bfloat16, "bfloat16")]
)
def test_the_stored_type_is_found(tmp_path, dtype, expected):
    write_checkpoint(tmp_path, dtype=dtype)
    checkpoint = locate(str(tmp_path))
    stored = check_weights(checkpoint, load_config(checkpoint))
    assert weights_dtype(checkpoint, stored) == (expected, None)
    assert {parameter.dtype for parameter in load_model(checkpoint).parameters()} == {torch.float32}


def stored(directory):
    checkpoint = locate(str(directory))
    return weights_dtype(checkpoint, check_weights(checkpoint, load_config(checkpoint)))


def store_as(directory, dtype_of, **config):
    """Store each tensor of a float32 checkpoint in the type that `dtype_of` gives for its name."""
    weights = load_file(directory / "model.safetensors")
    weights = {name: tensor.to(dtype_of(name)) for name, tensor in weights.items()}
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    edit_config(directory, **config)


def test_the_tensors_type_counts_not_the_configs_word(checkpoint):
    edit_config(checkpoint, dtype="float16")
    assert stored(checkpoint) == ("float32", None)
    store_as(checkpoint, lambda _: torch.bfloat16, dtype=None)
    assert stored(checkpoint) == ("bfloat16", None)


@pytest.mark.parametrize("other", [torch.float32, torch.float16])
def test_mixed_types_become_the_narrowest_that_holds_all_and_are_told(checkpoint, other):
    store_as(checkpoint, lambda name: other if "norm" in name else torch.bfloat16)
    dtype, remark = stored(checkpoint)
    assert dtype == "float32"
    assert "BF16" in remark
    assert {torch.float32: "F32 (5 tensors)", torch.float16: "F16 (5 tensors)"}[other] in remark


def test_float64_is_told_to_be_rounded(checkpoint):
    store_as(checkpoint, lambda _: torch.float64)
    assert stored(checkpoint) == ("float32", "float64 weights are rounded to float32.")


def test_integer_weights_are_refused_as_quantized_already(checkpoint):
    store_as(checkpoint, lambda name: torch.int8 if "proj" in name else torch.float32)
    with pytest.raises(UnsupportedModelError, match=r"_proj.*I8.*quantized already"):
        stored(checkpoint)


def test_the_type_of_pickled_shards_is_read_too(checkpoint):
    weights = load_file(checkpoint / "model.safetensors")
    (checkpoint / "model.safetensors").unlink()
    names = sorted(weights)
    for index, part in enumerate((names[::2], names[1::2])):
        torch.save({name: weights[name].half() for name in part}, checkpoint / f"pytorch_model-{index}.bin")
    shard_of = {name: f"pytorch_model-{index % 2}.bin" for index, name in enumerate(names)}
    (checkpoint / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": shard_of}))
    assert stored(checkpoint) == ("float16", None)
