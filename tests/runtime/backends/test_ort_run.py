"""A hook sees every run of an engine, may read and replace what goes in, and changes nothing if it does not."""

import numpy as np
import onnx_ir as ir
import pytest

pytest.importorskip("onnxruntime")

from piston.graph.tap import GIVEN, OWN, GraphTap
from piston.runtime.backends.kv_cache import KVCache
from piston.runtime.backends.ort_cpu import OrtEngine, OrtOptions, open_session

IDS = [17, 3, 90, 44, 5, 5, 128]
OPTIONS = OrtOptions(threads=1)


@pytest.fixture(scope="module")
def tapped(toy_llama, tmp_path_factory):
    """The toy, whose first norm gives out what it reads and reads an input; the name of that."""
    model = ir.load(toy_llama.path)
    tap = GraphTap(model)
    norm = next(node for node in model.graph if node.op_type.endswith("Normalization"))
    tap.inject(norm.inputs[0], "hidden", [(norm, 0)])
    tap.give_out(tap.values[norm.outputs[0].name], "normed")
    tap.give_out(next(value for value in tap.values.values() if value.name == _hidden(toy_llama)), f"hidden{OWN}")
    path = tmp_path_factory.mktemp("tapped") / "model.onnx"
    ir.save(model, path, external_data="model.onnx.data")
    return open_session(path, OPTIONS)


def _hidden(toy):
    graph = ir.load(toy.path).graph
    return next(node for node in graph if node.op_type.endswith("Normalization")).inputs[0].name


def test_a_hook_that_only_fetches_changes_no_logits_and_sees_each_chunk_and_step(toy_llama):
    session, sizes = open_session(toy_llama.path, OPTIONS), []

    def watch(run):
        assert run.fetch() == {}
        sizes.append({name: array.shape for name, array in run.states().items()})

    found = []
    for hook in (None, watch):
        engine = OrtEngine(session, KVCache(toy_llama.spec, 2, 16), chunk=4)
        engine.around_run = hook
        slot = engine.cache.admit()
        found.append([engine.prefill(slot, IDS).copy(), engine.step({slot: 9})[slot].copy()])
    np.testing.assert_array_equal(found[0][0], found[1][0])
    np.testing.assert_array_equal(found[0][1], found[1][1])
    assert len(sizes) == 3
    assert list(sizes[0]) == [state.output for state in toy_llama.spec.states]
    assert set(sizes[0].values()) == {tuple(state.sizes(1, 16)) for state in toy_llama.spec.states}


def test_what_is_injected_is_what_the_graph_computes_with(tapped, toy_llama):
    seen = {}

    def replace(run):
        run.inject({"hidden": np.ones((1, len(IDS), 64), np.float32)}, GIVEN)
        seen.update(run.fetch(["hidden"], OWN) | run.fetch(["normed"]))

    engine = OrtEngine(tapped, KVCache(toy_llama.spec, 1, 16))
    engine.around_run = replace
    engine.prefill(engine.cache.admit(), IDS)
    assert seen["hidden"].shape == (1, len(IDS), 64)
    assert np.ptp(seen["hidden"], axis=1).max() > 0  # the tokens' own embeddings differ
    assert np.ptp(seen["normed"], axis=1).max() == 0  # the injected ones do not
    assert np.abs(seen["normed"]).max() > 0
