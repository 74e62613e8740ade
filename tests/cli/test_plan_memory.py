import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy_model import CACHE, manifest_of, write_bundle

from piston.cli.plan_memory import DEVICE_TARGETS, Planned, planned
from piston.core.bundle.interface import CacheSpec, cross_states
from piston.core.bundle.manifest import EngineSpec, ModelSpec
from piston.core.errors import BundleCorruptError, MissingExtraError, MisuseError
from piston.runtime import load
from piston.runtime.backends.registry import select_engine
from piston.runtime.bundle import Bundle

onnx = pytest.importorskip("onnx")
GPU = "tensorrt-rtx"
MODEL = dataclasses.asdict(manifest_of().model)
HEAD = MODEL["vocab_size"] * MODEL["hidden_size"]


def model_dir(directory, *, scheme="fp", **types):
    """A model directory whose graph has a weight of 100,000 values of each type."""
    weights = [
        onnx.helper.make_tensor(name, code, [100_000], bytes(100_000 * size), raw=True)
        for name, (code, size) in types.items()
    ]
    graph = onnx.helper.make_graph([], "g", [], [], weights)
    onnx.save(onnx.helper.make_model(graph), directory / "model.onnx")
    manifest = manifest_of(kind="model", engines=(), model=ModelSpec(**(MODEL | {"scheme": scheme})))
    manifest.write(directory)
    return manifest


F32, F16, I8 = (1, 4), (10, 2), (3, 1)


@pytest.mark.parametrize(("target", "nbytes"), [("ort-cpu", 900_000 + 4 * HEAD), ("tensorrt", 500_000)])
def test_floats_have_the_width_of_the_target_and_integers_their_own(tmp_path, target, nbytes):
    manifest = model_dir(tmp_path, a=F32, b=F16, c=I8)
    assert planned(tmp_path, manifest, target).weights == nbytes


def test_a_quantized_models_head_is_there_a_second_time_in_int8(tmp_path):
    weights = planned(tmp_path, model_dir(tmp_path, scheme="w8a8", a=F32), "ort-cpu").weights
    assert weights == 400_000 + HEAD + HEAD // 8 - 4 * HEAD  # and its embedding stays in the file


