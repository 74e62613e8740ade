import numpy as np
import onnx_ir as ir
import pytest
import torch
from encoders import COMMON, ENCODERS, HIDDEN, POSITIONS, VOCAB_SIZE, make_encoder, mean_of_tokens
from transformers import AutoConfig

from piston.core.bundle.interface import BATCH, GraphInterface, TensorSpec
from piston.core.errors import MisuseError, UnsupportedModelError
from piston.export.encoder import MODEL_TYPES, CanonicalEncoder, check_encoder, inputs_of, positions_of, trace_encoder
from piston.export.heads import Pooled
from piston.export.job import save_graph
from piston.export.pooling import SentenceHead
from piston.runtime.backends.session import OrtOptions, OrtSession
from piston.runtime.ragged import padded

RNG = np.random.default_rng(7)
ROWS = [RNG.integers(4, VOCAB_SIZE, size).tolist() for size in (1, 2, 5, 11, 20)]


def exported(model, directory):
    """A session of the traced graph, and the types of its nodes."""
    pooled = TensorSpec(name="pooled", dtype="float32", shape=(BATCH, HIDDEN), role="pooled")
    interface = GraphInterface(inputs=inputs_of(model), outputs=(pooled,))
    save_graph(trace_encoder(CanonicalEncoder(model, Pooled(SentenceHead(("mean",), []))), interface), directory)
    types = [node.op_type for node in ir.load(directory / "model.onnx").graph]
    return OrtSession.open(directory / "model.onnx", interface, OrtOptions(optimize=True)), types


def test_every_supported_model_type_is_tested():
    assert sorted(ENCODERS) == sorted(MODEL_TYPES)


@pytest.mark.parametrize("model_type", ENCODERS)
def test_a_ragged_batch_has_the_embeddings_that_transformers_gives_each_row_alone(tmp_path, model_type):
    model = make_encoder(model_type)
    expected = torch.stack([mean_of_tokens(model, row) for row in ROWS]).numpy()
    session, types = exported(model, tmp_path)
    feeds = padded(ROWS)
    np.testing.assert_allclose(session.run(feeds)["pooled"], expected, atol=2e-5)
    noise = np.arange(feeds["input_ids"].shape[1]) >= feeds["lengths"][:, None]
    other = np.where(noise, RNG.integers(0, VOCAB_SIZE, feeds["input_ids"].shape), feeds["input_ids"])
    np.testing.assert_array_equal(session.run(feeds | {"input_ids": other})["pooled"], session.run(feeds)["pooled"])
    assert types.count("Attention") == (0 if model_type == "mpnet" else 2)  # mpnet adds a bias to its scores itself


def test_another_model_type_is_refused_with_the_list_of_those_supported():
    with pytest.raises(UnsupportedModelError, match=r"'modernbert' are not supported; supported: albert, bert,"):
        check_encoder(AutoConfig.for_model("modernbert"))


def test_a_model_that_is_trained_as_a_decoder_is_refused():
    with pytest.raises(UnsupportedModelError, match="is_decoder"):
        check_encoder(AutoConfig.for_model("bert", **COMMON, is_decoder=True))


@pytest.mark.parametrize(("model_type", "positions"), [("bert", POSITIONS), ("roberta", POSITIONS - 1)])
def test_positions_end_with_the_table_which_may_begin_behind_the_padding_index(model_type, positions):
    model = make_encoder(model_type)
    assert positions_of(model, [None], None) == positions
    assert positions_of(model, [7, None], None) == 7
    with pytest.raises(MisuseError, match=f"--context {positions + 1} is more than the {positions} positions"):
        positions_of(model, [], positions + 1)
