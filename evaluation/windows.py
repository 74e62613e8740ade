"""Divides a text into windows: which tokens are scored in which window, and with how much context."""

from collections.abc import Iterator
from dataclasses import dataclass

from piston.core.errors import MisuseError


@dataclass(frozen=True, slots=True)
class Window:
    """A window reads tokens start .. end-1 of a text and scores first .. end-1."""

    start: int
    first: int
    end: int

    @property
    def num_scored(self) -> int:
        """Tokens scored in this window and in no other."""
        return self.end - self.first


@dataclass(frozen=True, slots=True, kw_only=True)
class Windowing:
    """Windows of `length` positions that advance by `stride`.

    The first window scores all its tokens; every later one scores only tokens that the one before did not reach, at
    most `stride`. So each token is scored exactly once, with at least length - stride positions of context or, near the
    beginning, with all that exist. Tokens that the tokenizer prepends (such as BOS) precede every window, count towards
    its length and are not scored; without such a token, the first token of a text is context only.

    Raises:
        MisuseError: the stride is not below the length.
    """

    length: int = 512
    stride: int = 256

    def __post_init__(self) -> None:
        if not 1 <= self.stride < self.length:
            raise MisuseError(
                f"--window is {self.length} and --stride {self.stride}; the stride must be at least 1 and below the "
                "window, or some tokens would have no context."
            )

    @property
    def rule(self) -> str:
        """The rule as one line, for reports."""
        return (
            f"windows of {self.length} positions, stride {self.stride}: each token scored once, "
            f"with at least {self.length - self.stride} of context, or all that exists near the beginning"
        )

    def windows(self, num_tokens: int, num_prefix: int = 0) -> Iterator[Window]:
        """Cover a text of `num_tokens`, with `num_prefix` fixed tokens in front of every window."""
        size = self.length - num_prefix
        if size < self.stride:
            raise MisuseError(
                f"--stride is {self.stride}, but {num_prefix} of the {self.length} positions of a window are taken by "
                "the tokenizer's own tokens; lower --stride or raise --window."
            )
        first = 0 if num_prefix else 1
        for start in range(0, max(num_tokens, 1), self.stride):
            end = min(start + size, num_tokens)
            if first < end:
                yield Window(start, first, end)
            if end == num_tokens:
                return
            first = end
