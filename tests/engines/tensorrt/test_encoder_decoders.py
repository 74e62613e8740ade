"""Encoder-decoders for TensorRT-RTX: both graphs lowered and compared with the canonical ones.

tests/end_to_end/test_sequence_matrix.py compiles them.
"""

import pytest
from encoder_decoders import write_speech_checkpoint, write_text_checkpoint

from piston.core.bundle.manifest import EngineSpec, Manifest
from piston.core.console import Progress
from piston.engines import build
from piston.engines.encoder_decoder import build_both
from piston.engines.options import BuildJob, BuildOptions

RTX = "tensorrt-rtx:sm89"
SIZES = {"max_batch": 2, "max_length": 40}
HEADS = {"d_model": 64, "decoder_attention_heads": 4}  # 16 wide, of which the compiler has kernels
NAMES = ["t5", "marian", "whisper"]


@pytest.fixture
def model_of(toys):
    """model_of(name) -> the model directory of a toy whose heads are 16 wide."""

    def of(name):
        if name == "whisper":
            return toys.exported(write_speech_checkpoint, **HEADS)
        return toys.exported(write_text_checkpoint, name, **({"d_kv": 16} if name == "t5" else HEADS))

    return of


@pytest.mark.parametrize("name", [pytest.param(name, marks=[] if name == "t5" else pytest.mark.slow) for name in NAMES])
def test_both_graphs_are_compared_and_described(name, model_of, tmp_path, fake_compiler):
    (spec,) = build(model_of(name), tmp_path / "bundle", [RTX], **SIZES).engines
    folder = RTX.replace(":", "-")
    assert spec.files == {graph: f"{graph}/{folder}/engine.plan" for graph in ("encoder", "decoder")}
    assert {state.dtype for state in spec.states["decoder"]} == {"float16"}
    for parity in (*spec.actual["parities"], *spec.actual["encoder"]["parities"]):
        assert parity["relative"] < (1e-5 if parity["dtype"] == "float32" else 1e-2)
    got, profiles = spec.actual, spec.actual["profiles"]
    if name != "whisper":
        assert profiles["decode"]["source_lengths"] == [[1], [2], [2]]
        assert spec.actual["encoder"]["profiles"]["rows"]["input_ids"] == [[1, 1], [1, 40], [1, 40]]
    assert got["max_source"] == (40 if name != "whisper" else 12)
    assert [shape[2] for shape in profiles["prefill"]["cross.0.key"]] == [got["max_source"]] * 3


def test_where_one_graph_needs_bfloat16_both_have_it(model_of, tmp_path):
    """The states that one writes are read by the other."""
    asked = []

    def builder_of(graph, needed):
        def built(job):
            asked.append((graph, job.requested["dtype"]))
            dtype = needed if job.requested["dtype"] == "auto" else job.requested["dtype"]
            cache = job.model.cache.with_dtype(dtype) if graph == "decoder" else None
            return EngineSpec.of(
                target=RTX, path="plan", cache=cache, requested={}, actual={"dtype": dtype}, graph=graph
            )

        return built

    source = model_of("t5")
    job = BuildJob(
        target=RTX,
        source=source,
        model=Manifest.read(source),
        work=tmp_path,
        requested={"dtype": "auto"},
        options=BuildOptions(**SIZES),
        progress=Progress(quiet=True),
    )
    spec = build_both(job, builder_of("encoder", "bfloat16"), builder_of("decoder", "float16"))
    assert asked == [("encoder", "auto"), ("decoder", "auto"), ("decoder", "bfloat16")]
    assert {state.dtype for state in spec.states["decoder"]} == {"bfloat16"}
