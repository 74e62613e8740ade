import copy
import dataclasses
import json
import shutil
from contextlib import closing
from types import SimpleNamespace

import onnx_ir as ir
import pytest
import torch

from piston.core.bundle.manifest import Manifest, record_files
from piston.core.console import Progress
from piston.core.errors import MisuseError
from piston.evaluation.diff import DiffOptions, automatic_speech_recognition, text2text_generation
from piston.evaluation.encoder_decoders import open_model
from piston.evaluation.examples import Example
from piston.evaluation.tasks.text2text_generation import prepared

QUIET = Progress(quiet=True)
TEXTS = ["the sea is calm today", "wind blows from north and the sea", "das Meer"]
LENGTH = 8


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(TEXTS))
    return path


def with_swapped_tokens(directory, path, tokens):
    """The model directory with the scores of two tokens exchanged."""
    shutil.copytree(directory, path)
    graph = ir.load(directory / "decoder/model.onnx")
    weight = graph.graph.initializers["lm_head.weight"]
    values = weight.const_value.numpy().copy()  # hidden size, tokens
    values[:, tokens] = values[:, tokens[::-1]]
    weight.const_value = ir.tensor(values, name="lm_head.weight")
    for file in ("model.onnx", "model.onnx.data"):
        (path / "decoder" / file).unlink()
    ir.save(graph, path / "decoder/model.onnx", external_data="model.onnx.data")
    dataclasses.replace(Manifest.read(path), files=record_files(path)).write(path)
    return path


def test_answers_to_texts_are_those_of_transformers_and_the_first_other_token_is_told(text_model, texts, tmp_path):
    directory, model = text_model
    with closing(open_model(directory, max_source=32)) as before:
        ids = [prepared(before, Example(source=text), 1)[0].request.source.feeds["input_ids"] for text in TEXTS]

        def answers(of):
            found = []
            for row in ids:
                said = of.generate(torch.from_numpy(row), max_new_tokens=LENGTH, do_sample=False, num_beams=1)[0, 1:]
                found.append(said.tolist())
            return found

        expected = answers(model)
        tokens = [expected[0][-2], 30]
        other = copy.deepcopy(model)
        with torch.no_grad():
            other.lm_head.weight[tokens] = other.lm_head.weight[tokens[::-1]].clone()
        moved = answers(other)
        with closing(open_model(with_swapped_tokens(directory, tmp_path / "other", tokens), max_source=32)) as after:
            options = DiffOptions(answer_tokens=LENGTH)
            found = text2text_generation.differences(before, after, texts, options, QUIET)
        unchanged = text2text_generation.differences(before, before, texts, options, QUIET)
        changed = {number for number, pair in enumerate(zip(expected, moved, strict=True), 1) if pair[0] != pair[1]}
        assert changed
        assert {change.record for change in found.changes} == changed
        for change in found.changes:
            at = change.record - 1
            assert change.text == TEXTS[at]
            assert (change.before, change.after) == tuple(before.tokenizer.decode(row[at]) for row in (expected, moved))
            position = next(
                place for place, pair in enumerate(zip(expected[at], moved[at], strict=False)) if len(set(pair)) == 2
            )
            assert change.note.startswith(f"at token {position + 1} ")
        assert found.figures[0][:2] == ("equal_answers", pytest.approx(1 - len(changed) / 3))
    assert (unchanged.changes, unchanged.figures[0][1]) == ((), 1.0)


def test_an_answer_longer_than_the_engine_holds_is_refused(text_model, texts):
    with (
        closing(open_model(text_model[0], max_source=32)) as model,
        pytest.raises(MisuseError, match=r"hold answers of [\d,]+ tokens, not 10,000; lower --answer-tokens"),
    ):
        text2text_generation.differences(model, model, texts, DiffOptions(answer_tokens=10_000), QUIET)


def recognizer(transcripts, heard):
    def transcribe(audio, **options):
        heard.append((audio.name, options))
        return SimpleNamespace(text=transcripts[audio.name])

    return SimpleNamespace(transcribe=transcribe)


def test_transcripts_that_differ_are_listed_by_the_share_of_their_words_that_changed(tmp_path):
    clips = [{"audio": "a.wav"}, {"audio": "b.wav", "language": "de"}, {"audio": "c.wav"}]
    for clip in clips:
        (tmp_path / clip["audio"]).touch()
    path = tmp_path / "clips.jsonl"
    path.write_text("\n".join(json.dumps(clip) for clip in clips))
    heard = []
    before = recognizer({"a.wav": "one two three four", "b.wav": "eins zwei", "c.wav": "same"}, heard)
    after = recognizer({"a.wav": "one too three four", "b.wav": "eins zwei drei", "c.wav": "same"}, heard)
    found = automatic_speech_recognition.differences(before, after, path, DiffOptions(), QUIET)
    assert [(change.record, change.before, change.after) for change in found.changes] == [
        (2, "eins zwei", "eins zwei drei"),
        (1, "one two three four", "one too three four"),
    ]
    assert found.changes[1].note == "words changed: 1 (of 4)"
    assert [change.size for change in found.changes] == [1 / 2, 1 / 4]
    assert found.figures[0][:2] == ("equal_texts", pytest.approx(1 / 3))
    assert all(options["temperatures"] == (0.0,) for _, options in heard)  # chance has no part in it
    assert {name: options["language"] for name, options in heard} == {"a.wav": None, "b.wav": "de", "c.wav": None}
