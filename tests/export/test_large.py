"""A checkpoint of more than 2 GB, where protobuf ends and external data begins, and what its export may hold."""

import json
import subprocess
import sys

import pytest
import torch
from checkpoints import write_checkpoint

LARGE = {"hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 32, "head_dim": 64}


def piston(*words):
    """Run the command in a process of its own, whose memory is its alone; what it printed as JSON."""
    command = [sys.executable, "-m", "piston.cli.main", *words, *([] if "--json" in words else ["--json"])]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_more_than_two_gigabytes_export_within_three_times_their_size_and_one_gigabyte(tmp_path, dtype):
    layers = {torch.float32: 10, torch.bfloat16: 20}[dtype]
    write_checkpoint(tmp_path / "checkpoint", dtype=dtype, **LARGE | {"num_hidden_layers": layers})
    size = sum(path.stat().st_size for path in (tmp_path / "checkpoint").glob("*.safetensors"))
    assert size > 2 * 1024**3
    result = piston("export", tmp_path / "checkpoint", "-o", tmp_path / "out", "--json")
    assert (tmp_path / "out" / "model.onnx.data").stat().st_size > 2 * 1024**3
    print(f"checkpoint {size / 1e9:.2f} GB, peak {result['peak_rss_bytes'] / 1e9:.2f} GB, parity {result['parity']}")  # noqa: T201
    assert result["peak_rss_bytes"] <= 3 * size + 1e9
    piston("build", tmp_path / "out", "-o", tmp_path / "bundle")
    answer = piston("run", tmp_path / "bundle", "--prompt", "the quick", "--max-tokens", "4", "--ignore-eos", "--json")
    assert len(answer["completions"][0]["token_ids"]) == 4