def test_a_gpu_keeps_its_cache_in_16_bits(tmp_path):
    manifest = model_dir(tmp_path, a=F32)
    caches = [planned(tmp_path, manifest, target).at(3, 5).cache for target in ("ort-cpu", "tensorrt-rtx")]
    assert caches == [15 * CACHE.bytes_per_token, 15 * CACHE.bytes_per_token // 2]


def test_a_bundles_weights_are_the_files_of_its_engine(tmp_path):
    manifest = write_bundle(tmp_path)
    assert planned(tmp_path, manifest, "ort-cpu").weights == len(b"not a graph") + 4 * HEAD


def test_an_engine_that_a_bundle_lacks_is_not_planned_from_another(tmp_path):
    manifest = write_bundle(tmp_path)
    with pytest.raises(MisuseError, match="no engine for tensorrt"):
        planned(tmp_path, manifest, "tensorrt")


def test_an_unknown_target_is_refused(tmp_path):
    with pytest.raises(MisuseError, match="the targets are ort-cpu"):
        planned(tmp_path, manifest_of(), "tpu")


def test_a_graph_that_cannot_be_read_is_told(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"\xff")
    with pytest.raises(BundleCorruptError):
        planned(tmp_path, manifest_of(kind="model", engines=()), "ort-cpu")


SHAPE = {"weights": 10**8, "cache": CACHE, "hidden_size": 64, "vocab_size": 269, "max_positions": 4096, "chunk": 128}
PLAN = Planned(target="ort-cpu", **SHAPE)


@given(st.integers(1, 4096), st.integers(0, 10**10))
def test_the_largest_batch_fits_and_one_more_does_not(length, memory):
    batch = PLAN.largest_batch(length, memory)
    assert batch == 0 or PLAN.at(batch, length).total <= memory
    assert PLAN.at(batch + 1, length).total > memory


@given(st.integers(1, 64), st.integers(0, 10**9))
def test_the_largest_length_fits_and_one_more_does_not(batch, memory):
    length = PLAN.largest_length(batch, memory)
    assert length == 0 or PLAN.at(batch, length).total <= memory
    assert length == PLAN.max_positions or PLAN.at(batch, length + 1).total > memory


def test_a_footprint_is_the_sum_of_its_parts():
    footprint = PLAN.at(2, 100)
    assert sum(footprint.parts().values()) == footprint.total
    assert np.all(np.array(list(footprint.parts().values())) > 0)


def engine_of(target, directory, **got):
    return EngineSpec.of(target=target, path=f"{directory}/engine", cache=CACHE, requested={}, actual=got)


def bundle_of(directory, *engines):
    """A bundle whose engines' files have 1,000, 2,000, ... bytes in the order given."""
    for index, spec in enumerate(engines, 1):
        path = directory / spec.path
        path.parent.mkdir()
        path.write_bytes(bytes(1000 * index))
    return write_bundle(directory, engines=engines)


@pytest.mark.parametrize("compiled", [True, False])
def test_of_the_cpus_engines_that_is_planned_which_load_takes_here(tmp_path, monkeypatch, compiled):
    if not compiled:
        monkeypatch.setattr("piston.runtime.kernels.require", lambda: (_ for _ in ()).throw(MissingExtraError("none")))
    else:
        monkeypatch.setattr("piston.runtime.kernels.require", lambda: tmp_path)
    manifest = bundle_of(tmp_path, engine_of("ort-cpu", "a"), engine_of("ort-cpu:avx512", "b"))
    taken, _ = select_engine(Bundle.open(tmp_path))
    plan = planned(tmp_path, manifest, "ort-cpu:avx512" if compiled else "ort-cpu")
    assert plan.target == taken.target
    assert plan.weights == (2000 if compiled else 1000) + 4 * HEAD


def test_a_family_is_planned_as_load_takes_it(tmp_path, monkeypatch):
    monkeypatch.setattr("piston.runtime.kernels.require", lambda: tmp_path)
    manifest = bundle_of(tmp_path, engine_of("ort-cpu:avx512", "a"))
    plan = planned(tmp_path, manifest, "ort-cpu")
    assert plan.target == select_engine(Bundle.open(tmp_path), "ort-cpu")[0].target == "ort-cpu:avx512"


@pytest.mark.parametrize(("sm", "weights"), [("sm86", 1000), ("sm89", 2000), ("sm120", 3000)])
def test_for_a_gpu_that_engine_is_planned_which_runs_on_it(tmp_path, sm, weights):
    capabilities = {"sm86": ["sm86"], "sm89": ["sm89"], "sm100,later": ["sm100", "later"]}
    engines = [
        engine_of(f"tensorrt-rtx:{name}", name.partition(",")[0], compute_capabilities=found)
        for name, found in capabilities.items()
    ]
    assert planned(tmp_path, bundle_of(tmp_path, *engines), "tensorrt-rtx", sm).weights == weights


def test_an_engine_for_another_gpu_is_not_planned(tmp_path):
    manifest = bundle_of(tmp_path, engine_of("tensorrt-rtx:sm86", "a", compute_capabilities=["sm86"]))
    with pytest.raises(MisuseError, match=r"has no engine for tensorrt-rtx on sm89 \(it has tensorrt-rtx:sm86\)"):
        planned(tmp_path, manifest, "tensorrt-rtx", "sm89")


def test_a_prefill_step_has_the_tokens_that_the_engine_gives_it(tmp_path):
    from piston.runtime.backends.ort_cpu import OrtEngine
    from piston.runtime.backends.session import OrtOptions

    opened = []
    for options in (OrtOptions(), OrtOptions(kernels=True)):
        session = SimpleNamespace(get_outputs=lambda: [SimpleNamespace(shape=[9])], get_inputs=list)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                "piston.runtime.backends.ort_cpu.open_session", lambda path, options, session=session: session
            )
            patch.setattr("piston.runtime.backends.ort_cpu.check_interface", lambda *arguments: None)
            opened.append(OrtEngine.open(tmp_path, CACHE, num_slots=1, capacity=4096, options=options)._chunk)
    manifest = model_dir(tmp_path, a=F32)
    assert [planned(tmp_path, manifest, target).chunk for target in ("ort-cpu", "ort-cpu:avx512")] == opened


def test_a_plan_has_its_rows_and_positions_whatever_is_asked_for(tmp_path):
    sizes = {"capacity": 64, "max_batch": 3, "max_positions": 60, "chunk": 16}
    manifest = bundle_of(tmp_path, engine_of("tensorrt-rtx:sm89", "a", **sizes))
    plan = planned(tmp_path, manifest, "tensorrt-rtx")
    assert (plan.chunk, plan.max_positions, plan.largest_batch(10, 10**12)) == (16, 60, 3)
    assert plan.at(2, 10).cache == 2 * 64 * CACHE.bytes_per_token


ENCODER = Planned(
    target="ort-cpu", weights=10**8, cache=CacheSpec(()), hidden_size=64, vocab_size=269, max_positions=512, chunk=128,
    num_heads=4,
)  # fmt: skip


