"""The demo model, exported and built once for all tests of this folder, by the commands a user types."""

import pytest

from piston.cli.main import main
from piston.runtime import load


@pytest.fixture(scope="session")
def demo_model_dir(demo_checkpoint, tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "model"
    assert main(["export", str(demo_checkpoint), "-o", str(out), "--quiet"]) == 0
    return out


@pytest.fixture(scope="session")
def demo_bundle(demo_model_dir):
    out = demo_model_dir.parent / "bundle"
    assert main(["build", str(demo_model_dir), "-o", str(out), "--target", "ort-cpu", "--quiet"]) == 0
    return out


@pytest.fixture(scope="session")
def demo(demo_bundle):
    with load(demo_bundle, max_batch=4, max_length=512) as model:
        yield model


@pytest.fixture(scope="session")
def transformers_model(demo_checkpoint):
    import torch
    from transformers import AutoModelForCausalLM

    from piston.checkpoint.gguf.tensors import one_table_of_names
    from piston.checkpoint.quiet import quiet

    with quiet(), one_table_of_names():
        return AutoModelForCausalLM.from_pretrained(
            demo_checkpoint.parent, gguf_file=demo_checkpoint.name, dtype=torch.float32
        ).eval()
