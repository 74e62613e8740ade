import shutil
from contextlib import closing

import numpy as np
import onnx_ir as ir
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from piston.core.console import Progress
from piston.evaluation.encoder_decoders import NUM_TOKENS, ForcedAnswer, open_model
from piston.evaluation.examples import Example
from piston.evaluation.tasks.text2text_generation import compare, forced_answers
from piston.runtime.backends.engine import Source
from piston.runtime.text.tokenizer import Tokenizer as RuntimeTokenizer

QUIET = Progress(quiet=True)
END = 1
TEXTS = ["the sea is calm today", "wind blows from north and the sea", "das Meer"]


def answers_of(directory, examples, num_answers=9):
    with closing(open_model(directory, max_source=32, num_slots=2)) as model:
        return forced_answers(model, examples, num_answers, lambda _: None)


def test_a_text_without_a_target_has_the_greedy_answer_of_transformers(text_model):
    found = answers_of(text_model[0], [Example(source=text) for text in TEXTS])
    assert len(found) == len(TEXTS)
    for answer in found:
        ids = torch.from_numpy(answer.source.feeds["input_ids"])
        expected = text_model[1].generate(ids, max_new_tokens=NUM_TOKENS, do_sample=False, num_beams=1)[0].tolist()
        assert answer.read_ids == [token for token in expected if token != END]


def test_a_target_is_what_the_decoder_reads_and_examples_beyond_the_wanted_number_are_left(text_model):
    examples = [Example(source=TEXTS[0], target="das Meer ist ruhig"), Example(source=TEXTS[1])]
    (found,) = answers_of(text_model[0], examples, 1)
    assert found.read_ids == [
        0,
        13,
        14,
        15,
        16,
    ]  # <pad> begins answers; the others are the last words of the vocabulary


def test_a_model_is_no_distance_from_itself(text_model):
    answers = answers_of(text_model[0], [Example(source=text) for text in TEXTS])
    found = compare(text_model[0], text_model[0], answers, QUIET)
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
    row, ids = [4, 5, 6, 1], [0, 9, 5, 12]
    answer = ForcedAnswer(Source.of_text(row), (0,), tuple(ids[1:]))
    found = compare(other, text_model[0], [answer], QUIET)
    logits = text_model[1](input_ids=torch.tensor([row]), decoder_input_ids=torch.tensor([ids])).logits[0].double()
    expected, moved = logits.log_softmax(-1), (scaled * logits).log_softmax(-1)
    kl = (expected.exp() * (expected - moved)).sum(-1)
    assert found.values["kl"] == pytest.approx(float(kl.mean()), rel=1e-3)


def test_a_target_is_encoded_as_answers_are_spelled(text_model):
    words = {"<unk>": 0, "<pad>": 1, "Meer": 21, "das": 22}
    with closing(open_model(text_model[0], max_source=32)) as model:
        spelled = Tokenizer(WordLevel(words, unk_token="<unk>"))
        spelled.pre_tokenizer = Whitespace()
        source = Tokenizer.from_str(model.tokenizer.to_json())
        model.tokenizer = RuntimeTokenizer(source, eos_token_ids=(END,), answers=spelled, unknown_ids=(10**6, 0))
        (found,) = forced_answers(model, [Example(source=TEXTS[0], target="das Meer")], 1, lambda _: None)
    assert found.read_ids == [0, 22, 21]
