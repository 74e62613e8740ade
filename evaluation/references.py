"""How right texts are next to references: word error rate, chrF and BLEU, by the libraries that publications use."""

import importlib
import re
import unicodedata
from collections.abc import Sequence
from typing import Any

from piston.core.errors import MissingExtraError
from piston.core.gates import Metric

WER = Metric(name="wer", described="the word error rate", unit="share", percent_of="reference")
CHRF = Metric(name="chrf", described="chrF", unit="share", is_better_high=True, percent_of="reference")
BLEU = Metric(name="bleu", described="BLEU", unit="share", is_better_high=True, percent_of="reference")
_ASIDES = re.compile(r"[<\[][^>\]]*[>\]]|\(([^)]+?)\)")


def word_error_rate(found: Sequence[str], wanted: Sequence[str]) -> float:
    """Wrong, missing and added words over the words that were said, over all texts, by jiwer.

    Raises:
        MissingExtraError: it is not installed.
    """
    scored = _library("jiwer").process_words(
        [normalized(text) for text in wanted], [normalized(text) for text in found]
    )
    return float(scored.wer)


def chrf(found: Sequence[str], wanted: Sequence[str]) -> float:
    """The corpus' chrF (Popović, 2015) by sacrebleu, from 0 to 1; raises as `word_error_rate`."""
    return float(_library("sacrebleu").corpus_chrf(list(found), [list(wanted)]).score) / 100


def bleu(found: Sequence[str], wanted: Sequence[str]) -> float:
    """The corpus' BLEU by sacrebleu with its usual tokens, from 0 to 1; raises as `word_error_rate`."""
    return float(_library("sacrebleu").corpus_bleu(list(found), [list(wanted)]).score) / 100


def normalized(text: str) -> str:
    """Lower case without asides in brackets, punctuation and symbols.

    Whisper's normalization of texts in any language (Radford et al. 2022, arXiv:2212.04356, appendix C).
    """
    kept = _ASIDES.sub("", text.lower())
    letters = (
        " " if unicodedata.category(letter)[0] in "MSP" else letter for letter in unicodedata.normalize("NFKC", kept)
    )
    return " ".join("".join(letters).lower().split())


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise MissingExtraError(f"{name} is not installed; pip install 'piston[metrics]'.") from None
