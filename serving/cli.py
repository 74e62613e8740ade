"""The `serve` verb: bundles behind an OpenAI-compatible HTTP server."""

import argparse
import asyncio
import contextlib
import importlib
import logging
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from piston.core.console import note
from piston.core.errors import Error, MisuseError
from piston.core.units import parse_count
from piston.runtime.model import load
from piston.serving.settings import Settings, read_keys

if TYPE_CHECKING:
    import uvicorn

    from piston.serving.app import Server

MAX_PORT = 65_535
BACKLOG = 1024  # connections that may wait to be accepted
PREFIXES = ("piston", "vllm")
PER_BUNDLE = (
    ("target", "T", "which engine of the bundle"),
    ("max_length", "N", "positions of each row (default: as built)"),
    ("max_batch", "N", "rows that run together (default: as built)"),
    ("threads", "N", "threads of an engine"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `piston serve`."""
    default = Settings()
    add = parser.add_argument
    add("bundles", metavar="BUNDLE", nargs="+", type=Path, help="the directory `piston build` wrote; NAME=DIR names it")
    add(
        "--host",
        default=default.host,
        metavar="ADDRESS",
        help=f"to listen on (default {default.host}: this machine alone)",
    )
    add("--port", type=int, default=default.port, metavar="N", help=f"default {default.port}; 0 takes a free one")
    for name, metavar, text in PER_BUNDLE:
        option = f"--{name.replace('_', '-')}"
        add(
            option, action="append", default=[], metavar=f"[NAME=]{metavar}", help=f"{text}; NAME= says of which bundle"
        )
    add("--public-key", type=Path, metavar="FILE", help="load only what this key has signed")
    add("--api-key-file", type=Path, metavar="FILE", help="ask for one of these keys, one a line")
    add("--max-queue-requests", type=int, metavar="N", help="rows that may wait (default: four times --max-batch)")
    add(
        "--max-queue-tokens",
        type=int,
        metavar="N",
        help="prompt tokens that may wait (default: --max-length for each of --max-batch, at least four)",
    )
    add(
        "--max-stall",
        type=float,
        metavar="MS",
        help="milliseconds that a running row may wait for another row's prompt in one step (default: two of "
        "its own steps)",
    )
    add(
        "--shutdown-timeout",
        type=float,
        metavar="S",
        default=default.shutdown_timeout,
        help="seconds that running requests have after SIGTERM (default %(default)g)",
    )
    add("--lenient", action="store_true", help="ignore fields that are not supported, and name them in a header")
    add("--log-prompts", action="store_true", help="write the bodies of requests to the log, prompts and all")
    add("--no-page", action="store_true", help="no page at /")
    add("--otlp-traces-endpoint", metavar="URL", help="send OpenTelemetry traces there over HTTP (extra otel)")
    add("--metrics-prefix", choices=PREFIXES, default=default.metrics_prefix, help="of the names of metrics")


def settings_from(arguments: argparse.Namespace) -> Settings:
    """The options, checked.

    Raises:
        MisuseError: a number is out of range, or the keys cannot be read.
    """
    if not 0 <= arguments.port <= MAX_PORT:
        raise MisuseError(f"--port is {arguments.port}; it must be 0 to {MAX_PORT}, or no socket can listen on it.")
    if arguments.max_stall is not None and not 0 < arguments.max_stall < float("inf"):
        raise MisuseError(f"--max-stall is {arguments.max_stall}; it must be a number of milliseconds above 0.")
    keys = () if arguments.api_key_file is None else read_keys(arguments.api_key_file)
    try:
        return Settings(
            host=arguments.host,
            port=arguments.port,
            api_keys=keys,
            max_queue_requests=arguments.max_queue_requests,
            max_queue_tokens=arguments.max_queue_tokens,
            max_stall="auto" if arguments.max_stall is None else arguments.max_stall / 1e3,
            shutdown_timeout=arguments.shutdown_timeout,
            lenient=arguments.lenient,
            page=not arguments.no_page,
            log_prompts=arguments.log_prompts,
            otlp_traces_endpoint=arguments.otlp_traces_endpoint,
            metrics_prefix=arguments.metrics_prefix,
        )
    except MisuseError as problem:  # names the attribute
        name, _, rest = str(problem).partition(" ")
        raise MisuseError(f"--{name.replace('_', '-')} {rest}") from None


def per_bundle(arguments: argparse.Namespace, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The options with which each bundle is loaded: `--max-batch 4` is for all of them, `--max-batch NAME=4` for one.

    Raises:
        MisuseError: there is no such bundle, or a number is none.
    """
    options: dict[str, dict[str, Any]] = {name: {} for name in names}
    for option, metavar, _ in PER_BUNDLE:
        given = [_split(text, names) for text in getattr(arguments, option)]
        for name, text in sorted(given, key=lambda item: item[0] is not None):  # those for one bundle last
            flag = f"--{option.replace('_', '-')}"
            if name is not None and name not in options:
                raise MisuseError(f"{flag} {name}={text}: there is no bundle {name}; there is {', '.join(names)}.")
            value = parse_count(text) if metavar == "N" else text
            if value is None:
                raise MisuseError(f"{flag} is {text!r}; it must be a whole number, or NAME=N.")
            for chosen in names if name is None else [name]:
                options[chosen][option] = value
    return options


def _split(text: str, names: Sequence[str]) -> tuple[str | None, str]:
    """A name, if there is one, and a value. A name may itself hold "="."""
    known = next((name for name in names if text.startswith(f"{name}=")), None)
    name, is_named, value = text.partition("=") if known is None else (known, "=", text[len(known) + 1 :])
    return (name, value) if is_named else (None, text)


def run(arguments: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT; 0 once every running request is answered."""
    if sys.platform == "win32":
        raise Error("`piston serve` runs on Linux and macOS alone; fix: serve from a container, or in WSL.")
    settings = settings_from(arguments)
    named = [_named(path) for path in arguments.bundles]
    if len({name for name, _ in named}) < len(named):
        raise MisuseError("Two bundles have one name; name them with NAME=DIR.")
    options = per_bundle(arguments, [name for name, _ in named])
    with _listening(settings) as listener, _library_log(), contextlib.ExitStack() as stack:
        # Half a second of imports, while files are hashed and engines opened.
        importing = ThreadPoolExecutor(1).submit(importlib.import_module, "piston.serving.app")
        models = []
        for name, path in named:
            model = stack.enter_context(load(path, public_key=arguments.public_key, **options[name]))
            for remark in model.remarks:
                note(remark)
            models.append((name, model))
        importing.result()
        from piston.serving.app import Server

        server = Server(models, settings)
        for served in server.served.values():
            note(served.described)
        asyncio.run(serve(server, listener))
    return 0


class _LibraryLog(logging.Handler):
    """What the libraries log, in the form of our own log."""

    def emit(self, record: logging.LogRecord) -> None:
        """See logging.Handler; the traceback is left out."""
        reason = f" {record.exc_info[1]!r}" if record.exc_info and record.exc_info[1] else ""
        text = " ".join(f"{record.name}: {record.getMessage()}{reason}".split())
        note(text, "error" if record.levelno >= logging.ERROR else "info")


@contextlib.contextmanager
def _library_log() -> Iterator[None]:
    handler = _LibraryLog(logging.WARNING)
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)


async def serve(server: "Server", listener: socket.socket) -> None:
    """Serve on a socket that listens until SIGTERM or SIGINT; then finish what runs."""
    loop, leaving = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, leaving.set)
    server.start()
    http = _http_server(server)
    listener.listen(BACKLOG)
    running = asyncio.ensure_future(http.serve(sockets=[listener]))
    host, port = listener.getsockname()[:2]
    note(f"serving on http://{f'[{host}]' if ':' in host else host}:{port}")
    try:
        await asyncio.wait((running, asyncio.ensure_future(leaving.wait())), return_when=asyncio.FIRST_COMPLETED)
        if leaving.is_set():
            note("shutting down: running requests are finished first")
            await server.drain()
    finally:
        await server.close()
        http.should_exit = True
        await running


def _http_server(server: "Server") -> "uvicorn.Server":
    import uvicorn

    class Quiet(uvicorn.Server):
        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            """Signals are ours: running requests are finished before the socket closes."""
            yield

    config = uvicorn.Config(
        server.app,
        log_config=None,
        access_log=False,
        lifespan="off",
        ws="none",
        http="h11",
        loop="asyncio",
        server_header=False,
        timeout_graceful_shutdown=5,
    )
    return Quiet(config)


@contextlib.contextmanager
def _listening(settings: Settings) -> Iterator[socket.socket]:
    """The socket, taken before seconds of loading."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[
            0
        ]
        listener = socket.socket(family, kind, protocol)
    except (OSError, OverflowError) as problem:
        raise MisuseError(f"Cannot listen on {settings.host}:{settings.port}: {problem}.") from None
    with listener:
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
        except (OSError, OverflowError) as problem:
            raise MisuseError(
                f"Cannot listen on {settings.host}:{settings.port}: {problem}; choose another with --port."
            ) from None
        yield listener


def _named(given: Path) -> tuple[str, Path]:
    name, is_named, directory = str(given).partition("=")
    return (name, Path(directory)) if is_named and name and not given.exists() else (given.resolve().name, given)
