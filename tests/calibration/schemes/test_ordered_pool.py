"""Work in threads whose results come in order, and no further ahead than is said."""

import threading
import time

import pytest

from piston.calibration.schemes.ordered_pool import AHEAD, imap_bounded


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("count", [0, 1, 20])
def test_results_come_in_order_whichever_is_through_first(threads, count):
    def work(index):
        time.sleep(0.002 * (-index % 3))
        return index * index

    assert list(imap_bounded(work, count, threads=threads)) == [index * index for index in range(count)]


def test_as_many_pieces_run_at_once_as_there_are_threads():
    meeting = threading.Barrier(3, timeout=10)
    assert [place >= 0 for place in imap_bounded(lambda _: meeting.wait(), 6, threads=3)] == [True] * 6


def test_nothing_is_begun_far_ahead_or_after_the_last_that_was_taken():
    begun = []
    results = imap_bounded(begun.append, 100, threads=2)
    for _ in range(5):
        next(results)
    time.sleep(0.05)
    assert 5 <= len(begun) <= 5 + 2 * AHEAD
    results.close()
    after = len(begun)
    time.sleep(0.05)
    assert len(begun) == after <= 5 + 2 * AHEAD


def test_what_fails_is_raised_in_its_place():
    def work(index):
        if index == 2:
            raise ValueError("the third")
        return index

    results = imap_bounded(work, 5, threads=2)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ValueError, match="the third"):
        next(results)
