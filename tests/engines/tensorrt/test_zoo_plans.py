"""Every architecture in float16 and in w8a8: lowered, proved on ONNX Runtime, and built by TensorRT-RTX."""

import onnx_ir as ir
import pytest
from zoo import ZOO

from piston.core.bundle.plan_header import PlanHeader
from piston.core.console import Progress
from piston.core.errors import EngineError
from piston.engines.tensorrt.build import prove_file
from piston.engines.tensorrt.compile import compile_plan
from piston.engines.tensorrt.compiler_options import CompilerOptions
from piston.engines.tensorrt.precision_mix import precision_mix
from piston.engines.tensorrt.profiles import profiles_of
from piston.engines.tensorrt.target import Target

SOFT_CAPPED = {"gemma2", "vaultgemma"}
TARGET = Target.parse("tensorrt-rtx:sm89")
MOST_LOST = {"float32": 2e-5, "float16": 1e-2}  # of the largest logit, seen over all toys: 2.6e-6 and 3e-3


def architectures_and_schemes():
    """Every architecture in both schemes; without --slow each has one of them in turn."""
    for place, model_type in enumerate(sorted(set(ZOO) - SOFT_CAPPED)):
        for index, scheme in enumerate(("fp", "w8a8")):
            is_default = model_type == "llama" or place % 2 == index
            yield pytest.param(model_type, scheme, marks=() if is_default else pytest.mark.slow)
    # Weight-only schemes differ in weights alone, and one architecture stands for all.
    for scheme in ("w8", "w8 block 32", "w4", "w4 block 128", "w8a8 remainder"):
        yield pytest.param("llama", scheme)


CASES = [*architectures_and_schemes()]
# The compiler takes longer than the proof: by default it builds INT8 alone.
COMPILED = [
    pytest.param(*case.values, marks=case.marks if case.values[1] == "w8a8" else pytest.mark.slow) for case in CASES
]
ARITHMETIC = {"fp": "float", "w8a8": "int8", "w8": "weights8", "w4": "weights4"}


@pytest.mark.parametrize(("model_type", "scheme"), [*CASES, pytest.param("llama", "w8a8 mixed")])
def test_an_architecture_is_lowered_and_answers_as_the_canonical_graph(model_type, scheme, lowered_toy):
    made = lowered_toy(model_type, scheme)
    float32, narrow = prove_file(made.reference, made.model, made.file)
    assert (float32["dtype"], narrow["dtype"]) == ("float32", "float16")
    for parity in (float32, narrow):
        assert parity["relative"] <= MOST_LOST[parity["dtype"]]
        assert parity["steps"] == 14
        assert parity["tokens"] == parity["compared"] > 30
        assert {0, 1, 7, 24, 49} <= set(parity["positions"])
        assert (parity["activations"] > 0) == scheme.startswith("w8a8")


@pytest.mark.parametrize(("model_type", "scheme"), COMPILED)
def test_the_compiler_builds_the_very_file(model_type, scheme, lowered_toy, tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install 'piston[rtx]'")
    file = lowered_toy(model_type, scheme).file
    graph = ir.load(file.path).graph
    assert precision_mix(graph).share(ARITHMETIC[scheme.partition(" ")[0]]) == 1
    profiles = profiles_of(graph, file.sizes)
    goal = tmp_path / "engine.plan"
    compiled = compile_plan(file.path, goal, TARGET, profiles, CompilerOptions(), Progress(quiet=True))
    header = PlanHeader.read(goal)
    assert (header.compiler, header.compute_capabilities) == ("tensorrt_rtx", ("sm89",))
    assert header.size == compiled.plan_bytes == goal.stat().st_size
    assert header.version_text == compiled.compiler_version


def test_linears_with_weights_alone_in_int8_stand_beside_integer_products(lowered_toy):
    mix = precision_mix(ir.load(lowered_toy("llama", "w8a8 mixed").file.path).graph)
    alone = 112 * 64 + 64 * 32  # a down_proj and a v_proj
    assert mix.layers["weights8"] == alone
    assert mix.share("int8") == 1 - mix.share("weights8")


@pytest.mark.parametrize(
    ("target", "gpus"),
    [
        ("tensorrt-rtx", {"sm80", "sm86", "sm89", "sm120", "later"}),
        ("tensorrt-rtx:sm75,sm89", {"sm75", "sm89"}),
        ("tensorrt-rtx:sm120,sm121", {"sm120", "sm121"}),
    ],
)
def test_a_plan_is_for_the_gpus_of_its_target(target, gpus, lowered_toy, tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install 'piston[rtx]'")
    file, goal = lowered_toy("llama", "w8").file, tmp_path / "engine.plan"
    profiles = profiles_of(ir.load(file.path).graph, file.sizes)
    compile_plan(file.path, goal, Target.parse(target), profiles, CompilerOptions(), Progress(quiet=True))
    assert set(PlanHeader.read(goal).compute_capabilities) >= gpus


@pytest.mark.parametrize("model_type", sorted(SOFT_CAPPED))
def test_soft_capping_is_refused_by_name(model_type, lowered_toy):
    with pytest.raises(
        EngineError, match=r"no form for model\.layers\.0\.self_attn/Attention: it soft-caps its scores"
    ):
        lowered_toy(model_type)
