import numpy as np
import pytest
from toy_model import VOCAB_SIZE, history_script

from piston.core.errors import MisuseError
from piston.runtime.backends.device_decoding import DeviceDecoding
from piston.runtime.backends.scripted import ScriptedEngine
from piston.runtime.generate.decode import decode
from piston.runtime.generate.request import Request
from piston.runtime.sampling.params import SamplingParams
from piston.runtime.sampling.processors import pick
from piston.runtime.sampling.sampler import RowSampler

SCRIPT = history_script(end=2, every=40)


class RunningEngine(ScriptedEngine):
    """A scripted engine that also chooses by itself: greedily, or from all by the uniform numbers it is given."""

    def __init__(self, num_slots=3):
        super().__init__(SCRIPT, vocab_size=VOCAB_SIZE, num_slots=num_slots, capacity=200)
        self.turn, self.runs = 0, []

    def prefill(self, slot, token_ids, num_logits=1):
        self.turn += 1
        return super().prefill(slot, token_ids, num_logits)

    def step(self, tokens):
        self.turn += 1
        return super().step(tokens)

    def can_choose(self, sampling):
        return sampling.top_p == 1

    def run(self, rows, num_steps):
        self.turn += 1
        turn, tokens = self.turn, {slot: row.token_id for slot, row in rows.items()}
        self.runs.append((sorted(rows), num_steps))
        for index in range(num_steps):
            logits = {slot: self._append(slot, token) for slot, token in tokens.items()}
            for slot, row in rows.items():
                drawer = type("Numbers", (), {"random": lambda _, row=row, index=index: float(row.uniforms[index])})()
                tokens[slot] = pick(logits[slot], row.sampling, drawer)
            yield dict(tokens)
            if self.turn != turn:
                return


def answers(engine, *options, ends=()):
    requests = [
        Request([5 + index, 9], RowSampler(sampling, [5 + index, 9], eos_token_ids=ends, index=index))
        for index, sampling in enumerate(options)
    ]
    for _ in decode(engine, requests):
        pass
    assert engine.cache.num_free == engine.cache.num_slots
    return [request.output_ids for request in requests]


def plain(*options, ends=()):
    return answers(ScriptedEngine(SCRIPT, vocab_size=VOCAB_SIZE, num_slots=3, capacity=200), *options, ends=ends)


def test_a_scripted_engine_is_none_that_decodes_on_a_device():
    engine = ScriptedEngine(SCRIPT, vocab_size=VOCAB_SIZE)
    assert not isinstance(engine, DeviceDecoding)


@pytest.mark.parametrize("temperature", [0, 0.5, 1.5])
def test_texts_are_those_of_the_host_whatever_ends_them(temperature):
    options = [SamplingParams(max_tokens=count, temperature=temperature, seed=4) for count in (1, 2, 30, 17, 30)]
    engine = RunningEngine()
    assert answers(engine, *options, ends=(2,)) == plain(*options, ends=(2,))
    assert engine.runs
    assert not [call for call in engine.calls if call[0] == "step"]


def test_a_run_goes_on_until_the_rows_change():
    engine = RunningEngine()
    answers(engine, SamplingParams(max_tokens=4), SamplingParams(max_tokens=9))
    assert engine.runs == [([0, 1], 3), ([1], 5)]


@pytest.mark.parametrize(
    "special",
    [
        SamplingParams(max_tokens=6, repetition_penalty=1.2),
        SamplingParams(max_tokens=6, presence_penalty=0.2),
        SamplingParams(max_tokens=6, frequency_penalty=0.2),
        SamplingParams(max_tokens=6, no_repeat_ngram_size=2),
        SamplingParams(max_tokens=6, logit_bias={7: 3.0}),
        SamplingParams(max_tokens=6, logprobs=True),
        SamplingParams(max_tokens=6, temperature=1.0, top_p=0.5, seed=1),
    ],
)
def test_one_row_that_needs_logits_is_picked_on_the_host_as_are_those_beside_it(special):
    engine = RunningEngine()
    assert answers(engine, special, SamplingParams(max_tokens=6)) == plain(special, SamplingParams(max_tokens=6))
    assert engine.runs == []


def test_min_tokens_are_counted_on_the_host_and_the_rest_on_the_device():
    engine = RunningEngine()
    options = SamplingParams(max_tokens=12, min_tokens=5)
    assert answers(engine, options, ends=(2,)) == plain(options, ends=(2,))
    assert engine.runs == [([0], 7)]


def test_streams_read_in_turns_are_not_mixed_up():
    engine = RunningEngine()
    options = [SamplingParams(max_tokens=12, temperature=1.0, seed=seed) for seed in (1, 2)]
    requests = [Request([5 + i, 9], RowSampler(o, [5 + i, 9], index=i)) for i, o in enumerate(options)]
    streams = [decode(engine, [request]) for request in requests]
    for _ in range(12):
        for stream in streams:
            next(stream)
    for stream in streams:
        assert next(stream, None) is None
    assert [request.output_ids for request in requests] == plain(*options)
    assert len(engine.runs) == 2  # each was broken off once, and not begun again


def test_numbers_handed_out_are_drawn_when_their_tokens_are_recorded():
    logits = np.zeros(VOCAB_SIZE, np.float32)
    one, two = (RowSampler(SamplingParams(temperature=1.0, seed=8), []) for _ in range(2))
    for token_id in (3, 4, 5):
        one.record(token_id)
        two.pick(logits)
    assert one.pick(logits) == two.pick(logits)
    np.testing.assert_array_equal(one.uniforms(3), one.uniforms(5)[:3])


def test_numbers_stay_below_one_in_single_precision():
    sampler = RowSampler(SamplingParams(temperature=1.0), [])
    sampler._rng = type("Rng", (), {"random": lambda _, count: np.full(count, 1 - 2.0**-53)})()
    assert sampler.uniforms(2).dtype == np.float32
    assert float(sampler.uniforms(2).max()) < 1


def test_a_finished_row_records_nothing():
    sampler = RowSampler(SamplingParams(max_tokens=1), [])
    sampler.record(3)
    assert sampler.finish_reason == "length"
    with pytest.raises(MisuseError, match="finished"):
        sampler.record(4)
