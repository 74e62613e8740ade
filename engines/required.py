"""What a build must reach: the share of its linear layers that really run in INT8."""

import math
import re

from piston.core.errors import MisuseError, ShortfallError
from piston.engines.linear_work import LinearWork

_SHARE = re.compile(r"(\d+\.?\d*|\.\d+)\s*(%?)")
NAMED = 3  # layers in float that a message names


def parse_share(text: str) -> float:
    """Read `95%` or `0.95`; raises MisuseError for what is no share above 0."""
    match = _SHARE.fullmatch(text.strip())
    share = float(match[1]) / (100 if match[2] else 1) if match else math.nan
    if not 0 < share <= 1:
        raise MisuseError(f"Cannot read --require-int8 {text!r}: write a share above 0 such as 95% or 0.95.")
    return share


def check_int8(work: LinearWork, required: float) -> None:
    """Raise ShortfallError if fewer multiply-adds than `required` run in INT8; lm_head does not count."""
    share = work.share("int8")
    if share >= required:
        return
    weights = work.share("weights8") + work.share("weights4")
    reasons = [f"{weights:.2%} have weights alone in INT8 or INT4"] if weights > 0 else []
    if work.in_float:
        more = len(work.in_float) - NAMED
        reasons.append(f"in float are {', '.join(work.in_float[:NAMED])}" + (f" and {more} more" if more > 0 else ""))
    raise ShortfallError(
        f"{share:.2%} of the linear multiply-adds run in INT8, {required:.2%} were required; {'; '.join(reasons)}. "
        "Nothing was written."
    )
