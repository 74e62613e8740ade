"""Golden answers of speech models: recorded from sounds that the bundle carries, and compared by `piston verify`."""

import dataclasses
import json
import shutil

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from speech import CONTEXT, IDS, MELS, RATE
from transformers import WhisperFeatureExtractor

from piston.cli.main import main
from piston.core.bundle.golden import OUTPUT_FLOORS, GoldenByTarget
from piston.core.bundle.interface import DECODER, ENCODER
from piston.core.bundle.manifest import Manifest, record_files
from piston.core.errors import BundleCorruptError, MisuseError
from piston.engines import build
from piston.runtime.audio.made_sounds import PEAK, made_voice
from piston.runtime.audio.reading import read_audio


@pytest.fixture(scope="module")
def bundle(toys, speech_model):
    return toys.built(speech_model[0], max_batch=2)


def test_the_answers_are_the_greedy_ones_of_the_checkpoint(bundle, speech_model):
    _, model = speech_model
    extractor = WhisperFeatureExtractor(feature_size=MELS, chunk_length=1)
    english = [IDS[f"<|{name}|>"] for name in ("startoftranscript", "en", "transcribe")]
    answers = GoldenByTarget.read(bundle).of("ort-cpu").answers
    assert [list(answer.prompt_ids) for answer in answers] == [[*english, IDS["<|notimestamps|>"]], english]
    for answer in answers:
        samples = np.concatenate(list(read_audio(bundle / answer.audio, RATE)))
        features = extractor(samples, sampling_rate=RATE, return_tensors="pt").input_features
        ids = torch.tensor([[*answer.prompt_ids, *answer.token_ids]])
        with torch.no_grad():
            logits = model(features, decoder_input_ids=ids).logits[0, len(answer.prompt_ids) - 1 : -1].numpy()
        assert tuple(logits.argmax(axis=-1)) == answer.token_ids
        best = np.sort(logits, axis=-1)
        np.testing.assert_allclose(best[:, -1] - best[:, -2], answer.margins, atol=2e-3)


