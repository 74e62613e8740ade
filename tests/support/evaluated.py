"""Scripted models under evaluation, and a text in token ids."""

from toy_model import VOCAB_SIZE, history_script, manifest_of, toy_model

from piston.evaluation.corpus import Corpus, Document
from piston.evaluation.subject import Opened

TEXT = "Grüße! Hello, no world; no hello. 1 + 1 = 2, they say, and 2 + 2 = 4.\n" * 3


def corpus_of(*documents, prefix=()):
    made = tuple(Document(tuple(prefix), tuple(int(id_) for id_ in ids)) for ids in documents)
    return Corpus(path="text", sha256="0" * 64, documents=made)


def opened(script, **changes):
    return Opened("path", "ort-cpu", toy_model(script, manifest=manifest_of(**changes)))


def other_script(change=0.3, vocab_size=VOCAB_SIZE):
    """Like history_script, a little different everywhere."""
    first, second = history_script(vocab_size), history_script(vocab_size, end=2, every=3)
    return lambda history: first(history) + change * second(history)
