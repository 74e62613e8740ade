import numpy as np
import pytest
import torch
from transformers import GenerationConfig
from transformers.generation.logits_process import WhisperTimeStampLogitsProcessor

from piston.runtime.audio.timestamps import TimestampRules, cut

END, NO_TIMESTAMPS, FIRST, VOCAB = 50, 60, 61, 120
BEGIN = 4  # tokens of the prompt


def reference(ids, logits, latest_start):
    """What transformers' processor leaves, as a mask."""
    config = GenerationConfig(eos_token_id=END, bos_token_id=END)
    config.no_timestamps_token_id = NO_TIMESTAMPS
    config.max_initial_timestamp_index = latest_start
    processor = WhisperTimeStampLogitsProcessor(config, begin_index=BEGIN)
    found = processor(torch.tensor([[0] * BEGIN + ids]), torch.tensor(logits)[None])
    return np.isfinite(found[0].numpy())


@pytest.mark.parametrize("latest_start", [None, 5])
@pytest.mark.parametrize("seed", range(8))
def test_what_may_come_next_is_what_transformers_allows_at_every_step(seed, latest_start):
    rng = np.random.default_rng(seed)
    rules = TimestampRules(no_timestamps=NO_TIMESTAMPS, end=END, latest_start=latest_start)
    ids = []
    for _ in range(25):
        logits = rng.standard_normal(VOCAB).astype(np.float32) * rng.choice([0.5, 3])
        mask = rules.allowed(logits)
        np.testing.assert_array_equal(mask, reference(ids, logits, latest_start))
        choices = np.flatnonzero(mask)
        choices = choices[choices != END]
        if not choices.size:
            break
        ids.append(int(rng.choice(choices)))
        rules.accept(ids[-1])


def stamp(seconds):
    return FIRST + round(seconds / 0.02)


def times(spans):
    return [seconds for span in spans for seconds in (span.start, span.end)]


def test_pairs_of_timestamps_cut_segments_and_the_window_goes_on_at_the_last():
    ids = [stamp(0), 1, 2, stamp(1), stamp(1), 3, stamp(1.1), stamp(1.1), 4, 5]
    spans, advance = cut(ids, FIRST, 3000)
    assert times(spans) == pytest.approx([0, 1, 1, 1.1])
    assert [span.token_ids for span in spans] == [tuple(ids[:4]), tuple(ids[4:7])]
    assert advance == 110  # the unfinished rest is decoded again


def test_a_single_timestamp_at_the_end_ends_the_window():
    ids = [stamp(0.2), 1, stamp(0.6), stamp(0.6), 2, stamp(1)]
    spans, advance = cut(ids, FIRST, 2500)
    assert times(spans) == pytest.approx([0.2, 0.6, 0.6, 1])
    assert advance == 2500


def test_text_without_pairs_is_one_segment():
    assert cut([stamp(0), 1, 2, stamp(0.8)], FIRST, 3000)[0][0].end == pytest.approx(0.8)
    spans, advance = cut([1, 2], FIRST, 1000)
    assert [(span.start, span.end, span.token_ids) for span in spans] == [(0, 10, (1, 2))]
    assert advance == 1000
