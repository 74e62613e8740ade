"""Live servers over scripted engines."""

import contextlib

import pytest
from live_server import serving
from toy_model import toy_model

from piston.serving.settings import Settings


@pytest.fixture
def live():
    """live(script, settings..., num_slots=, ...) -> Live, closed at the end of the test."""
    with contextlib.ExitStack() as stack:

        def start(script, *, models=None, settings=None, **keywords):
            named = models or [("toy", toy_model(script, **({"num_slots": 4} | keywords)))]
            return stack.enter_context(serving(named, Settings(**(settings or {}))))

        yield start
