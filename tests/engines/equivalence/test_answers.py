import math
import shutil

import onnx_ir as ir
import pytest
from zoo import WINDOW

from piston.core.errors import ParityError
from piston.engines.equivalence.answers import check_parity
from piston.engines.ort.cpu_graph import build_ort

MAX_LENGTH = 64


@pytest.fixture(scope="module")
def lowered(toy, tmp_path_factory):
    """A built engine, and a copy of it with some attributes or weights changed by hand."""
    canonical = toy("gemma3_text")
    built = build_ort(canonical.path, tmp_path_factory.mktemp("engine"), MAX_LENGTH)

    def broken(out, change):
        model = ir.load(built.path)
        change(model)
        shutil.copyfile(built.path.parent / "model.onnx.data", out / "model.onnx.data")
        ir.save(model, out / "model.onnx")
        return out / "model.onnx"

    return canonical, built.path, broken


def attentions(model):
    return [node for node in model.graph if node.op_type == "GroupQueryAttention"]


def scale(node, factor):
    node.attributes["scale"] = ir.AttrFloat32("scale", node.attributes["scale"].as_float() * factor)


def prove_change(lowered, out, change, **options):
    canonical, _, broken = lowered
    return check_parity(canonical.path, broken(out, change), canonical.cache, max_length=MAX_LENGTH, **options)


def test_what_was_compared_is_recorded(lowered):
    canonical, path, _ = lowered
    parity = check_parity(canonical.path, path, canonical.cache, max_length=MAX_LENGTH, windows=[WINDOW, 5000])
    assert parity.prompt_lengths == [3, 8, WINDOW + 9, 21]
    assert parity.steps == 8
    assert parity.compared == 3 + 8 + 16 + 21 + 4 * parity.steps
    assert 0 < parity.max_abs < parity.bound


def test_prompts_fit_a_short_engine(lowered):
    canonical, path, _ = lowered
    parity = check_parity(canonical.path, path, canonical.cache, max_length=10)
    assert (parity.prompt_lengths, parity.steps) == ([2], 8)


def test_an_engine_of_two_positions_is_still_proved(lowered):
    canonical, path, _ = lowered
    parity = check_parity(canonical.path, path, canonical.cache, max_length=2)
    assert (parity.prompt_lengths, parity.steps) == ([1], 1)


def test_a_wrong_scale_in_the_first_layer_is_found_and_the_layer_named(lowered, tmp_path):
    state = r"present\.1\.key is the first state to differ"
    expected = rf"prefill of 3 tokens: logits differ by .*{state} .*layer 0's attention"
    with pytest.raises(ParityError, match=expected):
        prove_change(lowered, tmp_path, lambda model: scale(attentions(model)[0], 1.2))


def test_a_wrong_scale_in_the_last_layer_is_found_behind_the_caches(lowered, tmp_path):
    with pytest.raises(ParityError, match="All caches agree: look at layer 1's attention"):
        prove_change(lowered, tmp_path, lambda model: scale(attentions(model)[-1], 1.2))


def test_wrong_keys_are_found_in_their_own_layer(lowered, tmp_path):
    def rotate_otherwise(model):
        attentions(model)[0].attributes["rotary_interleaved"] = ir.AttrInt64("rotary_interleaved", 1)

    with pytest.raises(ParityError, match=r"present\.0\.key is the first .*layer 0's projections or rotary"):
        prove_change(lowered, tmp_path, rotate_otherwise)


@pytest.mark.parametrize("window", [WINDOW - 1, WINDOW + 1])
def test_a_window_off_by_one_is_found_by_a_prompt_beyond_it(lowered, tmp_path, window):
    def widen(model):
        node = next(node for node in attentions(model) if node.attributes["local_window_size"].as_int() == WINDOW)
        node.attributes["local_window_size"] = ir.AttrInt64("local_window_size", window)

    with pytest.raises(ParityError, match=r"prefill of (8|16) tokens"):
        prove_change(lowered, tmp_path, widen, windows=[WINDOW])


def test_logits_that_are_no_numbers_fail(lowered, tmp_path):
    with pytest.raises(ParityError, match="logits differ by nan"):
        prove_change(lowered, tmp_path, lambda model: scale(attentions(model)[0], math.nan))
