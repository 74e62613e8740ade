"""The head alone: logits in, tokens out, against the runtime's arithmetic and against the distribution itself."""

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from onnx_text import parse

from piston.engines.tensorrt.equivalence.sampling import Draw
from piston.engines.tensorrt.lowering.next_step import NextStepPass
from piston.engines.tensorrt.lowering.sampling_head import SamplingHeadPass
from piston.runtime.sampling import processors as row
from piston.runtime.sampling.params import SamplingParams

VOCAB, CAPACITY = 200, 16
TEXT = f"""
g (int64[batch, seq] position_ids, int64[batch, k] logits_positions, float[batch, k, {VOCAB}] given)
    => (float[batch, k, {VOCAB}] logits) {{ logits = Identity (given) }}
"""


@pytest.fixture(scope="module")
def choose():
    """choose(logits [rows, vocab], Draw) -> tokens, one for each row at position 5."""
    model = parse(TEXT)
    NextStepPass(CAPACITY)(model)
    SamplingHeadPass(CAPACITY)(model)
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])

    def run(logits, draw):
        rows = len(logits)
        feed = {
            "position_ids": np.full((rows, 1), 5),
            "logits_positions": np.zeros((rows, 1), np.int64),
            "given": logits[:, None].astype(np.float32),
            **draw.inputs(),
        }
        return session.run(["next.input_ids"], feed)[0][:, 0]

    return run


def draw_of(rows, uniforms, temperature=1.0, top_k=64, top_p=1.0):
    return Draw(
        np.full(rows, temperature, np.float32),
        np.full(rows, top_k),
        np.full(rows, top_p, np.float32),
        np.repeat(np.asarray(uniforms, np.float32)[:, None], CAPACITY, axis=1),
    )


def normal(rows, seed=0):
    return np.random.default_rng(seed).normal(0, 3, (rows, VOCAB)).astype(np.float32)


def test_temperature_zero_is_greedy_whatever_the_rest(choose):
    logits = normal(50)
    assert (choose(logits, draw_of(50, np.linspace(0, 0.99, 50), 0.0, 3, 0.1)) == logits.argmax(axis=1)).all()


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"), [(1.0, 64, 1.0), (0.6, 10, 0.8), (1.7, 40, 0.5), (0.05, 64, 0.9), (1.0, 1, 1.0)]
)
def test_tokens_are_the_runtimes_own_for_the_same_uniform_numbers(choose, temperature, top_k, top_p):
    rows = 400
    logits, uniforms = normal(rows, 1), np.random.default_rng(2).random(rows, np.float32)
    options = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p)

    class Given:
        def __init__(self, value):
            self.value = float(value)

        def random(self):
            return self.value

    expected = [row.draw(row.warp(one, options), Given(u)) for one, u in zip(logits, uniforms, strict=True)]
    found = choose(logits, draw_of(rows, uniforms, temperature, top_k, top_p))
    assert (found != expected).sum() <= 1  # a number within rounding of a boundary


def test_frequencies_follow_the_distribution(choose):
    rows = 4000
    logits = np.repeat(normal(1, 4), rows, axis=0)
    tokens = choose(logits, draw_of(rows, (np.arange(rows) + 0.5) / rows, 0.8, 20, 0.9))
    weights = np.exp(row.warp(logits[0], SamplingParams(temperature=0.8, top_k=20, top_p=0.9)).astype(np.float64))
    np.testing.assert_allclose(np.bincount(tokens, minlength=VOCAB) / rows, weights / weights.sum(), atol=1e-3)


def test_equals_of_the_last_of_top_k_stay(choose):
    logits = np.full((4, VOCAB), -9, np.float32)
    logits[:, [7, 30, 90]] = 2
    logits[:, 100] = 3
    tokens = choose(logits, draw_of(4, [0.0, 0.25, 0.45, 0.999], 1.0, 2, 1.0))
    assert tokens.tolist() == [7, 30, 90, 100]


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-24])
def test_the_ends_of_the_unit_interval_give_a_token_that_is_left(choose, uniform):
    logits = normal(200, 5)
    tokens = choose(logits, draw_of(200, np.full(200, uniform), 1.0, 5, 0.9))
    for one, token in zip(logits, tokens, strict=True):
        assert np.isfinite(row.warp(one, SamplingParams(temperature=1.0, top_k=5, top_p=0.9))[token])
