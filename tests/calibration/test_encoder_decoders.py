"""calibrate on models of two graphs: what is quantized, on which values, and what it costs."""

import copy
import json
from contextlib import closing

import numpy as np
import pytest
import torch
from encoder_decoders import END, WORDS

from piston.calibration.calibrate import calibrate
from piston.calibration.check import CheckOptions
from piston.calibration.float_graph import open_graphs
from piston.calibration.observe.inputs import AnswerInputs, SourceInputs, encoder_of
from piston.calibration.recipe import Recipe
from piston.cli.main import main
from piston.core.bundle.manifest import Manifest
from piston.core.errors import MisuseError, ShortfallError
from piston.data.rows import RowOptions
from piston.engines import build
from piston.evaluation.encoder_decoders import ForcedAnswer, open_directory
from piston.runtime import load
from piston.runtime.backends.engine import Source
from piston.runtime.backends.session import OrtOptions

ROWS = RowOptions(num_rows=8)
FREE = CheckOptions(bounds=("kl<=1000",))
# w8a8: of the logits' length; a random model has no redundancy.
MOST = 0.2
RECIPES = {"w8": Recipe(scheme="w8"), "w8a8": Recipe(scheme="w8a8"), "w4": Recipe(scheme="w4", block=16, int8=())}
GRIDS = {"w8": (127, 1024), "w4": (7, 16)}  # largest code, inputs that share a scale
SOURCE, ANSWER = [4, 5, 6, 7, 9, 1], [0, 12, 5, 13, 4]


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """A file with a source on each line."""
    path = tmp_path_factory.mktemp("texts") / "sources.txt"
    rng = np.random.default_rng(0)
    path.write_text("\n".join(" ".join(rng.choice(WORDS, size)) for size in rng.integers(4, 20, 40)))
    return path


def linears_of(model):
    """The modules that are linear layers but for the one that makes the logits."""
    found = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    return found - {"lm_head", "proj_out"}


def logits_of_transformers(model):
    return model(input_ids=torch.tensor([SOURCE]), decoder_input_ids=torch.tensor([ANSWER])).logits[0].numpy()


def logits_of(path):
    # Of packed weights ONNX Runtime's kernels round activations, too.
    exact = OrtOptions(optimize=True, prepack=False)
    with closing(open_directory(path, capacity=16, max_source=16, options=exact)) as engine:
        slot = engine.cache.admit()
        engine.encode(slot, Source.of_text(SOURCE))
        return engine.prefill(slot, ANSWER, len(ANSWER)).copy()


@pytest.fixture(scope="module")
def quantized(text_model, texts, tmp_path_factory):
    """quantized(scheme) -> (directory, result), made once."""
    made = {}

    def make(scheme):
        if scheme not in made:
            out = tmp_path_factory.mktemp("quantized") / "model"
            data = [texts] if scheme == "w8a8" else []
            checked = CheckOptions(bounds=FREE.bounds, data=None if data else texts)
            made[scheme] = out, calibrate(text_model[0], out, RECIPES[scheme], data, rows=ROWS, checked=checked)
        return made[scheme]

    return make


@pytest.mark.parametrize("scheme", RECIPES)
def test_every_linear_of_both_graphs_is_quantized(text_model, quantized, scheme):
    out, result = quantized(scheme)
    assert set(result.quantized) == linears_of(text_model[1])
    assert result.kept == ["lm_head"]
    assert Manifest.read(out).model.scheme == scheme
    Manifest.read(out).verify(out)


@pytest.mark.parametrize("scheme", GRIDS)
def test_weights_alone_give_the_logits_of_transformers_with_the_same_rounded_weights(text_model, quantized, scheme):
    largest, block = GRIDS[scheme]
    model = copy.deepcopy(text_model[1])
    for name in linears_of(model):
        for part in model.get_submodule(name).weight.data.split(block, dim=1):  # views [outputs, inputs]
            scale = part.abs().amax(dim=1, keepdim=True) / largest
            part.copy_((part / scale).round() * scale)
    np.testing.assert_allclose(logits_of(quantized(scheme)[0]), logits_of_transformers(model), atol=1e-4, rtol=1e-4)


def test_w8a8_stays_near_the_logits_of_transformers(text_model, quantized):
    expected = logits_of_transformers(text_model[1])
    error = np.linalg.norm(logits_of(quantized("w8a8")[0]) - expected) / np.linalg.norm(expected)
    assert 1e-4 < error < MOST


