import numpy as np
import onnx_ir as ir
import pytest
import torch
from encoders import CASES, COMMON, DECODERS, ENCODERS, HIDDEN, POSITIONS, VOCAB_SIZE, make_encoder
from transformers import AutoConfig

from piston.checkpoint.architectures import DECODER_TYPES, ENCODER_TYPES
from piston.core.bundle.interface import BATCH, GraphInterface, TensorSpec
from piston.core.errors import MisuseError, UnsupportedModelError
from piston.export.encoder import (
    CanonicalEncoder,
    check_encoder,
    inputs_of,
    positions_of,
    trace_encoder,
)
from piston.export.heads import Logits, Pooled, SpanLogits, canonical
from piston.export.job import save_graph
from piston.export.pooling import SentenceHead
from piston.runtime.backends.session import OrtOptions, OrtSession
from piston.runtime.ragged import padded

RNG = np.random.default_rng(7)
ROWS = [RNG.integers(4, VOCAB_SIZE, size).tolist() for size in (1, 2, 5, 11, 20)]


TYPES = [[int(2 * place >= len(row)) for place in range(len(row))] for row in ROWS]  # two segments
TOKENS, LABELS = (BATCH, "seq"), 3
# task -> head and shape of the output
OUTPUTS = {
    "feature-extraction": (Pooled(SentenceHead(("mean",), [])), (BATCH, HIDDEN)),
    "text-classification": (Logits(), (BATCH, LABELS)),
    "token-classification": (Logits(), (*TOKENS, LABELS)),
    "question-answering": (SpanLogits(), (*TOKENS, 2)),
    "text-ranking": (Logits(), (BATCH, 1)),
}
NUM_LABELS = {"question-answering": 2, "text-ranking": 1, "feature-extraction": 2}
NO_OPERATOR = {"deberta-v2", "mpnet"}  # compute attention by themselves, with a bias on its scores


def exported(model, task, directory):
    """A session of the traced graph, and the types of its nodes."""
    head, shape = OUTPUTS[task]
    output = TensorSpec(name="output", dtype="float32", shape=shape, role="logits")
    interface = GraphInterface(inputs=inputs_of(model), outputs=(output,))
    save_graph(trace_encoder(CanonicalEncoder(*canonical(model, head)), interface), directory)
    types = [node.op_type for node in ir.load(directory / "model.onnx").graph]
    return OrtSession.open(directory / "model.onnx", interface, OrtOptions(optimize=True)), types


def expected_of(model, task):
    """What transformers gives each row alone, without padding."""
    found = []
    for row, types in zip(ROWS, TYPES, strict=True):
        segments = {"token_type_ids": torch.tensor([types])} if len(inputs_of(model)) == 3 else {}
        with torch.no_grad():
            output = model(input_ids=torch.tensor([row]), **segments)
        if task == "feature-extraction":
            found.append(output.last_hidden_state[0].mean(dim=0))
        elif task == "question-answering":
            found.append(torch.stack([output.start_logits[0], output.end_logits[0]], dim=1))
        else:
            found.append(output.logits[0])
    return [row.numpy() for row in found]


def tasks_and_types():
    """Every task with every type of model; without --slow each type has one task, and each task several types."""
    for family in (ENCODERS, DECODERS):
        for place, model_type in enumerate(family):
            tasks = [task for task in OUTPUTS if model_type in CASES[task]]
            for index, task in enumerate(tasks):
                yield pytest.param(task, model_type, marks=() if index == place % len(tasks) else pytest.mark.slow)


def test_every_supported_model_type_is_tested_with_every_head():
    for task, types in CASES.items():
        decoders = DECODER_TYPES if task in {"feature-extraction", "text-classification"} else ()
        assert sorted(types) == sorted((*ENCODER_TYPES, *decoders))


@pytest.mark.parametrize(("task", "model_type"), [*tasks_and_types()])
def test_a_ragged_batch_has_the_outputs_that_transformers_gives_each_row_alone(tmp_path, task, model_type):
    model = make_encoder(model_type, task, num_labels=NUM_LABELS.get(task, LABELS))
    expected = expected_of(model, task)
    session, types = exported(model, task, tmp_path)
    feeds = padded(ROWS, TYPES)
    found = session.run(feeds)["output"]
    padding = np.arange(feeds["input_ids"].shape[1]) >= feeds["lengths"][:, None]
    noise = np.where(padding, RNG.integers(0, VOCAB_SIZE, padding.shape), feeds["input_ids"])
    noisy = session.run(feeds | {"input_ids": noise})["output"]
    for row, wanted in enumerate(expected):
        tokens = len(ROWS[row]) if wanted.ndim > 1 else None
        np.testing.assert_allclose(found[row][:tokens], wanted, atol=2e-5)
        np.testing.assert_array_equal(found[row][:tokens], noisy[row][:tokens])  # padding is not seen
    assert types.count("Attention") == (0 if model_type in NO_OPERATOR else 2)


def test_another_model_type_is_refused_with_the_list_of_those_supported():
    with pytest.raises(UnsupportedModelError, match=r"'t5' are not supported; supported: albert, bert,"):
        check_encoder(AutoConfig.for_model("t5"))


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
