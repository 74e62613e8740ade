"""Servers under load that never run: answers on a schedule of ours."""

import contextlib
import re
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from types import SimpleNamespace

from piston.bench.load import servers
from piston.bench.load.client import Endpoint
from piston.bench.load.run import LoadRun, Sent
from piston.bench.load.setting import LoadSetting

ECHO = Path(servers.__file__).with_name("echo.py")


def setting_of(**changes):
    lengths = {"requests": 8, "prompt_len": (16, 16), "gen_len": (4, 4)}
    arrival = {} if "rate" in changes else {"concurrency": 2}
    return LoadSetting(**(lengths | arrival | changes))


def sent_at(at, *times, num_tokens=None, **changes):
    return Sent(
        at=at,
        prompt_len=16,
        times=tuple(times),
        num_tokens=len(times) if num_tokens is None else num_tokens,
        num_cached=0,
        **changes,
    )


def run_of(sent, seconds=1.0, **changes):
    return LoadRun(sent=tuple(sent), seconds=seconds, client_seconds=0.01, **changes)


@contextlib.contextmanager
def echoing():
    """The benchmark's own echo, in a process, with 3 ms between pieces: its URL."""
    port = servers._free_port()
    process = subprocess.Popen([sys.executable, "-I", ECHO, str(port), "0.003"])
    url, end = f"http://127.0.0.1:{port}", time.monotonic() + 20
    try:
        while True:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/v1/models", timeout=5):
                break
            assert time.monotonic() < end
            time.sleep(0.02)
        yield url
    finally:
        process.kill()
        process.wait(10)


def opener_of(url, log=None):
    """What `measure_loads` starts servers with: every system is the server at `url`."""

    @contextlib.contextmanager
    def opened(contender, options):
        if log is not None:
            log.append((contender.name, options))
        yield SimpleNamespace(endpoint=Endpoint(url=url, model="echo"))

    return opened


def port_in(lines):
    """The port of a server that says where it serves."""
    return int(next(filter(None, (re.search(r"serving on http://\S+:(\d+)", line) for line in lines)))[1])
