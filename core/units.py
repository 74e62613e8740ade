"""Units of figures: sizes and times, as options and gates write them and as reports print them."""

import math
import re
from collections.abc import Mapping
from typing import Literal

from piston.core.errors import MisuseError

Unit = Literal["", "share", "s", "bytes", "tokens/s", "requests/s", "verdict"]
BYTES: Mapping[str, float] = {
    "b": 1.0,
    **{f"{prefix}{end}": 1000.0**power for power, prefix in enumerate("kmgt", 1) for end in ("", "b")},
    **{f"{prefix}i{end}": 1024.0**power for power, prefix in enumerate("kmgt", 1) for end in ("", "b")},
}
SECONDS: Mapping[str, float] = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
# Unit of a figure -> examples of how a bound on it is written.
EXAMPLES: Mapping[Unit, str] = {
    "": "0.02",
    "share": "95% or 0.95",
    "s": "20ms or 1.5s",
    "bytes": "800MB or 2GiB",
    "tokens/s": "40tokens/s",
    "requests/s": "2requests/s",
    "verdict": "its name alone",
}
RATES: tuple[Unit, ...] = ("tokens/s", "requests/s")
_SECOND = 0.9995  # rounds to one second in three digits
_COUNT = re.compile(r"[0-9]{1,18}")  # Python converts 4,300 digits at most
_SIZE = re.compile(r"(\d+(?:\.\d*)?) *([a-z]+)")


def factor_of(unit: Unit, written: str) -> float | None:
    """The factor from this suffix to `unit`; None for a suffix that the unit does not have."""
    if unit == "bytes":
        return BYTES.get(written.lower())
    if unit == "s":
        return SECONDS.get(written)
    return 1.0 if unit != "verdict" and written == (unit if unit in RATES else "") else None


def parse_count(text: str) -> int | None:
    """A number written in digits alone, below 10**18; None for anything else."""
    return int(text) if _COUNT.fullmatch(text) else None


def parse_size(text: str, option: str) -> int:
    """The bytes of a size such as `1.5g`, `800 MB` or `24GiB`; case does not matter.

    Raises:
        MisuseError: it is not a size with a unit, or less than a byte; the message names `option`.
    """
    match = _SIZE.fullmatch(text.strip().lower())
    number = float(match[1]) * BYTES[match[2]] if match and match[2] in BYTES else 0.0
    if not 1 <= number < math.inf:
        raise MisuseError(f"Cannot read {option} {text!r}: write a size with its unit, such as 800MB, 1.5g or 24GiB.")
    return int(number)


def shown(value: float, unit: Unit) -> str:
    """A figure in a few significant digits, with its unit."""
    if unit == "bytes":
        return f"{value / 1e6:,.1f} MB" if value >= BYTES["mb"] / 10 else f"{value / 1e3:,.1f} kB"
    if unit == "s":
        return f"{value:,.2f} s" if value >= _SECOND else f"{f'{value * 1e3:#.3g}'.rstrip('.')} ms"
    if unit in RATES:
        digits = 0 if value >= 1e3 else 1 if unit == "tokens/s" else 2  # noqa: PLR2004 - digits that count
        return f"{value:,.{digits}f}/s"
    if unit == "verdict":
        return "passed" if value else "failed"
    return f"{value:.2%}" if unit == "share" else f"{value:.4g}"
