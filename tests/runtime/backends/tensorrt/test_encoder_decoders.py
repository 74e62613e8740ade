"""Encoder-decoders on TensorRT: both files that the compiler gets, executed by doubles of CUDA and TensorRT."""

import sys

import numpy as np
import pytest

from piston.cli.main import main
from piston.core.errors import EngineError, MisuseError, PromptTooLongError
from piston.runtime import load
from piston.runtime.backends.engine import Source
from piston.runtime.sampling.beam_params import BeamParams

pytest.importorskip("onnxruntime")
pytest.importorskip("torch")

TARGET = "tensorrt-rtx:sm89"
HEADS = {"d_model": 64, "decoder_attention_heads": 4}
TEXTS = ["the sea is calm today", "wind", "das Meer ist ruhig and the wind blows from the north", "and the sea is calm"]
QUIET = {"language": "en", "temperatures": (0.0,), "compression_ratio_threshold": None, "logprob_threshold": None}


@pytest.fixture(scope="session")
def both(toys, tmp_path_factory):
    """both(name) -> the bundle of a toy for any CPU and, as plans of the double, for an sm89."""
    import gpu_doubles
    from encoder_decoders import write_speech_checkpoint, write_text_checkpoint

    from piston.engines import build
    from piston.engines.tensorrt import build as builder

    made = {}

    def of(name):
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name) / "bundle"
            if name == "whisper":
                model = toys.exported(write_speech_checkpoint, **HEADS)
            else:
                model = toys.exported(write_text_checkpoint, name, **({"d_kv": 16} if name == "t5" else HEADS))
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(builder, "compile_plan", gpu_doubles.compile_double)
                patch.setitem(sys.modules, "tensorrt_rtx", gpu_doubles.MODULE)
                build(model, made[name], ["ort-cpu", TARGET], max_batch=3, max_length=32)
        return made[name]

    return of


def answers(bundle, target, **options):
    with load(bundle, target=target) as model:
        assert model.target == target
        found = model.generate(TEXTS, model.sampling(max_tokens=8, **options))
        assert model.engine.cache.num_free == 3
    return [completion.token_ids for completion in found]


def test_texts_of_any_length_are_answered_on_the_gpu_as_on_the_cpu(both, machine):
    """Four texts in three slots: a row gets another source while others are under way."""
    expected = answers(both("t5"), "ort-cpu")
    assert answers(both("t5"), TARGET) == expected
    assert machine.runtime.leaks() == 0


def test_tokens_that_the_host_picks_are_the_same_too(both, machine):
    options = {"repetition_penalty": 1.3}  # needs the row's history
    assert answers(both("t5"), TARGET, **options) == answers(both("t5"), "ort-cpu", **options)


def logits_of(engine, prompts):
    """Of each source's first token and, after all were read, of a step of the last two rows."""
    slots = [engine.cache.admit() for _ in prompts]
    for slot, ids in zip(slots, prompts, strict=True):
        engine.encode(slot, Source.of_text(ids))
    found = [engine.prefill(slot, [0, 5]).copy() for slot in slots]
    stepped = engine.step(dict.fromkeys(slots[1:], 7))
    found += [stepped[slot][None].copy() for slot in slots[1:]]
    for slot in slots:
        engine.cache.release(slot)
    return np.concatenate(found)


def test_a_row_that_is_moved_takes_its_source_along(both, machine):
    """The step is of two rows of three, which become the first ones; all were encoded before any was read."""
    prompts = [[4, 5, 6, 1], [7, 1], [8, 9, 10, 11, 12, 13, 1]]
    found = []
    for target in ("ort-cpu", TARGET):
        with load(both("t5"), target=target) as model:
            found.append(logits_of(model.engine, prompts))
    np.testing.assert_allclose(found[1], found[0], atol=2e-2, rtol=2e-2)


def test_speech_is_recognized_on_the_gpu_as_on_the_cpu(both, machine):
    rate = 3840
    samples = (np.sin(np.arange(int(2.6 * rate)) / 5) * np.linspace(0, 0.5, int(2.6 * rate))).astype(np.float32)
    found = []
    for target in ("ort-cpu", TARGET):
        with load(both("whisper"), target=target) as model:
            found.append([segment.token_ids for segment in model.transcribe((samples, rate), **QUIET).segments])
    assert found[0] == found[1]
    assert machine.runtime.leaks() == 0


def test_the_command_verifies_both(both, machine, capsys):
    for name in ("t5", "whisper"):
        assert main(["verify", str(both(name)), "--target", TARGET, "--quiet"]) == 0
        assert f"{TARGET} answers as built" in capsys.readouterr().out


def test_what_such_an_engine_does_not_have_is_refused_with_the_remedy(both, machine):
    with load(both("t5"), target=TARGET) as model, pytest.raises(MisuseError, match="use an ort-cpu engine"):
        model.generate(["the sea"], beams=BeamParams(num_beams=2))
    with load(both("whisper"), target=TARGET) as model, pytest.raises(MisuseError, match="use an engine for ort-cpu"):
        model.transcribe((np.zeros(4000, np.float32), 3840), word_timestamps=True)


def test_a_source_beyond_the_positions_and_one_for_a_row_in_use_are_refused(both, machine):
    with load(both("t5"), target=TARGET, max_length=16) as model:
        with pytest.raises(PromptTooLongError, match="the engine reads up to 16"):
            model.generate(["sea " * 17])
        slot = model.engine.cache.admit()
        model.engine.encode(slot, Source.of_text([4, 1]))
        model.engine.prefill(slot, [0])
        with pytest.raises(MisuseError, match="is not empty"):
            model.engine.encode(slot, Source.of_text([5, 1]))


@pytest.mark.parametrize("refused", ["deserialize_cuda_engine", "create_execution_context", "execute_async_v3"])
def test_a_refusal_says_what_and_why_and_leaves_nothing(both, machine, refused):
    machine.module.refuse[refused] = "no reason of yours"
    with pytest.raises(EngineError, match="no reason of yours"), load(both("t5"), target=TARGET) as model:
        model.generate(["the sea"])
    assert machine.runtime.leaks() == 0
