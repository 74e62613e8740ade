"""Encoders on the TensorRT backend: the file that the compiler gets, executed by doubles of CUDA and TensorRT."""

import gc
import json
import sys

import numpy as np
import pytest

from piston.cli.main import main
from piston.core.errors import EngineError, MisuseError
from piston.runtime import load

pytest.importorskip("onnxruntime")
pytest.importorskip("torch")

TARGET = "tensorrt-rtx:sm89"
TEXTS = ["hello world", "paris in 10 words, or more", "a", "world " * 4, "in paris", "wo"]


@pytest.fixture(scope="session")
def both(encoder_toys, tmp_path_factory):
    """both(name) -> the bundle of a toy of encoder_fixtures for any CPU and, as a plan of the double, for an sm89."""
    import gpu_doubles

    from piston.engines import build
    from piston.engines.tensorrt import build as builder

    made = {}

    def of(name):
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name) / "bundle"
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(builder, "compile_plan", gpu_doubles.compile_double)
                patch.setitem(sys.modules, "tensorrt_rtx", gpu_doubles.MODULE)
                build(encoder_toys.model(name), made[name], ["ort-cpu", TARGET], max_batch=2)
        return made[name]

    gc.freeze()
    yield of
    gc.unfreeze()


def probabilities(model):
    return [[found.score for found in sorted(row, key=lambda item: item.label)] for row in model.classify(TEXTS)]


def test_a_classifier_says_on_the_gpu_what_it_says_on_the_cpu(both, machine):
    with load(both("single"), target="ort-cpu") as model:
        expected = probabilities(model)
    with load(both("single")) as model:
        assert model.target == TARGET
        found = probabilities(model)
    np.testing.assert_allclose(found, expected, atol=5e-3)
    assert machine.runtime.leaks() == 0


def test_a_batch_of_more_rows_than_the_plan_has_is_run_in_pieces(both, machine):
    with load(both("single")) as model:
        model.classify(["wo"] * 5)
    runs = [arguments[1] for name, arguments in machine.module.calls if name == "execute_async_v3"]
    assert [shape[0] for shape in runs] == [2, 2, 1]


@pytest.mark.parametrize(("name", "ask"), [("tagger", lambda model: model.tag(TEXTS)), ("answerer", None)])
def test_outputs_for_every_token_have_the_rows_own_lengths(both, machine, name, ask):
    ask = ask or (lambda model: [model.answer("in paris?", text) for text in TEXTS])
    answers = []
    for target in ("ort-cpu", TARGET):
        with load(both(name), target=target) as model:
            answers.append(ask(model))
    assert len(answers[0]) == len(answers[1]) == len(TEXTS)
    plain = [json.dumps(answer, default=lambda item: getattr(item, "text", str(item))) for answer in answers]
    assert plain[0] == plain[1]


def test_more_rows_or_tokens_than_the_plan_has_are_refused_when_it_is_opened(both, machine):
    with pytest.raises(MisuseError, match="max_batch is 3 and max_length 24, but the engine was built for 2 and 24"):
        load(both("single"), target=TARGET, max_batch=3)
    assert machine.runtime.leaks() == 0


def test_smaller_sizes_take_less_memory(both, machine):
    used = []
    for sizes in ({}, {"max_batch": 1, "max_length": 8}):
        with load(both("single"), target=TARGET, **sizes) as model:
            used.append(machine.runtime.used())
            model.classify(["wo", "in paris"])
    assert used[1] < used[0]


def test_a_closed_session_says_so(both, machine):
    model = load(both("single"), target=TARGET)
    model.close()
    with pytest.raises(MisuseError, match="The session is closed; load the bundle again"):
        model.classify(["wo"])


@pytest.mark.parametrize("refused", ["deserialize_cuda_engine", "create_execution_context", "execute_async_v3"])
def test_a_refusal_says_what_and_why_and_leaves_nothing(both, machine, refused):
    machine.module.refuse[refused] = "no reason of yours"
    with pytest.raises(EngineError, match="no reason of yours"), load(both("single"), target=TARGET) as model:
        model.classify(["wo"])
    assert machine.runtime.leaks() == 0


def test_verify_and_inspect_know_the_engine(both, machine, capsys):
    assert main(["verify", str(both("single")), "--target", TARGET, "--quiet"]) == 0
    assert f"{TARGET} answers as built; outputs for" in capsys.readouterr().out
    assert main(["inspect", str(both("single")), "--json"]) == 0
    assert TARGET in capsys.readouterr().out
