import numpy as np
import pytest

from piston.runtime.audio.resample import resampled

RATES = [(44_100, 16_000), (48_000, 16_000), (8_000, 16_000), (11_025, 16_000), (22_050, 16_000)]


def tone(hertz, rate, samples):
    return np.sin(2 * np.pi * hertz * np.arange(samples) / rate).astype(np.float32)


@pytest.mark.parametrize(("rate", "wanted"), RATES)
@pytest.mark.parametrize("hertz", [100, 1000, 3000])
def test_a_tone_stays_the_same_tone(rate, wanted, hertz):
    found = np.concatenate(list(resampled([tone(hertz, rate, rate)], rate, wanted)))
    assert len(found) == wanted
    edge = 200  # the filter reads silence beyond the ends
    np.testing.assert_allclose(found[edge:-edge], tone(hertz, wanted, wanted)[edge:-edge], atol=1e-4)


def test_a_tone_above_half_the_new_rate_is_gone():
    found = np.concatenate(list(resampled([tone(9000, 48_000, 48_000)], 48_000, 16_000)))
    assert np.abs(found[200:-200]).max() < 1e-4


@pytest.mark.parametrize(("rate", "wanted"), RATES)
def test_cutting_the_samples_into_blocks_changes_no_bit(rate, wanted):
    samples = np.random.default_rng(0).standard_normal(9_001).astype(np.float32)
    whole = np.concatenate(list(resampled([samples], rate, wanted)))
    blocks = np.split(samples, [1, 7, 7, 100, 5_000])
    np.testing.assert_array_equal(np.concatenate(list(resampled(blocks, rate, wanted))), whole)
    assert len(whole) == -(-len(samples) * wanted // rate)


def test_the_same_rate_passes_through():
    block = np.ones(3, np.float32)
    assert next(resampled([block], 16_000, 16_000)) is block
