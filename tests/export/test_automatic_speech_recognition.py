import json
import shutil
from contextlib import closing
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from encoder_decoders import SPEECH_SETTINGS, write_speech_checkpoint

from piston.checkpoint.checkpoint import locate
from piston.checkpoint.generation_defaults import GenerationDefaults
from piston.checkpoint.task import task_of
from piston.core.console import Progress
from piston.core.errors import CheckpointError
from piston.engines import build
from piston.export import ExportOptions
from piston.export.job import ExportJob
from piston.export.tasks.automatic_speech_recognition import _remarks, export
from piston.runtime.backends.engine import Source
from piston.runtime.backends.registry import Sizes, open_engine
from piston.runtime.bundle import Bundle


def exported(checkpoint, work):
    """The manifest of the model directory `work`."""
    work.mkdir()
    found = locate(str(checkpoint))
    assert task_of(checkpoint) == "automatic-speech-recognition"
    return export(ExportJob(found, ExportOptions(), Progress(quiet=True)), work)


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    """(model directory's manifest, its path, transformers' model) of a seeded Whisper."""
    root = tmp_path_factory.mktemp("speech")
    model = write_speech_checkpoint(root / "checkpoint")
    return exported(root / "checkpoint", root / "model"), root / "model", model


def test_both_graphs_of_a_speech_model_are_those_of_transformers_on_every_step(speech):
    manifest, _, _ = speech
    assert manifest.task == "automatic-speech-recognition"
    parity = manifest.made_by["parity"]
    assert (parity["rows"], parity["steps"]) == (2, 8)
    assert [state.shape[2] for state in manifest.cross.states] == [12] * 6
    assert [tensor.shape for tensor in manifest.graphs["encoder"].inputs] == [("batch", 8, 24)]
    assert "source_lengths" not in manifest.graphs["decoder"].input_names


def test_settings_have_the_special_tokens_and_the_features_of_the_checkpoint(speech):
    settings = speech[0].settings
    assert settings["decoder_start"] == [3]
    assert settings["speech"] == {
        "start": 3,
        "end": 1,
        "no_timestamps": 5,
        "previous": 6,
        "no_speech": None,
        "languages": {"en": 7, "de": 8},
        "tasks": {"transcribe": 9, "translate": 10},
        "latest_start": 50,
        "context": 48,
    }
    assert settings["alignment_heads"] == [[0, 1], [2, 0]]
    assert settings["features"]["feature_size"] == 8


def test_an_engine_answers_audio_as_transformers_does(speech, tmp_path):
    _, directory, model = speech
    build(directory, tmp_path / "bundle", max_batch=2)
    bundle = Bundle.open(tmp_path / "bundle")
    engine = open_engine(bundle, bundle.engine(), Sizes(num_slots=2, capacity=20))
    audio = np.random.default_rng(4).uniform(-1, 1, (2, 8, 24)).astype(np.float32)
    slots = [engine.cache.admit() for _ in audio]
    for slot, window in zip(slots, audio, strict=True):
        engine.encode(slot, Source({"audio": window[None]}, slot, 12))
    logits = {slot: engine.prefill(slot, [3, 7, 9])[-1].copy() for slot in slots}
    answers = {slot: [int(row.argmax())] for slot, row in logits.items()}
    for _ in range(6):
        for slot, row in engine.step({slot: ids[-1] for slot, ids in answers.items()}).items():
            answers[slot].append(int(row.argmax()))
    for slot, window in zip(slots, torch.from_numpy(audio), strict=True):
        ids = [3, 7, 9]
        for _ in range(7):
            found = model(input_features=window[None], decoder_input_ids=torch.tensor([ids])).logits
            ids.append(int(found[0, -1].argmax()))
        assert answers[slot] == ids[3:]
    engine.close()