def test_the_encoder_runs_once_for_each_row_whose_states_fit(text_model, tmp_path, monkeypatch):
    directory, _ = text_model
    answers = [ForcedAnswer(Source.of_text([*SOURCE[:size], END]), (0,), (7,)) for size in (2, 3, 4)]
    with encoder_of(directory, Manifest.read(directory)) as session:
        states = [session.run(dict(answer.source.feeds)) for answer in answers]
        names, runs = list(states[0]), []
        monkeypatch.setattr(session, "run", lambda feeds: runs.append(1) or states[feeds["lengths"][0] - 3])
        room = sum(array.nbytes for found in states[:2] for array in found.values())
        inputs = AnswerInputs(answers, session, tmp_path / "states", most_bytes=room)
        for asked in (names, names[:1], names[2:]):
            for index, expected in enumerate(states):
                found = inputs.others(index, asked)
                assert set(found) == set(asked)
                assert all(np.array_equal(found[name], expected[name]) for name in asked)
        assert inputs.others(0, ["source_lengths"])["source_lengths"] == [3]
    assert len(runs) == 3 + 2  # the last row again, twice


def test_both_graphs_are_run_on_what_the_modules_of_transformers_read(text_model, tmp_path):
    directory, model = text_model
    answers = [
        ForcedAnswer(Source.of_text(SOURCE), (0,), tuple(ANSWER[1:])),
        ForcedAnswer(Source.of_text([8, 9, END]), (0,), (7, 8)),
    ]
    seen = {}
    hooks = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, inputs, name=name: seen.setdefault(name, []).append(inputs[0][0].numpy())
        )
        for name in linears_of(model)
    ]
    for answer in answers:
        ids = torch.tensor(answer.source.feeds["input_ids"])
        model(input_ids=ids, decoder_input_ids=torch.tensor([answer.read_ids]))
    for hook in hooks:
        hook.remove()
    encoder, decoder = open_graphs(directory)
    with encoder_of(directory, Manifest.read(directory)) as session:
        for graph, inputs in ((encoder, SourceInputs(answers)), (decoder, AnswerInputs(answers, session, tmp_path))):
            kept = {name: Kept() for name in graph.groups()}
            graph.collect(inputs, kept)
            for name, group in graph.groups().items():
                for linear in group:
                    for found, expected in zip(kept[name].arrays, seen[linear.name], strict=True):
                        np.testing.assert_allclose(found, expected, atol=1e-4, rtol=1e-4)


class Kept:
    kind = "kept"

    def __init__(self):
        self.arrays = []

    def update(self, array):
        self.arrays.append(array[0].copy())

    def state(self):
        return {}

    def restore(self, state):
        assert not state


def test_the_recipe_holds_what_both_graphs_became_and_gives_it_again(text_model, texts, quantized, tmp_path):
    out, result = quantized("w8a8")
    recipe = Recipe.from_json(json.loads(json.dumps(result.recipe.to_json())))
    again = calibrate(text_model[0], tmp_path / "again", recipe, [texts], rows=ROWS, checked=FREE)
    assert again.manifest.files == Manifest.read(out).files
    assert again.recipe == result.recipe


def test_patterns_choose_among_the_linears_of_both_graphs(text_model, texts, tmp_path):
    keep = ("encoder.*", "decoder.*.EncDecAttention.k")
    recipe = Recipe(scheme="w8a8", keep=keep, kept="float")
    result = calibrate(text_model[0], tmp_path / "out", recipe, [texts], rows=ROWS, checked=FREE)
    kept = {name for name in linears_of(text_model[1]) if name.startswith("encoder.") or "EncDecAttention.k" in name}
    assert set(result.kept) == {*kept, "lm_head"}
    with pytest.raises(MisuseError, match=r"--keep 'nothing\.here' names no linear"):
        calibrate(text_model[0], tmp_path / "other", Recipe(scheme="w8a8", keep=("nothing.here",)), [texts], rows=ROWS)


def test_tables_and_head_are_quantized_where_the_graphs_have_them(text_model, texts, tmp_path):
    recipe = Recipe(scheme="w8", head="int8", embedding="int8")
    checked = CheckOptions(bounds=FREE.bounds, data=texts)
    result = calibrate(text_model[0], tmp_path / "out", recipe, rows=ROWS, checked=checked)
    assert "lm_head" in result.quantized
    assert not result.kept
    assert result.size.actual < 0.45 * result.size.whole


