"""Decoders that embed texts, in the layouts of Qwen3-Embedding and EmbeddingGemma."""

import json

import numpy as np
import pytest
import torch
from encoders import HIDDEN, write_json, write_sentence_checkpoint
from safetensors.torch import save_file
from transformers import AutoModel

from piston.engines import build
from piston.export import export_model
from piston.runtime import load

TEXTS = ["a girl is styling her hair", "men", "men play football on the beach", "query : the beach"]
WIDE = 48


def write_dense(directory, index, inputs, outputs):
    """A dense layer without bias and activation, as EmbeddingGemma has two; returns its weights."""
    weights = torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(index)) * 0.3
    path = directory / f"{index}_Dense"
    identity = "torch.nn.modules.linear.Identity"
    sizes = {"in_features": inputs, "out_features": outputs, "bias": False, "activation_function": identity}
    write_json(path / "config.json", sizes)
    save_file({"linear.weight": weights}, path / "model.safetensors")
    return weights


def write_gemma(directory):
    """Mean pooling, two dense layers, length 1."""
    write_sentence_checkpoint(directory, "gemma3_text", normalize=False, prompts={"query": "query : "})
    layers = [write_dense(directory, 2, HIDDEN, WIDE), write_dense(directory, 3, WIDE, HIDDEN)]
    modules = json.loads((directory / "modules.json").read_text())
    paths = {"2_Dense": "Dense", "3_Dense": "Dense", "4_Normalize": "Normalize"}
    for index, (path, kind) in enumerate(paths.items(), 2):
        modules.append({"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"})
    write_json(directory / "modules.json", modules)
    return lambda hidden: layers[1] @ (layers[0] @ hidden.mean(dim=0))


def write_qwen(directory):
    """The last token, length 1; the config names the language model."""
    write_sentence_checkpoint(directory, "qwen3", pooling={"pooling_mode_lasttoken": True})
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"architectures": ["Qwen3ForCausalLM"]}))
    return lambda hidden: hidden[-1]


@pytest.mark.parametrize("write", [write_gemma, write_qwen])
def test_embeddings_are_those_of_the_modules_over_transformers_hidden_states(tmp_path, write):
    pooled = write(tmp_path / "checkpoint")
    reference = AutoModel.from_pretrained(tmp_path / "checkpoint").eval()
    assert reference.config.use_bidirectional_attention if write is write_gemma else True
    export_model(tmp_path / "checkpoint", tmp_path / "model")
    build(tmp_path / "model", tmp_path / "bundle")
    with load(tmp_path / "bundle") as model:
        found = model.embed(TEXTS)
        for text, vector in zip(TEXTS, found, strict=True):
            with torch.no_grad():
                hidden = reference(input_ids=torch.tensor([model.tokenizer.encode(text)])).last_hidden_state[0]
            expected = pooled(hidden)
            np.testing.assert_allclose(vector, expected / expected.norm(), atol=2e-5)
