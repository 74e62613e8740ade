"""scripts/heldout_texts.py: how texts are read from their packages, and what it says where one cannot be had."""

import dataclasses
import gzip
import hashlib
import importlib.util
import sys
import zlib
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "heldout_texts.py"


@pytest.fixture
def script(monkeypatch, tmp_path):
    spec = importlib.util.spec_from_file_location("heldout_texts", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    monkeypatch.setenv("PISTON_CACHE_DIR", str(tmp_path / "cache"))
    return module


@pytest.fixture
def apt_get(monkeypatch, tmp_path):
    """Put a shell script in apt-get's place, and nothing else on the path but what it needs."""

    def install(script):
        for name, body in (("apt-get", script), ("dpkg-deb", "exit 0")):
            path = tmp_path / "bin" / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(f"#!/bin/sh\n{body}\n")
            path.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path / "bin"))

    return install


def vector(*lines):
    """Strings as R 3 serializes them in XDR: format, three versions, encoding, type, number; each with flags."""
    header = b"X\n" + b"".join(number.to_bytes(4) for number in (3, 0x040201, 0x030500, 5)) + b"UTF-8"
    strings = b"".join((0x40009).to_bytes(4) + len(line).to_bytes(4) + line for line in map(str.encode, lines))
    data = header + (16).to_bytes(4) + len(lines).to_bytes(4) + strings
    return len(data).to_bytes(4) + zlib.compress(data)


def test_the_novel_is_found_among_others(script):
    database = vector("EMMA", "", "A line.") + vector("Persuasion", "", "Café, and") + vector("LAST")
    assert script.persuasion(database) == "Persuasion\n\nCafé, and"
    with pytest.raises(script.UnavailableError, match="no Persuasion"):
        script.persuasion(vector("EMMA"))


def test_a_text_is_cut_without_blanks_at_its_ends(script):
    source = script.SOURCES["technical"]
    text = script.jargon_file(
        gzip.compress(b"front door\n\nback door  \n\n\n\n\n  a way in\nrest" + b"." * source.length)
    )
    found = script.cut(text, source)
    assert found.startswith("back door\n\n\n  a way in\nrest.")
    assert len(found) == source.length


def test_a_text_in_the_cache_is_not_brought_again_and_a_changed_one_is(script, apt_get, monkeypatch, tmp_path):
    apt_get("exit 1")
    path = tmp_path / "cache/texts/heldout_prose.txt"
    path.parent.mkdir(parents=True)
    path.write_text("A text.")
    known = dataclasses.replace(script.SOURCES["prose"], sha256=hashlib.sha256(b"A text.").hexdigest())
    monkeypatch.setitem(script.SOURCES, "prose", known)
    assert script.heldout_text("prose") == path
    path.write_text("Another text.")
    with pytest.raises(script.UnavailableError, match=r"janeaustenr=1\.0\.0-1 failed"):
        script.heldout_text("prose")


def test_what_cannot_be_had_is_skipped_with_the_reason(script, apt_get, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["script", "technical"])
    monkeypatch.setenv("PATH", "")
    assert script.main() == 1
    assert (
        "skipped technical: apt-get is not installed; dict-jargon is a package of Debian 12." in capsys.readouterr().err
    )
    apt_get("echo 'E: Unable to locate package' >&2; exit 100")
    assert script.main() == 1
    assert "failed (E: Unable to locate package); run apt-get update" in capsys.readouterr().err
    apt_get("echo changed > dict-jargon_4.deb")
    assert script.main() == 1
    assert "dict-jargon_4.deb does not have the SHA-256 405f8168" in capsys.readouterr().err


def test_an_unknown_text_is_misuse(script, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["script", "poems"])
    with pytest.raises(SystemExit):
        script.main()
    assert "no text 'poems'; there are prose, technical" in capsys.readouterr().err
