"""The call to the compiler: its refusals in our words, its options, and how it is stopped."""

import _thread
import threading
from types import SimpleNamespace

import numpy as np
import onnx_ir as ir
import pytest
from onnx_text import parse

from piston.core.console import Progress
from piston.core.errors import EngineError, MissingExtraError, MisuseError
from piston.engines.tensorrt.compile import _apply, _keep_timings, compile_plan
from piston.engines.tensorrt.compiler_options import CompilerOptions
from piston.engines.tensorrt.profiles import profiles_of
from piston.engines.tensorrt.target import Target

TARGET = Target.parse("tensorrt-rtx:sm89")
QUIET = Progress(quiet=True)


@pytest.fixture
def compile_graph(tmp_path):
    """compile_graph(text) -> Compiled of a graph in ONNX's text form."""
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install 'piston[rtx]'")

    def compile_text(text, options=None, progress=QUIET, target=TARGET, **weights):
        ir.save(parse(text, **weights), tmp_path / "model.onnx")
        goal = tmp_path / "engine.plan"
        return compile_plan(tmp_path / "model.onnx", goal, target, {}, options or CompilerOptions(), progress)

    return compile_text


def test_the_parsers_refusal_is_told_in_one_line(compile_graph):
    with pytest.raises(EngineError, match=r"TensorRT's parser refuses the graph at .*\(Multinomial\)") as caught:
        compile_graph("g (float[2, 3] x) => (int32[2, 1] y) { y = Multinomial (x) }")
    assert "\n" not in str(caught.value)


def test_an_input_that_the_parser_drops_is_found(compile_graph):
    text = """g (float16[1, 2, 4, 16] q, float16[1, 2, 4, 16] k, int64[1] lengths) => (float16[1, 2, 4, 16] y) {
        y = Attention <is_causal = 1> (q, k, k, , , , lengths) }"""
    with pytest.raises(EngineError, match="No layer reads lengths: the parser dropped it"):
        compile_graph(text)


def test_an_input_that_decides_shapes_is_refused(compile_graph):
    text = "g (float[6] x, int64[2] dims) => (float[a, b] y) { y = Reshape (x, dims) }"
    with pytest.raises(EngineError, match="dims decides shapes"):
        compile_graph(text)


def test_workspace_and_several_gpus_are_taken(compile_graph, tmp_path):
    from piston.core.bundle.plan_header import PlanHeader

    target = Target.parse("tensorrt-rtx:sm86,sm120")
    compile_graph("g (float[2] x) => (float[2] y) { y = Relu (x) }", CompilerOptions(workspace=2**30), target=target)
    assert PlanHeader.read(tmp_path / "engine.plan").compute_capabilities == ("sm86", "sm120")


def test_ctrl_c_stops_the_compiler_and_leaves_no_plan(lowered_toy, tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install 'piston[rtx]'")
    file = lowered_toy("llama").file
    profiles = profiles_of(ir.load(file.path).graph, file.sizes)
    phases = []

    class Interrupting(Progress):
        def step(self, name, done, total):
            phases.append(name)
            if len(phases) == 3:
                _thread.interrupt_main()

    goal = tmp_path / "engine.plan"
    with pytest.raises(KeyboardInterrupt):
        compile_plan(file.path, goal, TARGET, profiles, CompilerOptions(), Interrupting(quiet=True))
    assert not goal.exists()
    assert not [thread for thread in threading.enumerate() if thread.name == "tensorrt-build"]
    compile_plan(file.path, goal, TARGET, profiles, CompilerOptions(), QUIET)  # and it can be called again
    assert goal.exists()


def test_a_compiler_that_is_not_installed_is_named_with_its_extra(tmp_path):
    with pytest.raises(MissingExtraError, match=r"tensorrt cannot be imported .* pip install 'piston\[trt\]'"):
        compile_plan(tmp_path, tmp_path, Target.parse("tensorrt"), {}, CompilerOptions(), QUIET)


def test_a_timing_cache_that_cannot_be_written_costs_no_finished_plan(tmp_path, capsys):
    _keep_timings(tmp_path / "nowhere/timings", b"timings")
    assert "warning: the timing cache is not kept: Cannot write" in capsys.readouterr().err
    _keep_timings(tmp_path / "timings", b"timings")
    assert (tmp_path / "timings").read_bytes() == b"timings"


LACKING = {
    "timing_cache": "times no kernels",
    "refit": "needs a GPU for plans that can be refitted",
    "weight_streaming": "ignores it",
    "version_compatible": "read by the version that wrote it",
    "hardware_compatible": "name the GPUs in the target instead",
    "optimization_level": "ignores it",
}


@pytest.mark.parametrize("name", LACKING)
def test_what_tensorrt_rtx_has_not_got_is_refused_with_the_reason(name, tmp_path):
    value = {"timing_cache": tmp_path, "hardware_compatible": "same", "optimization_level": 3}.get(name, True)
    options = CompilerOptions(**{name: value})
    with pytest.raises(
        MisuseError, match=rf"--{name.replace('_', '-')} is not for tensorrt-rtx:sm89: .*{LACKING[name]}"
    ):
        options.check(TARGET)
    options.check(Target.parse("tensorrt:sm90"))


def test_sparse_weights_set_the_compilers_flag_and_no_other():
    flags = []
    module = SimpleNamespace(BuilderFlag=SimpleNamespace(SPARSE_WEIGHTS="sparse"))
    _apply(module, SimpleNamespace(set_flag=flags.append), CompilerOptions(sparse_weights=True))
    assert flags == ["sparse"]


def test_a_graph_with_sparse_weights_compiles(compile_graph):
    weight = np.tile(np.array([[1.0], [0.0], [0.0], [2.0]], np.float16), (16, 64))
    text = "g (float16[2, 64] x) => (float16[2, 64] y) { y = MatMul (x, weight) }"
    assert compile_graph(text, CompilerOptions(sparse_weights=True), weight=weight).plan_bytes > 0
