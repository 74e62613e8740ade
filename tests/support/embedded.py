"""An Embedder without ONNX Runtime: its session gives vectors that can be told by hand."""

import numpy as np
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers, processors

from piston.core.bundle.interface import BATCH, ENCODER, GraphInterface, TensorSpec
from piston.core.bundle.manifest import Manifest, ModelSpec, TokenizerSpec
from piston.runtime.tasks.feature_extraction import Embedder
from piston.runtime.text.tokenizer import Tokenizer

WORDS = ["[CLS]", "[SEP]", "[UNK]", *"abcdefgh", "query", ":"]
CLS, SEP = 0, 1
MAX_LENGTH = 6


class CountingSession:
    """A row's vector: its length, the sum of its ids, and 2; remembers what it was fed."""

    def __init__(self):
        self.fed, self.is_closed = [], False

    def run(self, feeds):
        self.fed.append(feeds)
        lengths = feeds["lengths"]
        sums = [ids[:length].sum() for ids, length in zip(feeds["input_ids"], lengths, strict=True)]
        pooled = np.stack([lengths, np.array(sums), np.full(len(lengths), 2)], axis=1).astype(np.float32)
        return {"pooled": pooled}

    def close(self):
        self.is_closed = True


def tokenizer():
    backend = Backend(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)]
    )
    return Tokenizer(backend)


def embedder(*, max_batch=2, **settings):
    """Vectors of three numbers of texts of single letters."""
    tokens = TensorSpec(name="input_ids", dtype="int64", shape=(BATCH, "seq"), role="tokens")
    pooled = TensorSpec(name="pooled", dtype="float32", shape=(BATCH, 3), role="pooled")
    manifest = Manifest(
        kind="bundle",
        task="feature-extraction",
        model=ModelSpec(
            name="toy",
            architecture="BertModel",
            num_layers=1,
            hidden_size=3,
            vocab_size=len(WORDS),
            max_positions=MAX_LENGTH,
            dtype="float32",
        ),
        graphs={ENCODER: GraphInterface(inputs=(tokens,), outputs=(pooled,))},
        tokenizer=TokenizerSpec(),
        files={},
        settings=settings,
    )
    return Embedder(manifest, CountingSession(), tokenizer(), max_length=MAX_LENGTH, max_batch=max_batch)
