"""Parses the systems of a command: KIND:PATH, the Python of each, or a prepared list."""

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

from piston.bench.child import Contender
from piston.core.errors import MisuseError
from piston.runtime.bundle import Bundle

KINDS = ("piston", "genai", "ct2", "openvino", "llama.cpp", "transformers")
SERVED_KINDS = ("piston", "openvino", "llama.cpp")  # kinds whose adapters start a server
URL = "url"  # a server that runs


def bundle_contender(path: Path, target: str | None = None, python: str | None = None) -> Contender:
    """A bundle, in this Python or another; raises BundleError if it cannot be opened."""
    opened = Bundle.open(path)
    opened.engine(target)
    digest = hashlib.sha256((path / "manifest.json").read_bytes()).hexdigest()
    return Contender(
        name=path.resolve().name,
        kind="piston",
        path=str(path),
        python=python or sys.executable,
        target=target,
        digest=digest,
    )


def url_contender(address: str) -> Contender:
    """A server that runs; raises MisuseError where the address is none."""
    try:
        parts = urlsplit(address)
        is_address = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that there is not, or half of an IPv6 address
        is_address = False
    if not is_address or not address.isascii() or not address.isprintable() or " " in address:
        raise MisuseError(f"{address!r} is no address of a server; write one such as http://localhost:8000.")
    return Contender(name=address, kind=URL, path=address, python="")


def read_against(
    against: Sequence[str], environments: Sequence[str], rivals: Path | None, *, served: bool = False
) -> list[Contender]:
    """The rivals of --against, --env and --rivals, in that order; with `served` those of a list that have a server.

    Raises:
        MisuseError: an unknown kind, a path that does not exist, or a system whose environment is not named.
    """
    pythons = dict(_environment(text) for text in environments)
    found = [_against(text, pythons, served=served) for text in against]
    if rivals is not None:
        found += [rival for rival in _listed(rivals, pythons) if not served or rival.kind in SERVED_KINDS]
    return found


def _against(text: str, pythons: Mapping[str, str], *, served: bool) -> Contender:
    kind, colon, place = text.partition(":")
    kinds = (*SERVED_KINDS, URL) if served else KINDS
    if not colon or kind not in kinds or not place:
        raise MisuseError(f"Cannot read --against {text!r}: write KIND:PATH, where KIND is {', '.join(kinds)}.")
    if kind == URL:
        return url_contender(place)
    path = Path(place)
    if not path.exists():
        raise MisuseError(f"--against {text!r}: {place} does not exist.")
    if kind == "piston":
        return bundle_contender(path, python=pythons.get(kind))
    # `--against transformers:DIR` without --env uses this Python; if that is wrong, it fails at once with the reason.
    python = pythons.get(kind, sys.executable)
    return Contender(name=f"{kind} {path.resolve().name}", kind=kind, path=place, python=python)


def _environment(text: str) -> tuple[str, str]:
    kind, equals, place = text.partition("=")
    if not equals or kind not in KINDS:
        raise MisuseError(f"Cannot read --env {text!r}: write KIND=DIR, where KIND is {', '.join(KINDS)}.")
    return kind, _python(Path(place), f"--env {text!r}")


def _python(place: Path, said: str) -> str:
    found = python_of(place) if place.is_dir() else place if place.is_file() else None
    if found is None:
        raise MisuseError(f"{said}: {place} has no Python.")
    return str(found)


def python_of(directory: Path) -> Path | None:
    """The interpreter of a virtual environment; None if the directory is not one."""
    candidates = (directory / "bin" / "python", directory / "Scripts" / "python.exe")
    return next((path for path in candidates if path.is_file()), None)


def _listed(path: Path, pythons: Mapping[str, str]) -> list[Contender]:
    """What scripts/prepare_rivals.py wrote."""
    try:
        rivals = json.loads(path.read_text(encoding="utf-8"))["rivals"]
        return [
            Contender(
                name=str(rival["name"]),
                kind=_known(rival["kind"]),
                path=str(rival["path"]),
                python=pythons.get(rival["kind"]) or _python(Path(rival["python"]), f"--rivals {path}"),
            )
            for rival in rivals
        ]
    except OSError as problem:
        raise MisuseError(f"Cannot read --rivals {path}: {problem.strerror}.") from None
    except (ValueError, KeyError, TypeError, RecursionError) as problem:
        if isinstance(problem, MisuseError):
            raise
        raise MisuseError(
            f"--rivals {path} is not a list of systems; make it with scripts/prepare_rivals.py."
        ) from None


def _known(kind: str) -> str:
    if kind not in KINDS:
        raise KeyError(kind)
    return kind


def named_apart(contenders: Sequence[Contender]) -> list[Contender]:
    """Make equal names different by a number."""
    names: list[str] = []
    for contender in contenders:
        same = [name for name in names if name.partition(" #")[0] == contender.name]
        names.append(contender.name if not same else f"{contender.name} #{len(same) + 1}")
    return [replace(contender, name=name) for contender, name in zip(contenders, names, strict=True)]
