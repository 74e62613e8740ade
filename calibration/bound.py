"""What a quantized model may cost: `ppl=2%`, `kl=0.02` or `top1=95%`, read as the gates of `piston eval` are."""

from collections.abc import Sequence

from piston.core.errors import MisuseError
from piston.evaluation.gate import METRICS, Gate, parse_gate

BOUNDED = ("ppl", "kl", "top1")
# Of a scheme by itself, on text that calibration did not see: what is beyond is no quantized model but a broken one.
DEFAULTS = {"fp": "ppl=1%", "w8": "ppl=2%", "w8a8": "ppl=10%", "w4": "ppl=50%"}


def parse_bound(text: str, option: str) -> Gate:
    """Read one bound that the user gave as `option`.

    Raises:
        MisuseError: it is none, or one that cannot be met or missed.
    """
    name, equals, number = (part.strip() for part in text.partition("="))
    if name not in BOUNDED or not equals:
        raise MisuseError(
            f"Cannot read {option} {text!r}; write what the model may cost, such as ppl=2%, kl=0.02 or top1=95%."
        )
    try:
        return parse_gate(f"{name}{METRICS[name].fails}{number}")
    except MisuseError:
        kinds = {"ppl": "a percentage above the float model's, or a perplexity", "kl": "nats", "top1": "a share"}
        raise MisuseError(f"Cannot read {option} {text!r}: {name} takes {kinds[name]}.") from None


def bounds_of(texts: Sequence[str], scheme: str, option: str = "--check") -> tuple[Gate, ...]:
    """The given bounds, or the default one of the scheme."""
    return tuple(parse_bound(text, option) for text in texts or [DEFAULTS[scheme]])