def test_an_encoder_has_no_cache_and_reads_all_tokens_of_a_batch_at_once():
    one, several = ENCODER.at(1, 100), ENCODER.at(3, 100)
    assert (one.cache, several.activations) == (0, 3 * one.activations)
    tokens, scores = 100 * 64 * 16 * 4, 4 * 100 * 100 * 4
    assert one.activations == tokens + scores
    gpu = dataclasses.replace(ENCODER, target=GPU).at(1, 100)
    assert gpu.activations == tokens // 2  # of 16 bits, and the scores of no head are there at once


def test_an_encoder_decoder_keeps_keys_of_sources_as_long_as_its_rows_or_as_all_sources_are():
    heads = [((2, 8), (2, 8))] * 3
    own, free, fixed = CacheSpec.of_layers(heads, "float16"), cross_states(heads), cross_states(heads, 30)
    sizes = {"target": GPU, "weights": 0, "cache": own, "hidden_size": 16, "vocab_size": 50, "max_positions": 99}
    position = 3 * 2 * 2 * 8  # numbers of a position over all layers
    found = Planned(**sizes, chunk=8, cross=free.with_dtype("float16"), num_heads=2)
    assert found.at(5, 20).cache == 5 * 20 * position * 2 * 2
    found = Planned(**sizes, chunk=8, cross=fixed.with_dtype("float16"), num_heads=2)
    assert found.at(5, 20).cache == 5 * (20 + 30) * position * 2
    assert found.at(1, 4).activations == 30 * 16 * 16 * 2  # the encoder reads more than a step of the decoder


@pytest.mark.parametrize("target", ["ort-cpu", "ort-cpu:avx512", GPU, "tensorrt", "ort-cuda"])
def test_encoders_and_encoder_decoders_are_planned_on_every_target(piston, encoder_toys, text_model, target):
    for directory, keeps in ((encoder_toys.model("single"), False), (text_model[0], True)):
        result = piston("plan", directory, "--memory", "2GB", "--target", target, "--batch", 4, "--json")
        found = json.loads(result.out)
        assert (result.status, found["target"], found["fits"]) == (0, target, True)
        assert (found["bytes"]["cache"] > 0) == keeps
        weights = sum(path.stat().st_size for path in directory.rglob("model.onnx.data"))
        assert found["bytes"]["weights"] == pytest.approx(weights / (2 if target in DEVICE_TARGETS else 1), rel=0.1)


def test_a_module_is_measured_instead(tmp_path):
    manifest = dataclasses.replace(manifest_of(kind="model", engines=()), task="module", graphs={"module": None})
    with pytest.raises(MisuseError, match="measure it: `piston bench BUNDLE`"):
        planned(tmp_path, manifest, "ort-cpu")


def test_an_encoder_on_the_cpu_is_planned_for_the_tokens_that_one_run_reads(encoder_toys):
    directory = encoder_toys.bundle("single")
    manifest = Bundle.open(directory).manifest
    with load(directory, max_batch=1 << 10) as model:
        run_tokens = model.batch_tokens
    plan = planned(directory, manifest, "ort-cpu")
    assert plan.run_tokens == run_tokens
    rows = run_tokens // 16
    assert plan.at(100 * rows, 16).total == plan.at(rows, 16).total > plan.at(1, 16).total


def test_the_embedding_of_an_encoder_stays_in_its_file(encoder_toys):
    directory = encoder_toys.bundle("single")
    manifest = Bundle.open(directory).manifest
    files = sum(path.stat().st_size for path in (directory / "ort-cpu").iterdir())
    embedding = 4 * manifest.model.vocab_size * manifest.model.hidden_size
    assert planned(directory, manifest, "ort-cpu").weights == files - embedding


def test_both_graphs_of_an_encoder_decoder_have_an_embedding(text_bundle):
    """That of the encoder stays in its file; that of the decoder is tied to a float head and is there twice."""
    manifest = Bundle.open(text_bundle).manifest
    files = sum(path.stat().st_size for name in ("encoder", "decoder") for path in (text_bundle / name).rglob("*.*"))
    assert planned(text_bundle, manifest, "ort-cpu").weights == files


def test_an_encoder_in_w8a8_has_sums_in_int32_besides(encoder_toys):
    directory = encoder_toys.bundle("single")
    plan = planned(directory, Bundle.open(directory).manifest, "ort-cpu")
    quantized = dataclasses.replace(plan, is_w8a8=True)
    assert quantized.at(1, 16).activations > plan.at(1, 16).activations
    assert dataclasses.replace(quantized, target="ort-cpu:avx512").at(1, 16).activations < plan.at(1, 16).activations
