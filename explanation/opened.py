"""A bundle that is being explained, and what the tasks of encoders have in common."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from piston.core.bundle.manifest import EngineSpec
from piston.explanation.attention import Tapped, encoder_attention
from piston.explanation.result import Asked, Explanation
from piston.runtime.bundle import Bundle
from piston.runtime.ragged import padded

if TYPE_CHECKING:
    from piston.runtime.encoder import EncodedRow
    from piston.runtime.text.tokenizer import Tokenizer

SPACES = str.maketrans({" ": "·", "\n": "⏎", "\t": "⇥", "Ġ": "·", "▁": "·", "Ċ": "⏎"})


@dataclass(frozen=True, slots=True)
class Opened:
    """A loaded bundle: `model` is what `piston.runtime.load` gives, of the engine `spec`."""

    bundle: Bundle
    spec: EngineSpec
    model: Any
    threads: int

    def explanation(self, answer: str, scores: Sequence[tuple[str, float]], **more: Any) -> Explanation:
        """With what is known of the bundle."""
        manifest = self.bundle.manifest
        return Explanation(
            task=manifest.task,
            model=manifest.model.name,
            scheme=manifest.model.scheme,
            target=self.spec.target,
            answer=answer,
            scores=tuple(scores),
            **more,
        )

    def attention_of(self, row: "EncodedRow", asked: Asked) -> dict[str, Any]:
        """Of one row of an encoder, as the arguments of `explanation`; none where it was not asked for."""
        if not asked.with_attention:
            return {}
        feeds = padded([row.ids], [row.type_ids])
        return as_arguments(encoder_attention(self.bundle, self.spec, feeds, list(tokens_of(row)), self.threads))


def as_arguments(tapped: Tapped) -> dict[str, Any]:
    """Arguments of `Opened.explanation`."""
    return {"attention": tapped.maps, "difference": tapped.difference}


def tokens_of(row: "EncodedRow") -> list[str]:
    """Tokens as people read them."""
    return [token.translate(SPACES) for token in row.tokens]


def named_tokens(ids: Sequence[int], tokenizer: "Tokenizer") -> list[str]:
    """Token ids as what they add to a text, spaces as dots; special tokens, and parts of characters, by their names."""
    found = []
    for token_id in ids:
        text = "" if tokenizer.is_special(token_id) else tokenizer.text_of(token_id)
        is_text = bool(text) and "\ufffd" not in text
        found.append((text if is_text else tokenizer.token_of(token_id) or str(token_id)).translate(SPACES))
    return found


def pair_of(texts: Mapping[str, str], first: str, second: str) -> str | tuple[str, str]:
    """One text, or two that are read together."""
    return (texts[first], texts[second]) if second in texts else texts[first]
