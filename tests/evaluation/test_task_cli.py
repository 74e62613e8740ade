"""`piston eval` on encoder-decoders: figures next to references, and how far a bundle moved from another."""

import json
from contextlib import closing
from pathlib import Path

import jsonschema
import pytest
from speech import write_sound

from piston.cli.main import main
from piston.core.errors import MisuseError
from piston.evaluation.opening import open_model_directory
from piston.evaluation.tasks.automatic_speech_recognition import quality
from piston.runtime import load

SCHEMA = json.loads((Path(__file__).parents[2] / "docs/schemas/eval-tasks.json").read_text(encoding="utf-8"))
TEXTS = ["the sea is calm today", "wind blows from north and the sea", "das Meer ist ruhig"]


@pytest.fixture(scope="module")
def answered(text_bundle, tmp_path_factory):
    """Texts with the bundle's own answers as targets, and the texts alone: (records, texts)."""
    root = tmp_path_factory.mktemp("answered")
    with load(text_bundle) as model:
        answers = [found.text for found in model.generate(TEXTS)]
    records = [{"text": text, "target": answer} for text, answer in zip(TEXTS, answers, strict=True) if answer.strip()]
    assert records
    (root / "pairs.jsonl").write_text("\n".join(map(json.dumps, records)))
    (root / "texts.txt").write_text("\n".join(TEXTS))
    return root / "pairs.jsonl", root / "texts.txt"


def json_of(capsys, *words):
    status = main(["eval", *map(str, words), "--quiet", "--json"])
    captured = capsys.readouterr()
    assert captured.out, captured.err
    found = json.loads(captured.out)
    jsonschema.validate(found, SCHEMA)
    return status, found


def test_answers_that_are_the_references_have_full_marks(text_bundle, answered, capsys):
    pytest.importorskip("sacrebleu")
    status, found = json_of(capsys, text_bundle, "--data", answered[0], "--require", "chrf>=99%")
    assert status == 0
    assert found["values"]["chrf"] == pytest.approx(1)
    assert found["is_labelled"]


def test_a_bundle_is_compared_with_its_model_directory_on_texts_without_targets(
    text_bundle, text_model, answered, capsys
):
    words = [text_bundle, "--data", answered[1], "--reference", text_model[0], "--require", "kl<=0.001"]
    status, found = json_of(capsys, *words)
    assert status == 0
    assert found["values"]["kl"] < 1e-5
    assert found["values"]["top1"] == 1


def test_texts_and_answers_are_cut_to_what_both_models_hold(toys, text_model, answered, capsys):
    small = toys.built(text_model[0], max_batch=2, max_length=5)
    for words in ([small, "--reference", text_model[0]], [text_model[0], "--reference", small]):
        status, found = json_of(capsys, *words, "--data", answered[1])
        assert status == 0
        assert found["values"]["kl"] < 1e-5


def test_figures_of_references_need_references(text_bundle, answered, capsys):
    assert main(["eval", str(text_bundle), "--data", str(answered[1]), "--require", "chrf>=50%"]) == 2
    assert "is measured on labelled examples" in capsys.readouterr().err


def test_the_word_error_rate_of_a_models_own_transcripts_is_zero_and_of_others_is_not(speech_model, tmp_path):
    pytest.importorskip("jiwer")
    write_sound(tmp_path / "a.wav", 0.9, 3)
    path = tmp_path / "clips.tsv"
    with closing(open_model_directory(speech_model[0])) as model:
        said = model.transcribe(tmp_path / "a.wav").text
        assert said.strip()
        path.write_text(f"a.wav\t{said.upper()}!")
        assert quality(model, path) == {"wer": 0}
        path.write_text(f"a.wav\t{said} indeed")
        assert quality(model, path)["wer"] == pytest.approx(1 / (len(said.split()) + 1))


def test_an_example_without_a_reference_is_named(speech_model, tmp_path, capsys):
    write_sound(tmp_path / "a.wav", 0.5)
    (tmp_path / "clips.jsonl").write_text('{"audio": "a.wav", "text": "Hi."}\n{"audio": "a.wav"}')
    with (
        closing(open_model_directory(speech_model[0])) as model,
        pytest.raises(MisuseError, match="has no reference for"),
    ):
        quality(model, tmp_path / "clips.jsonl")


def test_figures_are_printed_though_the_page_cannot_be_written(encoder_toys, tmp_path, capsys):
    (tmp_path / "texts.txt").write_text("one\ntwo\n")
    words = [encoder_toys.bundle("single"), "--data", tmp_path / "texts.txt", "--html", "/dev/full"]
    status, found = json_of(capsys, *words, "--reference", encoder_toys.model("single"))
    assert status == 1
    assert found["values"]["agreement"] == 1


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        (("--threads", 100_000), "threads is 100000"),
        (("--threads", -1), "threads is -1"),
        (("--max-length", 0), "max_length is 0"),
        (("--max-length", 10**6), "max_length is 1000000"),
    ],
)
def test_sizes_are_those_of_a_model_directory_too(encoder_toys, text_model, tmp_path, option, reason, capsys):
    (tmp_path / "texts.txt").write_text("one\ntwo\n")
    for path in (encoder_toys.model("single"), text_model[0]):
        words = [path, "--data", tmp_path / "texts.txt", "--reference", path, *option]
        assert main(["eval", *map(str, words), "--quiet"]) == 2
        assert reason in capsys.readouterr().err
