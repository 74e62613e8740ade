"""Tasks by ways to an answer: what test_encoder_matrix.py and test_sequence_matrix.py run, and their table."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

SCHEMES = ("fp", "w8a8")
CPU_TARGETS = ("ort-cpu", "ort-cpu:avx512")
PLAN = "tensorrt-rtx:sm89"
TEXTS = ["hello world", "in paris?", "Héllo 你好 wörld, a b c"]
QUESTION, CONTEXT = "in paris?", "Hello wörld 你好 in paris, a b c"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """How a toy is asked by command and over HTTP, and the method of the runtime.

    Attributes:
        task: of the bundle.
        method: what `piston.runtime.load` gives is asked by it.
        words: of the command; AUDIO is replaced by the path of a sound.
        path: over HTTP.
        body: JSON; of a row with audio the fields of a form.
        toy: name of sequence_fixtures where the row has another.
        beam_words: of the command, in addition, for a beam search; empty where there is none.
        beam_body: over HTTP, as beam_words.
    """

    task: str
    method: str
    words: tuple[str, ...]
    path: str
    body: dict[str, Any]
    toy: str = ""
    beam_words: tuple[str, ...] = ()
    beam_body: dict[str, Any] = field(default_factory=dict)

    @property
    def asks(self) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
        """Words and body of each way to ask: greedily, and by beam search."""
        yield self.words, self.body
        if self.beam_words:
            yield (*self.words, *self.beam_words), self.body | self.beam_body


def _each(option: str, texts: list[str]) -> tuple[str, ...]:
    return tuple(word for text in texts for word in (option, text))


_RANKED = {"query": QUESTION, "documents": TEXTS}
# By the name of the toy.
ROWS = {
    "single": Row(
        task="text-classification",
        method="classify",
        words=_each("--text", TEXTS),
        path="/classify",
        body={"input": TEXTS},
    ),
    "multi": Row(
        task="text-classification",
        method="classify",
        words=_each("--text", TEXTS),
        path="/v1/moderations",
        body={"input": TEXTS},
    ),
    "regression": Row(
        task="text-classification",
        method="classify",
        words=_each("--text", TEXTS),
        path="/classify",
        body={"input": TEXTS},
    ),
    "tagger": Row(
        task="token-classification",
        method="tag",
        words=(*_each("--text", TEXTS), "--aggregation", "none", "--ignore-label", "nothing"),
        path="/tag",
        body={"input": TEXTS, "aggregation": "none", "ignore_labels": []},
    ),
    "answerer": Row(
        task="question-answering",
        method="answer",
        words=("--question", QUESTION, "--context", CONTEXT),
        path="/answer",
        body={"question": QUESTION, "context": CONTEXT},
    ),
    "embedder": Row(
        task="feature-extraction",
        method="embed",
        words=_each("--text", TEXTS),
        path="/v1/embeddings",
        body={"input": TEXTS},
    ),
    "reranker": Row(
        task="text-ranking",
        method="rerank",
        words=("--query", QUESTION, *_each("--document", TEXTS)),
        path="/v1/rerank",
        body=_RANKED,
    ),
}


SOURCES = ["the sea is calm today", "wind", "and the wind blows from the north"]
NUM_TOKENS, NUM_BEAMS, NUM_ANSWERS, LENGTH_PENALTY = 8, 3, 2, 0.6
AUDIO = "AUDIO.wav"
_TEXTS = (*_each("--text", SOURCES), "--max-tokens", str(NUM_TOKENS))
_BEAMS = ("--num-beams", str(NUM_BEAMS), "-n", str(NUM_ANSWERS), "--length-penalty", str(LENGTH_PENALTY))
_SPEECH_BEAMS: dict[str, Any] = {
    "beam_words": ("--num-beams", str(NUM_BEAMS), "--length-penalty", str(LENGTH_PENALTY)),
    "beam_body": {"num_beams": NUM_BEAMS, "length_penalty": LENGTH_PENALTY},
}


def _translations(source: str, target: str) -> Row:
    return Row(
        task="text2text-generation",
        method="translate",
        words=(*_TEXTS, "--source-lang", source, "--target-lang", target),
        path="/translate",
        body={"q": SOURCES, "source": source, "target": target, "max_tokens": NUM_TOKENS},
        beam_words=_BEAMS,
        beam_body={"num_beams": NUM_BEAMS, "alternatives": NUM_ANSWERS - 1, "length_penalty": LENGTH_PENALTY},
    )


# Encoder-decoders, by the name of the toy but for those of speech.
SEQUENCES = {
    "flan-t5": Row(
        task="text2text-generation",
        method="generate",
        words=_TEXTS,
        path="/v1/completions",
        body={"prompt": SOURCES, "max_tokens": NUM_TOKENS},
        beam_words=_BEAMS,
        beam_body={
            "use_beam_search": True,
            "best_of": NUM_BEAMS,
            "n": NUM_ANSWERS,
            "length_penalty": LENGTH_PENALTY,
        },
    ),
    "marian": _translations("en", "nl"),
    "nllb": _translations("eng_Latn", "deu_Latn"),
    "transcription": Row(
        task="automatic-speech-recognition",
        method="transcribe",
        words=("--audio", AUDIO, "--language", "de"),
        path="/v1/audio/transcriptions",
        body={"language": "de", "response_format": "verbose_json"},
        toy="whisper",
        **_SPEECH_BEAMS,
    ),
    "translation": Row(
        task="automatic-speech-recognition",
        method="transcribe",
        words=("--audio", AUDIO, "--task", "translate"),
        path="/v1/audio/translations",
        body={"response_format": "verbose_json"},
        toy="whisper",
        **_SPEECH_BEAMS,
    ),
}
HIDDEN = {"--aggregation", "--ignore-label", "--max-tokens", "--length-penalty"}  # details of what the tests ask


def matrix_table() -> str:
    """The table of docs/tasks.md."""
    heads = [
        "task",
        "Python",
        "`piston run`",
        "HTTP",
        *(f"`{target}`" for target in CPU_TARGETS),
        "`tensorrt-rtx` plan",
    ]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    schemes, rows = ", ".join(SCHEMES), [*ROWS.values(), *SEQUENCES.values()]
    for task, method in dict.fromkeys((row.task, row.method) for row in rows):
        own = [row for row in rows if (row.task, row.method) == (task, method)]
        words = [word for row in own for word in (*row.words, *row.beam_words)]
        options = dict.fromkeys(word for word in words if word.startswith("--") and word not in HIDDEN)
        cells = [
            f"`{task}`",
            f"`{method}`",
            " ".join(f"`{option}`" for option in options),
            ", ".join(f"`{path}`" for path in dict.fromkeys(row.path for row in own)),
            *[schemes] * (len(CPU_TARGETS) + 1),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