def test_a_checkpoint_without_its_features_is_refused(tmp_path):
    write_speech_checkpoint(tmp_path)
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"preprocessor_config\.json cannot be read"):
        exported(tmp_path, tmp_path / "model")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    directory = tmp_path_factory.mktemp("whole")
    write_speech_checkpoint(directory)
    return directory


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("generation_config.json", {"lang_to_id": {"<|en|>": 67}}, r"special token 'en' of .* is 67, .* has 67 tokens"),
        ("generation_config.json", {"lang_to_id": ["<|en|>"]}, "must have token ids by name"),
        ("generation_config.json", {"task_to_id": {"transcribe": "9"}}, "special token 'transcribe' .* is '9'"),
        ("generation_config.json", {"no_timestamps_token_id": -1}, "special token 'no_timestamps' .* is -1"),
        ("generation_config.json", {"prev_sot_token_id": True}, "special token 'previous' .* is True"),
        ("generation_config.json", {"eos_token_id": []}, r"special token 'end' .* is \[\]"),
        ("generation_config.json", {"max_initial_timestamp_index": "x"}, "max_initial_timestamp_index of .* is 'x'"),
        ("generation_config.json", {"alignment_heads": [[0, 2]]}, r"has \[0, 2\], and the decoder has 3 layers of 2"),
        ("generation_config.json", {"alignment_heads": [5]}, "has 5, and the decoder has 3 layers of 2 heads"),
        ("preprocessor_config.json", {"hop_length": 0}, "hop_length .* is 0; it must be an integer of 1 or more"),
        ("preprocessor_config.json", {"n_fft": 400.5}, r"n_fft .* is 400\.5; it must be an integer"),
        ("preprocessor_config.json", {"n_fft": 10**9}, "spectra of 1,000,000,000"),
        ("preprocessor_config.json", {"sampling_rate": 10**9, "hop_length": 10**9 // 24}, "1,000,000,000 samples"),
        ("preprocessor_config.json", {"padding_value": 0.5}, "asks for padding_value"),
        ("preprocessor_config.json", {"dither": 0.1}, "asks for dither"),
        ("config.json", {"max_source_positions": 10**9}, "whose table would take 192"),
        ("config.json", {"decoder_layers": 10**6}, "says 1,000,000 layers"),
        ("config.json", {"encoder_attention_heads": 0}, "encoder_attention_heads in the config"),
        ("config.json", {"num_mel_bins": 10**9}, "num_mel_bins|conv1"),
    ],
)
def test_settings_that_the_model_cannot_have_are_refused(whole, tmp_path, name, changes, reason):
    shutil.copytree(whole, tmp_path / "checkpoint")
    path = tmp_path / "checkpoint" / name
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(CheckpointError, match=reason):
        exported(tmp_path / "checkpoint", tmp_path / "model")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_checkpoint_in_half_precision_hears_float32_and_is_built_for_the_cpu(tmp_path, dtype):
    """Large Whispers are published in float16; samples come in float32 whatever the weights have."""
    model = write_speech_checkpoint(tmp_path / "checkpoint")
    model.to(dtype).save_pretrained(tmp_path / "checkpoint")
    settings = tmp_path / "checkpoint/generation_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | SPEECH_SETTINGS))
    manifest = exported(tmp_path / "checkpoint", tmp_path / "model")
    assert (f"torch.{manifest.model.dtype}", manifest.graphs["encoder"].inputs[0].dtype) == (str(dtype), "float32")
    build(tmp_path / "model", tmp_path / "bundle", max_batch=1)
    bundle = Bundle.open(tmp_path / "bundle")
    audio = np.random.default_rng(4).uniform(-1, 1, (1, 8, 24)).astype(np.float32)
    with closing(open_engine(bundle, bundle.engine(), Sizes(num_slots=1, capacity=20))) as engine:
        slot = engine.cache.admit()
        engine.encode(slot, Source({"audio": audio}, 0, 12))
        logits = engine.prefill(slot, [3, 7, 9])[-1].copy()
    model = model.float()  # of the rounded weights
    expected = model(input_features=torch.from_numpy(audio), decoder_input_ids=torch.tensor([[3, 7, 9]])).logits[0, -1]
    np.testing.assert_allclose(logits, expected.detach().numpy(), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("sampling", "named"),
    [
        ({"num_beams": 3, "suppress_tokens": [5]}, ["num_beams 3"]),
        ({"max_length": 5, "repetition_penalty": 1.3}, ["max_length 5", "repetition_penalty 1.3"]),
        ({"do_sample": True, "temperature": 0.5}, ["do_sample true", "temperature 0.5"]),
        ({"max_length": 448, "temperature": 0.5, "begin_suppress_tokens": [5, 6]}, []),
    ],
)
def test_settings_of_sampling_that_no_transcription_applies_are_named(sampling, named):
    defaults = GenerationDefaults(eos_token_ids=(1,), bos_token_id=None, pad_token_id=None, sampling=sampling)
    remarks = _remarks(defaults, SimpleNamespace(max_target_positions=448))
    assert len(remarks) == bool(named)
    assert all(f"settings: {', '.join(named)};" in remark for remark in remarks)
