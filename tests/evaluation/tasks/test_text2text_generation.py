import shutil

import numpy as np
import onnx_ir as ir
import pytest
import torch

from piston.core.console import Progress
from piston.evaluation.tasks.text2text_generation import compare

pytest_plugins = ["text_fixtures"]
QUIET = Progress(quiet=True)


def test_a_model_is_no_distance_from_itself(text_model):
    rows = np.random.default_rng(3).integers(3, 17, (3, 6))
    found = compare(text_model[0], text_model[0], rows, QUIET)
    assert found.values["kl"] == pytest.approx(0, abs=1e-6)
    assert found.values["top1"] == 1
    assert "of answers to 3 texts" in found.summary


def test_the_distance_of_another_model_is_that_of_transformers_logits(text_model, tmp_path):
    other = shutil.copytree(text_model[0], tmp_path / "other")
    graph = ir.load(other / "decoder/model.onnx")
    scaled = 0.8
    name = "lm_head.weight"
    weight = graph.graph.initializers[name]
    weight.const_value = ir.tensor(weight.const_value.numpy() * np.float32(scaled), name=name)
    (tmp_path / "new").mkdir()
    ir.save(graph, tmp_path / "new/model.onnx", external_data="model.onnx.data")
    for file in ("model.onnx", "model.onnx.data"):
        shutil.move(tmp_path / "new" / file, other / "decoder" / file)
    row = np.array([[4, 5, 6, 1]])
    found = compare(other, text_model[0], row, QUIET)
    model, ids, kl = text_model[1], [0], []
    for _ in range(24 + 2 - 1):
        logits = model(input_ids=torch.from_numpy(row), decoder_input_ids=torch.tensor([ids])).logits[0, -1].double()
        expected, moved = logits.log_softmax(-1), (scaled * logits).log_softmax(-1)
        kl.append(float((expected.exp() * (expected - moved)).sum()))
        ids.append(int(logits.argmax()))
        if ids[-1] == 1:
            break
    assert found.values["kl"] == pytest.approx(np.mean(kl), rel=1e-3)
