"""On own kernels a row gets the same bits in any chunks of its prompt, beside any other rows, as alone."""

import numpy as np
import pytest
from own_kernels import need_kernels

from piston.runtime import kernels
from piston.runtime.backends.ort_cpu import OrtEngine
from piston.runtime.backends.session import OrtOptions
from piston.runtime.bundle import Bundle
from piston.runtime.generate.request import Ended, Request
from piston.runtime.generate.scheduler import Scheduler
from piston.runtime.sampling.params import SamplingParams
from piston.runtime.sampling.sampler import RowSampler

CAPACITY, NUM_SLOTS, END = 224, 16, 2
SIZES = {
    "hidden_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "intermediate_size": 192,
    "max_position_embeddings": CAPACITY,
}
ON_VECTORS = 1  # tile registers attend many tokens in other arithmetic than few


@pytest.fixture(scope="module", params=["w8", "w8a8", "w4"])
def engine(request, toys):
    """Own kernels of a two-layer llama; nothing of it is in a slot."""
    need_kernels()
    library = kernels.open_library()
    best = library.piston_kernels_level()
    library.piston_kernels_set_level(ON_VECTORS)
    directory = toys.bundle((kernels.TARGET,), build={"max_length": CAPACITY}, scheme=request.param, **SIZES)
    (spec,) = Bundle.open(directory).manifest.engines
    options = OrtOptions(threads=2, kernels=True)
    opened = OrtEngine.open(directory / spec.path, spec.cache, num_slots=NUM_SLOTS, capacity=CAPACITY, options=options)
    yield opened
    opened.close()
    library.piston_kernels_set_level(best)


class Row:
    """A prompt of random length and what follows it; and the logits of each of those tokens, as they are computed."""

    def __init__(self, rng, vocab_size):
        self.num_prompt = int(rng.integers(1, 170))
        self.ids = rng.integers(3, vocab_size, self.num_prompt + int(rng.integers(1, 20))).tolist()
        self.done, self.slot, self.logits = 0, None, []

    def take(self, engine, stop):
        """Compute the tokens up to `stop` at once."""
        logits = engine.prefill(self.slot, self.ids[self.done : stop])[-1].copy()
        self.done = stop
        if stop >= self.num_prompt:
            self.logits.append(logits)

    def alone(self, engine):
        """The logits of the whole prompt, then of single steps, with no other row in the engine."""
        slot, ids = engine.cache.admit(), self.ids
        found = [engine.prefill(slot, ids[: self.num_prompt])[-1].copy()]
        found += [engine.step({slot: token})[slot].copy() for token in ids[self.num_prompt :]]
        engine.cache.release(slot)
        return found


@pytest.mark.parametrize("seed", range(4))
def test_random_chunks_and_random_batches_give_the_bits_of_the_run_alone(engine, seed):
    rng = np.random.default_rng(seed)
    waiting = [Row(rng, engine.vocab_size) for _ in range(12)]
    rows, active = list(waiting), []
    while waiting or active:
        if waiting and len(active) < 5:
            active.append(waiting.pop())
            active[-1].slot = engine.cache.admit()
        row = active[rng.integers(len(active))]
        if row.done < row.num_prompt:
            row.take(engine, min(row.done + int(rng.integers(1, 70)), row.num_prompt))
        chosen = [row for row in active if row.num_prompt <= row.done < len(row.ids) and rng.random() < 0.8]
        if chosen:
            logits = engine.step({row.slot: row.ids[row.done] for row in chosen})
            for row in chosen:
                row.logits.append(logits[row.slot].copy())
                row.done += 1
        for row in [row for row in active if row.done == len(row.ids)]:
            active.remove(row)
            engine.cache.release(row.slot)
    for row in rows:
        np.testing.assert_array_equal(row.logits, row.alone(engine))


class Recording(RowSampler):
    """Keeps the logits that it picks from."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.seen = []

    def pick(self, logits):
        self.seen.append(logits.copy())
        return super().pick(logits)


def request_of(prompt, sampling):
    return Request(prompt, Recording(sampling, prompt, eos_token_ids=(END,)))


@pytest.mark.parametrize("seed", range(2))
def test_sixteen_requests_at_once_each_get_the_bits_of_their_run_alone(engine, seed):
    rng = np.random.default_rng(seed)
    system = rng.integers(3, engine.vocab_size, 60).tolist()  # of every second prompt: it is computed once and copied
    jobs, cancelled_at = [], {}
    for index in range(16):
        prompt = system[: 60 * (index % 2)] + rng.integers(3, engine.vocab_size, int(rng.integers(1, 120))).tolist()
        options = {"temperature": 0.0} if index % 3 else {"temperature": 1.0, "seed": int(rng.integers(1000))}
        jobs.append((prompt, SamplingParams(max_tokens=int(rng.integers(1, 30)), **options)))
        if index % 4 == 0:
            cancelled_at[index] = int(rng.integers(1, 20))
    requests = [request_of(*job) for job in jobs]
    scheduler = Scheduler(engine, max_stall=1e-9, keep_prefixes=True)
    arriving, events = list(requests), []
    while arriving or scheduler.has_work:
        for _ in range(int(rng.integers(0, 4))):
            if arriving:
                scheduler.add(arriving.pop(0))
        for index, when in cancelled_at.items():
            if len(requests[index].output_ids) >= when:
                scheduler.cancel(requests[index])
        events += scheduler.step()
    num_cached = sum(request.num_cached for request in requests)
    scheduler.close()
    assert num_cached > 0
    assert {event.reason for event in events if isinstance(event, Ended)} <= {"cancelled"}
    for request, job in zip(requests, jobs, strict=True):
        alone, only = request_of(*job), Scheduler(engine)
        only.add(alone)
        while only.has_work:
            list(only.step())
        count = len(request.output_ids)
        assert count == len(alone.output_ids) or request.is_cancelled
        assert request.output_ids == alone.output_ids[:count]
        np.testing.assert_array_equal(request.sampler.seen, alone.sampler.seen[:count])
