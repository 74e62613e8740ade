"""Questions c, d and f: which kernels there are, what they cost, and what building costs."""

import json
import time

import pytest

from piston.runtime import load

HEAD_SIZES = (64, 80, 96, 128, 256)
# Large enough that a product takes longer than its launch, small enough to export in seconds.
WIDE = {
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
}


def milliseconds(call, repeat=20):
    call()
    call()
    began = time.perf_counter()
    for _ in range(repeat):
        call()
    return (time.perf_counter() - began) / repeat * 1e3


def measured(engine, length):
    """Milliseconds of a prefill of `length` tokens and of a decode step behind it."""
    slot, ids = engine.cache.admit(), [7] * length

    def prefill():
        engine.cache.rewind(slot, 0)
        engine.prefill(slot, ids)

    def step():
        engine.cache.rewind(slot, length)
        engine.step({slot: 5})

    found = milliseconds(prefill), milliseconds(step)
    engine.cache.release(slot)
    return found


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
@pytest.mark.parametrize("head_dim", HEAD_SIZES)
def test_c_attention_of_every_head_size_is_built_and_runs(bundle_of, target, finding, head_dim, dtype):
    bundle = bundle_of(dtype=dtype, head_dim=head_dim)
    with load(bundle, target=target) as model:
        prefill, step = measured(model.engine, 64)
    finding("c", f"{dtype} head size {head_dim:3}", f"prefill of 64 {prefill:.2f} ms, step {step:.3f} ms")


@pytest.mark.parametrize("scheme", ["fp", "w8a8", "w8", "w4"])
def test_d_what_a_scheme_costs_at_one_token_and_at_512(bundle_of, target, finding, scheme):
    bundle = bundle_of(scheme=scheme, max_length=640, **WIDE)
    with load(bundle, target=target) as model:
        prefill, step = measured(model.engine, 512)
        layers = _layers(model.engine)
    integers = sum("int8" in str(layer).lower() for layer in layers)
    finding("d", f"{scheme} 2 layers of 2048", f"prefill of 512 {prefill:.2f} ms, step {step:.3f} ms")
    finding("d", f"{scheme} engine inspector", f"{integers} of {len(layers)} layers name int8")


def test_f_building_takes_time_once(target, tmp_path, finding):
    from checkpoints import write_checkpoint

    from piston.engines import build
    from piston.engines.tensorrt.compiler_options import CompilerOptions
    from piston.export import export_model

    write_checkpoint(tmp_path / "checkpoint", **WIDE)
    export_model(tmp_path / "checkpoint", tmp_path / "model")
    has_timing_cache = target.startswith("tensorrt:")
    options = CompilerOptions(timing_cache=tmp_path / "timing.cache") if has_timing_cache else CompilerOptions()
    for run in ("first", "again"):
        began = time.perf_counter()
        build(tmp_path / "model", tmp_path / run, [target], max_batch=4, compiler=options)
        kept = "timing cache" if has_timing_cache else "no timing cache"
        finding("f", f"build, {run}, {kept}", f"{time.perf_counter() - began:.1f} s with its parity")


def _layers(engine):
    """What TensorRT says of its layers; names only, unless the plan was built with details."""
    inspector, kinds = engine.plan.engine.create_engine_inspector(), engine.plan.module.LayerInformationFormat
    return json.loads(inspector.get_engine_information(kinds.JSON)).get("Layers", [])