def test_the_numbers_of_the_encoder_are_those_of_the_checkpoint(bundle, speech_model):
    _, model = speech_model
    golden = GoldenByTarget.read(bundle).of("ort-cpu")
    samples = np.concatenate(list(read_audio(bundle / golden.answers[0].audio, RATE)))
    features = WhisperFeatureExtractor(feature_size=MELS, chunk_length=1)(
        samples, sampling_rate=RATE, return_tensors="pt"
    ).input_features
    with torch.no_grad():
        found = model(features, decoder_input_ids=torch.tensor([[IDS["<|startoftranscript|>"]]]), use_cache=True)
    for layer, cross in enumerate(found.past_key_values.cross_attention_cache.layers):
        for part, expected in (("key", cross.keys), ("value", cross.values)):
            whole = expected.numpy().reshape(-1)
            values = golden.examples[0].values[f"cross.{layer}.{part}"]
            np.testing.assert_allclose(values, whole[:: -(-whole.size // 32)], atol=1e-3)


def test_the_sounds_are_short_files_of_the_bundle_that_differ(bundle):
    files = Manifest.read(bundle).files
    answers = GoldenByTarget.read(bundle).of("ort-cpu").answers
    assert [answer.audio for answer in answers] == ["verify.0.wav", "verify.1.wav"]
    sounds = [np.concatenate(list(read_audio(bundle / answer.audio, RATE))) for answer in answers]
    assert all(answer.audio in files and len(sound) == RATE for answer, sound in zip(answers, sounds, strict=True))
    assert np.abs(sounds[0] - sounds[1]).max() > 0.1


def test_a_made_voice_has_the_loudness_and_the_length_that_it_should_have():
    voice = made_voice(2.0, RATE, seed=3)
    assert (voice.dtype, voice.shape, float(np.abs(voice).max())) == (np.float32, (2 * RATE,), pytest.approx(PEAK))
    assert np.array_equal(voice, made_voice(2.0, RATE, seed=3))


def test_the_bundle_verifies(bundle, capsys):
    assert main(["verify", str(bundle), "--quiet", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["passed"], found["num_prompts"], found["num_tokens"]) == (True, 2, 32)
    assert found["num_decided"] > 20
    assert 0 <= found["max_distance"] <= found["tolerance"] == OUTPUT_FLOORS["float32"]
    assert main(["verify", str(bundle), "--quiet"]) == 0
    said = capsys.readouterr().out
    assert "tokens of 2 sounds were compared" in said
    figures = f"{found['max_distance']:.2g}, allowed are {found['tolerance']:.2g}"
    assert f"of the outputs of the encoder the largest distance is {figures}" in said


@pytest.mark.parametrize(
    ("graph", "said"), [(ENCODER, "of the encoder': the output is 0."), (DECODER, "the engine differs at token")]
)
def test_a_bundle_with_one_weight_matrix_that_was_changed_does_not(bundle, tmp_path, graph, said, capsys):
    shutil.copytree(bundle, tmp_path / "b")
    manifest = Manifest.read(tmp_path / "b")
    path = tmp_path / "b" / manifest.engines[0].files[graph]
    model = onnx.load(path)
    weight = max(model.graph.initializer, key=lambda item: np.prod(item.dims) if len(item.dims) == 2 else 0)
    array = numpy_helper.to_array(weight)
    weight.CopyFrom(numpy_helper.from_array(array[::-1].copy(), weight.name))
    onnx.save(model, path, save_as_external_data=True, location=f"{path.name}.data")
    dataclasses.replace(manifest, files=record_files(tmp_path / "b")).write(tmp_path / "b")
    assert main(["verify", str(tmp_path / "b"), "--quiet", "--json"]) == 1
    printed = capsys.readouterr()
    assert said in printed.err
    found = json.loads(printed.out)
    assert (found["max_distance"] > found["tolerance"]) == (graph == ENCODER)


def test_a_bundle_that_was_built_without_answers_says_so(bundle, tmp_path, capsys):
    shutil.copytree(bundle, tmp_path / "b")
    (tmp_path / "b/verify.json").unlink()
    assert main(["verify", str(tmp_path / "b"), "--quiet"]) == 1
    error = capsys.readouterr().err
    assert "it was built by an older Piston; build it again" in error
    assert len(error.splitlines()) == 1


def test_a_short_decoder_gets_short_answers(speech_model, toys, capsys):
    short = toys.built(speech_model[0], max_batch=1, max_length=8)
    for answer in GoldenByTarget.read(short).of("ort-cpu").answers:
        assert len(answer.prompt_ids) + len(answer.token_ids) <= 8 < CONTEXT
    assert main(["verify", str(short), "--quiet"]) == 0


@pytest.mark.parametrize("max_length", [2, 4])
def test_a_decoder_that_holds_no_answer_is_refused_before_any_work(speech_model, tmp_path, max_length):
    """The longest prompt has four tokens: the start, a language, the task, no timestamps."""
    with pytest.raises(MisuseError, match=f"--max-length {max_length} must be from 5 to {CONTEXT}"):
        build(speech_model[0], tmp_path / "b", max_length=max_length)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("values", [[1.0], [float("inf")] * 32])
def test_recorded_numbers_that_cannot_be_the_encoders_are_a_mismatch(bundle, tmp_path, values, capsys):
    shutil.copytree(bundle, tmp_path / "b")
    data = json.loads((tmp_path / "b/verify.json").read_text())
    data["engines"]["ort-cpu"]["examples"][0]["values"]["cross.0.key"] = values
    (tmp_path / "b/verify.json").write_text(json.dumps(data))
    manifest = Manifest.read(tmp_path / "b")
    dataclasses.replace(manifest, files=record_files(tmp_path / "b")).write(tmp_path / "b")
    assert main(["verify", str(tmp_path / "b"), "--quiet", "--json"]) == 1
    printed = capsys.readouterr()
    assert "verify.0.wav, cross.0.key of the encoder" in printed.err
    assert json.loads(printed.out)["max_distance"] == "Infinity"


def test_a_sound_outside_the_bundle_is_refused(bundle, tmp_path):
    data = json.loads((bundle / "verify.json").read_text())
    data["engines"]["ort-cpu"]["answers"][0]["audio"] = "../sound.wav"
    (tmp_path / "verify.json").write_text(json.dumps(data))
    with pytest.raises(BundleCorruptError, match="outside the bundle"):
        GoldenByTarget.read(tmp_path)
