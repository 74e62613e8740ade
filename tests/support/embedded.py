"""An Embedder without ONNX Runtime: its session gives vectors that can be told by hand."""

import numpy as np
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers, processors

from piston.core.bundle.interface import BATCH, ENCODER, GraphInterface, TensorSpec
from piston.core.bundle.manifest import Manifest, ModelSpec, TokenizerSpec
from piston.runtime.tasks.feature_extraction import Embedder
from piston.runtime.tasks.question_answering import QuestionAnswerer
from piston.runtime.tasks.text_classification import TextClassifier
from piston.runtime.tasks.text_ranking import Reranker
from piston.runtime.tasks.token_classification import TokenClassifier
from piston.runtime.text.tokenizer import Tokenizer

WORDS = ["[CLS]", "[SEP]", "[UNK]", *"abcdefgh", "query", ":"]
CLS, SEP = 0, 1
A, B, C = (WORDS.index(word) for word in "abc")
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
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)]
    )
    return Tokenizer(backend)


class LetterSession:
    """Logits by hand: of a text (per_token false) or of each token; `of` makes them of one row's ids."""

    def __init__(self, of, *, per_token):
        self.of, self.per_token, self.fed = of, per_token, []

    def run(self, feeds):
        self.fed.append(feeds)
        rows = [
            np.array(self.of(ids[:length].tolist()), np.float32)
            for ids, length in zip(feeds["input_ids"], feeds["lengths"], strict=True)
        ]
        if not self.per_token:
            return {"logits": np.stack(rows)}
        longest = feeds["input_ids"].shape[1]
        return {"logits": np.stack([np.pad(row, ((0, longest - len(row)), (0, 0)), constant_values=9) for row in rows])}

    def close(self):
        pass


def letter_model(model_class, of, width, *, per_token=False, max_length=MAX_LENGTH, max_batch=2, **settings):
    """A model of an encoder task on texts of single letters, whose logits are `of(ids)`."""
    shape = (BATCH, "seq", width) if per_token else (BATCH, width)
    manifest = manifest_of(model_class.TASK, "logits", shape, settings)
    session = LetterSession(of, per_token=per_token)
    return model_class(manifest, session, tokenizer(), max_length=max_length, max_batch=max_batch)


def counts(ids):
    """Logits of two labels: how many a, and how many b."""
    return [ids.count(A), ids.count(B)]


def classifier(problem="single_label", **settings):
    return letter_model(TextClassifier, counts, 2, labels=["a-ish", "b-ish"], problem_type=problem, **settings)


def reranker():
    return letter_model(Reranker, lambda ids: [ids.count(A)], 1, activation="sigmoid", max_length=10)


def tagger():
    logits = {A: [0, 3, 0], B: [0, 0, 3]}
    of = lambda ids: [logits.get(token, [3, 0, 0]) for token in ids]  # noqa: E731
    return letter_model(TokenClassifier, of, 3, per_token=True, labels=["O", "B-A", "B-B"])


def answerer():
    """Sure of the letter c."""
    of = lambda ids: [[8, 8] if token == C else [0, 0] for token in ids]  # noqa: E731
    return letter_model(QuestionAnswerer, of, 2, per_token=True, max_length=8)


def manifest_of(task, output, shape, settings):
    """Of a toy with the words above."""
    tokens = TensorSpec(name="input_ids", dtype="int64", shape=(BATCH, "seq"), role="tokens")
    result = TensorSpec(name=output, dtype="float32", shape=shape, role=output)
    return Manifest(
        kind="bundle",
        task=task,
        model=ModelSpec(
            name="toy",
            architecture="BertModel",
            num_layers=1,
            hidden_size=3,
            vocab_size=len(WORDS),
            max_positions=MAX_LENGTH,
            dtype="float32",
        ),
        graphs={ENCODER: GraphInterface(inputs=(tokens,), outputs=(result,))},
        tokenizer=TokenizerSpec(),
        files={},
        settings=settings,
    )


def embedder(*, max_batch=2, **settings):
    """Vectors of three numbers of texts of single letters."""
    manifest = manifest_of("feature-extraction", "pooled", (BATCH, 3), settings)
    return Embedder(manifest, CountingSession(), tokenizer(), max_length=MAX_LENGTH, max_batch=max_batch)
