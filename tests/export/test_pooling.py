import pytest
import torch
from encoders import HIDDEN, write_json, write_sentence_checkpoint

from piston.checkpoint.checkpoint import locate
from piston.checkpoint.task import task_of
from piston.core.errors import CheckpointError, UnsupportedModelError
from piston.export.pooling import POOLINGS, read_modules

# Two rows: three tokens, and one token with two of padding that must not count.
HIDDEN_STATES = torch.tensor([[[1.0, -4.0], [3.0, -1.0], [5.0, -7.0]], [[2.0, -2.0], [100.0, 100.0], [-100.0, 9.0]]])
MASK = torch.tensor([[True, True, True], [True, False, False]])
# By hand, of the first row; the second row is its one token.
POOLED = {
    "cls": [1.0, -4.0],
    "max": [5.0, -1.0],
    "mean": [3.0, -4.0],
    "mean_sqrt_len_tokens": [9 / 3**0.5, -12 / 3**0.5],
    "weightedmean": [(1 + 6 + 15) / 6, (-4 - 2 - 21) / 6],
    "lasttoken": [5.0, -7.0],
}


@pytest.mark.parametrize("mode", POOLINGS)
def test_a_pooling_is_what_it_is_called_and_never_sees_padding(mode):
    torch.testing.assert_close(POOLINGS[mode](HIDDEN_STATES, MASK), torch.tensor([POOLED[mode], [2.0, -2.0]]))


def modules_of(directory, **options):
    write_sentence_checkpoint(directory, **options)
    return read_modules(locate(str(directory)))


def test_modules_are_read_from_the_checkpoints_own_files(tmp_path):
    dense = torch.nn.Linear(2 * HIDDEN, 5)
    pooling = {"pooling_mode_cls_token": True, "pooling_mode_max_tokens": True, "pooling_mode_mean_tokens": False}
    found = modules_of(tmp_path, pooling=pooling, dense=dense, prompts={"q": "ask: "}, default_prompt="q")
    assert (found.head.modes, found.is_normalized, found.max_length) == (("cls", "max"), True, 16)
    assert (found.prompts, found.default_prompt) == ({"q": "ask: "}, "q")
    hidden, mask = torch.randn(3, 4, HIDDEN), torch.ones(3, 4, dtype=torch.bool)
    pooled = torch.cat([hidden[:, 0], hidden.max(dim=1).values], dim=1)
    expected = torch.tanh(pooled @ dense.weight.T + dense.bias)
    expected /= expected.norm(dim=1, keepdim=True)
    torch.testing.assert_close(found.head(hidden, mask), expected)


def test_the_newer_form_names_the_pooling(tmp_path):
    assert modules_of(tmp_path, pooling={"pooling_mode": "lasttoken"}, normalize=False).head.modes == ("lasttoken",)


def test_a_bare_encoder_gets_the_mean_and_a_remark(tmp_path):
    write_sentence_checkpoint(tmp_path)
    (tmp_path / "modules.json").unlink()
    found = read_modules(locate(str(tmp_path)))
    assert (found.head.modes, found.is_normalized) == (("mean",), False)
    assert "no modules.json" in found.remarks[0]
    assert task_of(tmp_path) == "feature-extraction"


def last_module(directory, kind):
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Last", kind)]
    items = [{"path": path, "type": f"sentence_transformers.models.{name}"} for path, name in modules]
    write_json(directory / "modules.json", items)


@pytest.mark.parametrize(
    ("edit", "problem", "message"),
    [
        (lambda place: last_module(place, "LSTM"), UnsupportedModelError, "The module LSTM"),
        (lambda place: last_module(place, "Dense"), CheckpointError, "config.json cannot be read"),
        (
            lambda place: write_json(place / "1_Pooling/config.json", {"pooling_mode": "median"}),
            UnsupportedModelError,
            "no pooling 'median'; there are cls, max, mean",
        ),
        (
            lambda place: write_json(place / "1_Pooling/config.json", {"include_prompt": False}),
            UnsupportedModelError,
            "leaves prompts out",
        ),
        (
            lambda place: write_json(place / "config_sentence_transformers.json", {"default_prompt_name": "q"}),
            CheckpointError,
            "no such prompt",
        ),
        (lambda place: (place / "modules.json").write_text("{"), CheckpointError, r"modules\.json cannot be read"),
        (
            lambda place: (place / "modules.json").write_text("[" * 100_000),
            CheckpointError,
            r"modules\.json cannot be read",
        ),
        (lambda place: write_json(place / "1_Pooling/config.json", ["mean"]), CheckpointError, "holds no JSON object"),
        (
            lambda place: write_json(place / "sentence_bert_config.json", [16]),
            CheckpointError,
            r"sentence_bert_config\.json holds no JSON object",
        ),
        (
            lambda place: write_json(place / "config_sentence_transformers.json", {"prompts": ["q"]}),
            CheckpointError,
            "must be texts by name",
        ),
        (
            lambda place: write_json(place / "config_sentence_transformers.json", {"prompts": {"q": 5}}),
            CheckpointError,
            "must be texts by name",
        ),
    ],
)
def test_what_has_no_form_in_the_graph_is_refused_by_name(tmp_path, edit, problem, message):
    write_sentence_checkpoint(tmp_path)
    edit(tmp_path)
    with pytest.raises(problem, match=message):
        read_modules(locate(str(tmp_path)))


def test_a_module_outside_the_checkpoint_is_refused(tmp_path):
    write_sentence_checkpoint(tmp_path / "checkpoint")
    write_json(tmp_path / "elsewhere/config.json", {"pooling_mode": "max"})
    for path in ("../elsewhere", str(tmp_path / "elsewhere")):
        modules = [
            {"path": place, "type": f"sentence_transformers.models.{kind}"}
            for place, kind in (("", "Transformer"), (path, "Pooling"))
        ]
        write_json(tmp_path / "checkpoint/modules.json", modules)
        with pytest.raises(CheckpointError, match="which is no directory next to it"):
            read_modules(locate(str(tmp_path / "checkpoint")))


@pytest.mark.parametrize("sizes", [{"in_features": 10**6, "out_features": 10**6}, {"in_features": "x"}, {}])
def test_a_dense_layer_is_compared_with_its_file_before_memory_is_taken(tmp_path, sizes):
    write_sentence_checkpoint(tmp_path, dense=torch.nn.Linear(HIDDEN, 5))
    write_json(tmp_path / "2_Dense/config.json", sizes)
    with pytest.raises(CheckpointError, match=r"stores \[5, 32\] weights, but its config says"):
        read_modules(locate(str(tmp_path)))