@pytest.mark.parametrize("scheme", ["w8", "w8a8"])
def test_a_quantized_bundle_answers_as_its_model_directory_and_verifies(quantized, tmp_path, scheme, capsys):
    out, _ = quantized(scheme)
    manifest = build(out, tmp_path / "bundle", max_batch=2, max_length=32)
    linears = manifest.engines[0].actual["encoder"]["linears"]
    assert linears["int8" if scheme == "w8a8" else "weights8"] == 1
    text = "the sea is calm today"
    with load(tmp_path / "bundle") as model:
        (found,) = model.generate([text], model.sampling(max_tokens=1))
        source = model.encode(text)
        prefix = model.prefix
    with closing(open_directory(out, capacity=16, max_source=16)) as engine:
        slot = engine.cache.admit()
        engine.encode(slot, Source.of_text(source))
        assert found.token_ids[0] == engine.prefill(slot, prefix)[-1].argmax()
    assert main(["verify", str(tmp_path / "bundle")]) == 0


def rounded(text_model, texts, out, rounding):
    recipe = Recipe(scheme="w4", block=16, int8=(), rounding=rounding)
    checked = CheckOptions(bounds=FREE.bounds, data=texts)
    data = [] if rounding == "nearest" else [texts]
    return calibrate(text_model[0], out, recipe, data, rows=RowOptions(num_rows=32), checked=checked)


def test_gptq_of_both_graphs_moves_the_answers_less_than_rounding_to_nearest(text_model, texts, tmp_path):
    kl = {
        way: rounded(text_model, texts, tmp_path / way, way).check.comparison.values["kl"]
        for way in ("nearest", "gptq")
    }
    assert kl["gptq"] < kl["nearest"]


def test_awq_rounds_every_linear_of_both_graphs(text_model, texts, tmp_path):
    result = rounded(text_model, texts, tmp_path / "out", "awq")
    assert set(result.quantized) == linears_of(text_model[1])


def test_a_bound_that_is_not_met_leaves_nothing(text_model, texts, tmp_path):
    with pytest.raises(ShortfallError, match=r"kl<=0\.0000001.*over .* tokens of answers to 8 texts"):
        calibrate(
            text_model[0],
            tmp_path / "out",
            Recipe(scheme="w8a8"),
            [texts],
            rows=ROWS,
            checked=CheckOptions(bounds=("kl<=0.0000001",)),
        )
    assert not (tmp_path / "out").exists()


def test_both_models_are_measured_next_to_references(text_model, texts, tmp_path):
    pytest.importorskip("sacrebleu")
    (tmp_path / "pairs.tsv").write_text("text\ttarget\nthe sea is calm\tdas Meer ist ruhig\n")
    checked = CheckOptions(bounds=("kl<=1000", "chrf>=0%"), data=texts, labelled=tmp_path / "pairs.tsv")
    values = calibrate(text_model[0], tmp_path / "out", Recipe(scheme="w8"), checked=checked).check.comparison.values
    assert {"kl", "top1", "chrf", "chrf_reference", "bleu"} <= set(values)


def test_every_linear_of_a_speech_model_is_quantized(speech_model, sounds, tmp_path):
    result = calibrate(speech_model[0], tmp_path / "out", Recipe(scheme="w8a8"), [sounds], rows=ROWS, checked=FREE)
    assert set(result.quantized) == linears_of(speech_model[1])
    assert result.kept == ["proj_out"]
    assert result.manifest.made_by["calibration"]["data"]["rows"] == 8
    assert "windows of audio" in result.check.summaries[0]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--data", "builtin"], "The built-in data is text"),
        # Two of the 24 audio files go on in a second window, behind the last timestamp.
        (["--data", "CLIPS", "--samples", "60"], "The data has 26 examples; 60 and 8 to check the result on"),
        (["--data", "CLIPS", "--kv", "int8"], "--kv int8 is for language models"),
        (["--data", "/nowhere.wav"], "Cannot read /nowhere.wav"),
    ],
)
def test_what_a_speech_model_cannot_be_calibrated_on_is_refused_in_one_line(
    speech_model, sounds, tmp_path, capsys, options, said
):
    words = [str(sounds) if word == "CLIPS" else word for word in options]
    command = ["calibrate", str(speech_model[0]), "-o", str(tmp_path / "out"), "--scheme", "w8a8", "--quiet"]
    assert main([*command, *words]) == 2
    assert said in (error := capsys.readouterr().err)
    assert error.count("\n") == 1


@pytest.mark.parametrize("length", [0, -3])
def test_a_length_of_sources_below_one_is_refused(text_model, tmp_path, length):
    with pytest.raises(MisuseError, match=rf"--seq-len is {length}; it must be at least 1"):
        calibrate(text_model[0], tmp_path / "out", Recipe(scheme="w8"), rows=RowOptions(seq_len=length))
