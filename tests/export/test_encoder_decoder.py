import numpy as np
import onnx_ir as ir
import pytest
import torch
from encoder_decoders import ENCODER_DECODERS, POSITIONS, make_encoder_decoder, write_text_checkpoint
from transformers import AutoConfig

from piston.checkpoint.architectures import TEXT_TYPES
from piston.core.bundle.interface import decoder_interface, source_encoder_interface
from piston.core.errors import MisuseError, ParityError, UnsupportedModelError
from piston.export import export_model
from piston.export.encoder_decoder import states_of, trace_encoder_decoder
from piston.export.job import save_graph
from piston.export.source_models import check_encoder_decoder
from piston.export.source_parity import check_source_parity, take_source_reference
from piston.export.tasks.text2text_generation import positions_of
from piston.runtime.backends.engine import Source

RNG = np.random.default_rng(5)
EXAMPLE = {"input_ids": torch.full((2, 5), 3), "lengths": torch.tensor([5, 3])}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """exported(name) -> (files and interfaces of both graphs, references of transformers), once for each name."""
    made = {}

    def make(name):
        if name not in made:
            work, model = tmp_path_factory.mktemp(name), make_encoder_decoder(name)
            vocab_size = model.config.vocab_size
            own, cross = states_of(model, {"input_ids": torch.ones(1, 2, dtype=torch.int64)}, None)
            sources = [Source.of_text(RNG.integers(3, vocab_size, size).tolist()) for size in (1, 4, 11, 33)]
            references = take_source_reference(
                model, "input_ids", sources, [model.config.decoder_start_token_id], vocab_size, POSITIONS
            )
            encoder, decoder = source_encoder_interface(cross), decoder_interface(own, vocab_size, cross)
            graphs = trace_encoder_decoder(model, encoder, decoder, EXAMPLE, POSITIONS)
            save_graph(graphs.encoder, work / "encoder", stack="encoder")
            save_graph(graphs.decoder, work / "decoder")
            files = (work / "encoder/model.onnx", encoder), (work / "decoder/model.onnx", own, cross)
            made[name] = files, references
        return made[name]

    return make


def test_every_supported_model_type_is_tested():
    assert {model_type for model_type, _ in ENCODER_DECODERS.values()} == set(TEXT_TYPES)


@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_cross_states_and_every_decoder_step_are_those_of_transformers(exported, name):
    files, references = exported(name)
    parity = check_source_parity(*files, references)
    assert parity.steps == 8
    assert parity.rows == 4


@pytest.mark.parametrize("name", ["umt5", "bart"])
def test_graphs_have_one_attention_a_layer_and_stack_and_the_encoder_has_no_part_of_the_decoder_but_projections(
    exported, name
):
    files, _ = exported(name)
    encoder, decoder = (ir.load(file[0]).graph for file in files)
    assert [node.op_type for node in encoder].count("Attention") == 2
    assert [node.op_type for node in decoder].count("Attention") == 2 * 3
    assert not any("encoder." in (value.name or "") for value in decoder.initializers.values())
    assert {f"layers.{layer}.output" for layer in range(2)} <= {out.name for node in encoder for out in node.outputs}


def test_a_reference_of_another_model_is_a_parity_error_that_names_the_state(exported):
    files, references = exported("t5")
    references[2].states[1] += 0.1
    try:
        with pytest.raises(
            ParityError, match=r"differs from transformers at cross.0.value of a source of 11 positions"
        ):
            check_source_parity(*files, references)
    finally:
        references[2].states[1] -= 0.1


def test_another_model_type_is_refused_with_the_list_of_those_supported():
    with pytest.raises(UnsupportedModelError, match=r"'led' are not supported; supported: bart, m2m_100,"):
        check_encoder_decoder(AutoConfig.for_model("led"), TEXT_TYPES)


def test_a_table_of_positions_ends_and_a_bias_by_distance_does_not():
    with pytest.raises(MisuseError, match="--context 49 is more than the 48 positions"):
        positions_of(make_encoder_decoder("bart"), POSITIONS + 1)
    assert positions_of(make_encoder_decoder("t5"), 3000) == 3000


def test_a_checkpoint_is_recognised_and_exported_in_bfloat16(tmp_path):
    write_text_checkpoint(tmp_path / "checkpoint", "flan-t5").to(torch.bfloat16).save_pretrained(
        tmp_path / "checkpoint"
    )
    manifest = export_model(tmp_path / "checkpoint", tmp_path / "model")
    assert manifest.task == "text2text-generation"
    assert manifest.model.dtype == manifest.cross.dtype == manifest.cache.dtype == "bfloat16"
    assert manifest.settings["decoder_start"] == [0]
    assert {"encoder/model.onnx", "decoder/model.onnx", "tokenizer.json"} <= set(manifest.files)
    assert manifest.tokenizer.eos_token_ids == (1,)
