import pytest

from piston.calibration.float_graph import ModelGraph
from piston.core.bundle.interface import (
    DECODER,
    ENCODER,
    CacheSpec,
    cross_states,
    decoder_interface,
    source_encoder_interface,
)
from piston.core.bundle.manifest import Manifest, ModelSpec, TokenizerSpec
from piston.core.errors import MisuseError


def test_a_model_of_several_graphs_is_refused_by_their_names(tmp_path):
    cross = cross_states([((1, 2), (1, 2))])
    cache = CacheSpec.of(num_layers=1, num_kv_heads=1, head_dim=2, dtype="float32")
    spec = ModelSpec(
        name="toy", architecture="T5", num_layers=1, hidden_size=2, vocab_size=4, max_positions=8, dtype="float32"
    )
    Manifest(
        kind="model",
        task="text2text-generation",
        model=spec,
        graphs={ENCODER: source_encoder_interface(cross), DECODER: decoder_interface(cache, 4, cross)},
        tokenizer=TokenizerSpec(),
        files={},
    ).write(tmp_path)
    with pytest.raises(MisuseError, match="has the graphs encoder, decoder; models of one graph can be calibrated"):
        ModelGraph.open(tmp_path)
