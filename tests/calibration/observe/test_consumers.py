import numpy as np
import pytest

from piston.calibration.observe.consumers import DropChannels, Gram, Tee
from piston.calibration.observe.observers import make_observer
from piston.core.errors import CalibrationError

RNG = np.random.default_rng(9)
BLOCKS = [RNG.standard_normal((1, size, 6)).astype(np.float32) for size in (5, 1, 12)]


def fed(consumer, blocks):
    for block in blocks:
        consumer.update(block)
    return consumer


def test_gram_is_that_of_all_tokens():
    gram = fed(Gram("x"), BLOCKS)
    tokens = np.concatenate(BLOCKS, axis=1)[0].astype(np.float64)
    np.testing.assert_allclose(gram.matrix, tokens.T @ tokens, rtol=1e-5, atol=1e-5)
    assert gram.num_tokens == 18


def test_merged_grams_are_the_whole():
    gram = fed(Gram("x"), BLOCKS[:1])
    gram.merge(fed(Gram("x"), BLOCKS[1:]))
    gram.merge(Gram("x"))
    np.testing.assert_allclose(gram.matrix, fed(Gram("x"), BLOCKS).matrix, rtol=1e-12)
    assert gram.num_tokens == 18


def test_a_gram_refuses_what_is_not_finite():
    with pytest.raises(CalibrationError, match="x has 6 of 6 values"):
        Gram("x").update(np.full((1, 1, 6), np.nan, np.float32))


def test_channels_left_out_are_never_seen():
    channels = np.array([1, 4])
    gram = Gram("x")
    fed(DropChannels(gram, channels), BLOCKS)
    direct = fed(Gram("x"), [np.delete(block, channels, axis=-1) for block in BLOCKS])
    np.testing.assert_array_equal(gram.matrix, direct.matrix)
    assert DropChannels(gram, channels).kind != DropChannels(gram, np.array([1, 5])).kind


@pytest.mark.parametrize("cut", range(4))
def test_several_restored_consumers_go_on(cut):
    def several():
        return Tee(Gram("x"), make_observer("minmax", "x"), make_observer("mse", "x", per_channel=True))

    resumed = several()
    resumed.restore(fed(several(), BLOCKS[:cut]).state())
    found, expected = fed(resumed, BLOCKS[cut:]).state(), fed(several(), BLOCKS).state()
    assert found.keys() == expected.keys()
    assert all((found[name] == expected[name]).all() for name in found)


def test_several_are_of_the_kind_of_all():
    assert Tee(Gram("x"), make_observer("minmax", "x")).kind == "gram + minmax, tensor"


def test_a_gram_of_unit_tokens_counts_every_token_alike():
    tokens = np.random.default_rng(5).normal(size=(1, 20, 4)).astype(np.float32)
    loud = tokens.copy()
    loud[0, 0] *= 1e4
    grams = [Gram("x", unit_tokens=True) for _ in range(2)]
    for gram, array in zip(grams, (tokens, loud), strict=True):
        gram.update(array)
    assert np.allclose(grams[0].matrix, grams[1].matrix, atol=1e-5)
    assert np.isclose(np.trace(grams[0].matrix), 20)


def test_a_token_of_zeros_leaves_a_gram_of_unit_tokens_finite():
    gram = Gram("x", unit_tokens=True)
    gram.update(np.zeros((1, 3, 4), np.float32))
    assert not gram.matrix.any()
