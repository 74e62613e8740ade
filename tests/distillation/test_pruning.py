import numpy as np
import pytest
import torch
from zoo import make

from piston.core.console import Progress
from piston.core.errors import MisuseError, UnsupportedModelError
from piston.distillation.importance import rank
from piston.distillation.pruning import Goal, Kept, pruned
from piston.distillation.structure import layers_of, mlp_of

ROWS = np.random.default_rng(0).integers(0, 90, (2, 12))
QUIET = Progress(quiet=True)


def logits(model):
    with torch.no_grad():
        return model(torch.from_numpy(ROWS), use_cache=False).logits


def make_useless(layer):
    """A layer that adds nothing to the residual stream."""
    for name, parameter in layer.named_parameters():
        if name in {"self_attn.o_proj.weight", "mlp.down_proj.weight"}:
            parameter.data.zero_()


@pytest.mark.parametrize("useless", [0, 1, 2])
def test_a_layer_that_adds_nothing_ranks_last_and_can_be_removed_exactly(useless):
    model = make("llama", num_hidden_layers=3)
    make_useless(layers_of(model)[useless])
    ranking = rank(model, Goal(layers=2), ROWS, QUIET)
    assert ranking.layers[useless] == pytest.approx(0, abs=1e-6)
    assert min(value for layer, value in ranking.layers.items() if layer != useless) > 1e-3
    student = pruned(model, ranking.kept(Goal(layers=2), 3))
    assert student.config.num_hidden_layers == 2
    torch.testing.assert_close(logits(student), logits(model), rtol=1e-5, atol=1e-5)


def test_channels_that_nothing_reads_rank_last_and_can_be_removed_exactly():
    model = make("llama")
    unread = {}
    for layer in range(2):
        reads = model.get_submodule(mlp_of(model, layer).reads)
        unread[layer] = torch.randperm(reads.in_features)[:16].tolist()
        reads.weight.data[:, unread[layer]] = 0
    left = model.config.intermediate_size - 16
    ranking = rank(model, Goal(ffn=left), ROWS, QUIET)
    kept = ranking.kept(Goal(ffn=left), 2)
    assert all(set(kept.channels[layer]).isdisjoint(unread[layer]) for layer in range(2))
    torch.testing.assert_close(logits(pruned(model, kept)), logits(model), rtol=1e-5, atol=1e-5)


def test_a_head_that_nothing_reads_ranks_last_and_can_be_removed_exactly():
    model = make("qwen2", num_attention_heads=4, num_key_value_heads=2)
    size = model.config.hidden_size // 4
    for layer in layers_of(model):  # query heads 0 and 1 share key and value head 0
        layer.self_attn.o_proj.weight.data[:, : 2 * size] = 0
    ranking = rank(model, Goal(heads=1), ROWS, QUIET)
    kept = ranking.kept(Goal(heads=1), 2)
    assert kept.kv_heads == {0: (1,), 1: (1,)}
    student = pruned(model, kept)
    assert (student.config.num_attention_heads, student.config.num_key_value_heads) == (2, 1)
    torch.testing.assert_close(logits(student), logits(model), rtol=1e-5, atol=1e-5)


def test_kinds_of_layers_go_with_their_layers():
    model = make("ministral", num_hidden_layers=2)
    assert model.config.layer_types == ["sliding_attention", "full_attention"]
    assert pruned(model, Kept((1,))).config.layer_types == ["full_attention"]


def test_fused_matrices_are_refused_by_name():
    with pytest.raises(UnsupportedModelError, match="Phi3ForCausalLM has no q_proj"):
        rank(make("phi3"), Goal(heads=1), ROWS, QUIET)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["layer=3"], "write layers=N"),
        (["layers=0"], "'0' is not a number of 1 or more"),
        (["ffn=64", "ffn=32"], "given twice"),
        (["sparsity=1:2"], "only 2:4"),
    ],
)
def test_a_goal_that_says_nothing_is_refused(texts, message):
    with pytest.raises(MisuseError, match=message):
        Goal.parse(texts)


def test_a_goal_that_removes_nothing_is_refused():
    with pytest.raises(MisuseError, match="layers=2: the model has 2 layers"):
        Goal(layers=2).check(make("llama").config)
