"""One trace for several exports."""

import contextlib

import pytest


@pytest.fixture(scope="module")
def one_trace():
    """`with one_trace():` exports get copies of the module's first trace: of one checkpoint, in float32, as it says."""
    from piston.export.tasks import text_generation

    graphs, trace = [], text_generation.trace

    def copy_of_trace(*given):
        if not graphs:
            graphs.append(trace(*given))
        return graphs[0].clone()

    @contextlib.contextmanager
    def tracing_once():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(text_generation, "trace", copy_of_trace)
            yield

    return tracing_once
