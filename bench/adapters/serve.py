"""The system's side of the benchmark protocol, run as a file by its own Python: standard library only, no Piston.

    python -I serve.py KIND PATH '{"threads": 2, "max_length": 768, "max_batch": 1}'

With a "port" among the options the process becomes the system's own HTTP server on 127.0.0.1, with an OpenAI-compatible
/v1/completions: what the adapter's `server(path, options)` gives is executed. Else:

One JSON object a line. Out: {"event": "ready", "import_s", "load_s", "versions"} once; then, for each line in
{"prompts": [[id, ...], ...], "gen_len": N}, {"event": "ran", "times", "token_ids", "parts", "peak_bytes"}. `times[i]`
is the second after the start of the call at which every row has i + 1 tokens. A line may have "num_beams", of a search.
Of speech the one prompt is [path of an audio file], `gen_len` tokens are generated for each window (0: as many as the
model says), and `times[i]` is when i + 1 segments are there. A failure is {"event": "error", "message"}. The end of
stdin ends the process.
"""

import importlib
import importlib.util
import json
import os
import sys
import time
from pathlib import Path
from typing import Any, TextIO

FILES = {
    "piston": "piston",
    "genai": "genai",
    "ct2": "ct2",
    "openvino": "openvino",
    "llama.cpp": "llama_cpp",
    "transformers": "transformers",
}


def main() -> None:
    """Load, then answer until stdin ends."""
    kind, path, options = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    if "port" in options:
        words = _module(FILES[kind]).server(path, options)
        os.execv(words[0], words)  # noqa: S606 - no shell is wanted
    out = private_stdout()
    try:
        adapter = _open(kind, path, options, out)
        for line in sys.stdin:
            send(out, _ran(adapter, json.loads(line)))
    except Exception as problem:  # noqa: BLE001 - whatever a rival raises becomes one line
        send(out, {"event": "error", "message": f"{type(problem).__name__}: {problem}"})
        sys.exit(1)


def _open(kind: str, path: str, options: dict[str, Any], out: TextIO) -> Any:
    module = _module(FILES[kind])
    start = time.perf_counter()
    library = importlib.import_module(module.LIBRARY)
    imported = time.perf_counter()
    adapter = module.Adapter(library, path, options)
    loaded = time.perf_counter()
    send(
        out,
        {
            "event": "ready",
            "import_s": imported - start,
            "load_s": loaded - imported,
            "versions": versions(module.PACKAGES),
        },
    )
    return adapter


def _ran(adapter: Any, request: dict[str, Any]) -> dict[str, Any]:
    times: list[float] = []
    start = time.perf_counter()

    def step(at: float | None = None) -> None:
        """Record the present time, or a more exact one from an adapter."""
        times.append(time.perf_counter() - start if at is None else at)

    search = {"num_beams": request["num_beams"]} if "num_beams" in request else {}
    token_ids = adapter.run(request["prompts"], request["gen_len"], step, **search)
    return {
        "event": "ran",
        "times": times,
        "token_ids": [[int(token_id) for token_id in row] for row in token_ids],
        "parts": getattr(adapter, "parts", {}),
        "peak_bytes": peak_bytes(),
    }


def peak_bytes() -> int:
    """Peak resident memory of this process in bytes, mapped files included."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _module(name: str) -> Any:
    """Import the adapter next to this file, whose folder is not on the path: `openvino.py` would hide the real one."""
    spec = importlib.util.spec_from_file_location(f"adapter_{name}", Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def versions(packages: tuple[str, ...]) -> dict[str, str]:
    """Those of this Python and of the packages that are installed."""
    from importlib import metadata

    found = {"python": sys.version.split()[0]}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def private_stdout() -> TextIO:
    """Keep stdout for the protocol and send what libraries print to stderr."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return out


def send(out: TextIO, message: dict[str, Any]) -> None:
    """Write one line."""
    out.write(json.dumps(message) + "\n")
    out.flush()


if __name__ == "__main__":
    main()
