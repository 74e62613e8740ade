import numpy as np
import pytest
import torch
from encoder_decoders import write_speech_checkpoint

from piston.checkpoint.checkpoint import locate
from piston.core.console import Progress
from piston.core.errors import CheckpointError
from piston.engines import build
from piston.export import ExportOptions
from piston.export.job import ExportJob
from piston.export.tasks.automatic_speech_recognition import export, recognises
from piston.runtime.backends.engine import Source
from piston.runtime.backends.registry import Sizes, open_engine
from piston.runtime.bundle import Bundle


def exported(checkpoint, work):
    """The manifest of the model directory `work`."""
    work.mkdir()
    found = locate(str(checkpoint))
    assert recognises(found)
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
    with pytest.raises(CheckpointError, match=r"preprocessor_config\.json of .* cannot be read"):
        exported(tmp_path, tmp_path / "model")
