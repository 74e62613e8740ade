import os
import signal
import threading

import pytest

from piston.calibration.observe.interrupt import deferred_interrupt


def press():
    os.kill(os.getpid(), signal.SIGINT)


def test_the_first_interrupt_is_noted_and_not_raised():
    with deferred_interrupt() as interrupt:
        assert not interrupt.is_requested
        press()
        assert interrupt.is_requested


def test_the_second_interrupt_is_raised():
    with deferred_interrupt():
        press()
        with pytest.raises(KeyboardInterrupt):
            press()


def test_after_the_block_interrupts_are_raised_again():
    with deferred_interrupt():
        pass
    with pytest.raises(KeyboardInterrupt):
        press()


def test_somebody_elses_handler_stays(monkeypatch):
    pressed = []
    before = signal.signal(signal.SIGINT, lambda number, frame: pressed.append(number))
    try:
        with deferred_interrupt() as interrupt:
            press()
        assert pressed == [signal.SIGINT]
        assert not interrupt.is_requested
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_run_without_it():
    found = []

    def work():
        with deferred_interrupt() as interrupt:
            found.append(interrupt.is_requested)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [False]
