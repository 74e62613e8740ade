import json

import pytest

from piston.checkpoint.task import task_of

BERT, QWEN3, WHISPER = {"model_type": "bert"}, {"model_type": "qwen3"}, {"model_type": "whisper"}


def write(directory, config, modules=None):
    (directory / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    if modules is not None:
        items = [{"type": f"sentence_transformers.models.{kind}", "path": ""} for kind in modules]
        (directory / "modules.json").write_text(json.dumps(items))
    return directory


@pytest.mark.parametrize(
    ("config", "modules", "task"),
    [
        (QWEN3 | {"architectures": ["Qwen3ForCausalLM"]}, None, "text-generation"),
        (BERT | {"architectures": ["BertForSequenceClassification"]}, None, "text-classification"),
        (BERT | {"architectures": ["BertForTokenClassification"]}, None, "token-classification"),
        (BERT | {"architectures": ["BertForQuestionAnswering"]}, None, "question-answering"),
        (BERT | {"architectures": ["BertModel"]}, None, "feature-extraction"),
        (BERT | {"architectures": ["BertForMaskedLM"]}, ["Transformer", "Pooling"], "feature-extraction"),
        (BERT | {"architectures": ["BertForSequenceClassification"]}, ["Transformer"], "text-ranking"),
        (
            BERT | {"architectures": ["BertForSequenceClassification"], "sentence_transformers": {}},
            None,
            "text-ranking",
        ),
        (QWEN3 | {"architectures": ["Qwen3ForCausalLM"]}, ["Transformer", "LogitScore"], "text-ranking"),
        (QWEN3 | {"architectures": ["Qwen3ForSequenceClassification"]}, None, "text-classification"),
        (WHISPER | {"architectures": ["WhisperForConditionalGeneration"]}, None, "automatic-speech-recognition"),
        ({"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]}, None, "text2text-generation"),
        ({"model_type": "t5", "architectures": ["T5EncoderModel"]}, ["Transformer", "Pooling"], "feature-extraction"),
        ({"model_type": "t5", "is_encoder_decoder": False}, None, "text-generation"),
    ],
)
def test_a_checkpoint_says_its_task(tmp_path, config, modules, task):
    assert task_of(write(tmp_path, config, modules)) == task


@pytest.mark.parametrize(
    "config",
    [
        "{",
        "[]",
        {"architectures": 5},
        BERT | {"architectures": []},
        BERT | {"architectures": [None]},
        {"model_type": [1]},
    ],
)
def test_what_is_damaged_is_left_to_the_export(tmp_path, config):
    assert task_of(write(tmp_path, config)) == "text-generation"


def test_a_gguf_file_is_a_language_model_whatever_is_next_to_it(tmp_path):
    write(tmp_path, BERT | {"architectures": ["BertModel"]}, ["Transformer", "Pooling"])
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    assert task_of(tmp_path / "model.gguf") == "text-generation"
