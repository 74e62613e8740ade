"""How a server is run."""

from dataclasses import dataclass
from pathlib import Path

from piston.core.errors import MisuseError
from piston.runtime.generate.chunk_size import Stall


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Options of `piston serve` beside what loads a bundle. Raises MisuseError for a number that is out of range.

    Attributes:
        api_keys: any of them is asked of every request; none: nobody is asked.
        max_queue_requests: rows that may wait; None: four times those an engine holds, or 64 audios. Of encoders
            those that run count too (None: 4,096), but an idle one takes a batch of `max_batch` texts.
        max_queue_tokens: prompt tokens that may wait; None: what all rows hold, at least four times what one holds.
        max_stall: seconds that a running row may wait for another row's prompt in one step, or "auto" (ChunkSize).
        shutdown_timeout: seconds that running requests have after SIGTERM.
        max_body: bytes of a request without a file.
        max_form: bytes of a request with a file.
        lenient: fields that are not supported are ignored, and named in a header of the answer.
        page: serve the page at /.
        metrics_prefix: what the names of metrics begin with.
        log_prompts: write bodies of requests into the log.
        otlp_traces_endpoint: where OpenTelemetry spans are sent; None: none are made.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: tuple[str, ...] = ()
    max_queue_requests: int | None = None
    max_queue_tokens: int | None = None
    max_stall: Stall = "auto"
    shutdown_timeout: float = 30.0
    max_body: int = 8_000_000
    max_form: int = 27_000_000  # OpenAI's API takes files of 25 MiB
    lenient: bool = False
    page: bool = True
    metrics_prefix: str = "piston"
    log_prompts: bool = False
    otlp_traces_endpoint: str | None = None

    def __post_init__(self) -> None:
        """Check what was given."""
        for name in ("max_queue_requests", "max_queue_tokens", "shutdown_timeout"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < float("inf"):
                raise MisuseError(f"{name} is {value}; it must be at least 0.")
        if self.max_stall not in (None, "auto") and not 0 < float(self.max_stall) < float("inf"):
            raise MisuseError(f"max_stall is {self.max_stall}; it must be a number of seconds above 0, or auto.")
        endpoint = self.otlp_traces_endpoint
        if endpoint is not None and not endpoint.startswith(("http://", "https://")):
            raise MisuseError(
                f"otlp_traces_endpoint is {endpoint!r}; write an address such as http://localhost:4318/v1/traces."
            )


def read_keys(path: Path) -> tuple[str, ...]:
    """The API keys of a file, one a line; empty lines do not count.

    Raises:
        MisuseError: it cannot be read, holds none, or one that no header can carry.
    """
    try:
        keys = tuple(filter(None, map(str.strip, path.read_text(encoding="utf-8").splitlines())))
    except (OSError, UnicodeDecodeError) as problem:
        raise MisuseError(f"Cannot read the API keys in {path}: {problem}.") from None
    if not keys:
        raise MisuseError(f"{path} holds no API key; write one a line.")
    if not all(key.isascii() and key.isprintable() and " " not in key for key in keys):
        raise MisuseError(f"{path} holds an API key that is no printable ASCII without spaces.")
    return keys
