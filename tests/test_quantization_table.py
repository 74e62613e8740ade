"""scripts/quantization_table.py with the commands it runs faked: what it makes, what it leaves, what it prints."""

import importlib.util
import json
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "quantization_table.py"


@pytest.fixture
def script(monkeypatch, tmp_path):
    """The module; `ran` lists the commands, and a bundle appears where one would be built."""
    spec = importlib.util.spec_from_file_location("quantization_table", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(__import__("sys").modules, spec.name, module)
    monkeypatch.syspath_prepend(SCRIPT.parent)
    spec.loader.exec_module(module)
    module.heldout_text = lambda name: tmp_path / name
    module.ran = []

    def piston(*words):
        module.ran.append(tuple(map(str, words)))
        if words[0] == "eval":
            figures = {"perplexity_ratio": {"value": 1.0123, "low": 1.01, "high": 1.02}, "top1": {"value": 0.9}}
            return json.dumps({"candidate": {"perplexity": {"value": 25.0}}, "agreement": figures})
        if words[0] == "calibrate":
            out = Path(words[words.index("-o") + 1])
            out.mkdir(parents=True, exist_ok=True)
            made_by = {"calibration": {"size": {"promised": 100_000_000, "actual": 103_000_000}}}
            (out / "manifest.json").write_text(json.dumps({"made_by": made_by}))
        if words[0] == "build":
            bundle = Path(words[words.index("-o") + 1])
            bundle.mkdir(parents=True, exist_ok=True)
            engine = {"actual": {"linears": {"int8": 0.95}}}
            (bundle / "manifest.json").write_text(json.dumps({"source": str(words[1]), "engines": [engine]}))
        return ""

    module.piston = piston
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "manifest.json").write_text("{}")
    return module


def run(module, tmp_path, monkeypatch, *words):
    del module.ran[:]
    monkeypatch.setattr("sys.argv", ["script", str(tmp_path / "model"), "--work", str(tmp_path / "work"), *words])
    module.main()


def test_every_row_of_both_tables_has_as_many_cells_as_its_head(script, tmp_path, monkeypatch, capsys):
    run(script, tmp_path, monkeypatch)
    schemes, caches = (part.splitlines() for part in capsys.readouterr().out.strip().split("\n\n"))
    for lines in (schemes, caches):
        assert len({line.count("|") for line in lines}) == 1
    num_caches = sum(bool(row.on_top_of) for row in script.ROWS)
    num_optional = sum(row.is_optional for row in script.ROWS)
    assert (len(schemes) - 2, len(caches) - 2) == (len(script.ROWS) - 1 - num_caches - num_optional, num_caches)
    assert "| 103.0 (100.0) |" in schemes[2]


def test_a_text_that_cannot_be_had_is_left_out_with_the_reason(script, tmp_path, monkeypatch, capsys):
    def heldout_text(name):
        if name in missing:
            raise script.UnavailableError("not in this shop")
        return tmp_path / name

    missing = {"prose"}
    monkeypatch.setattr(script, "heldout_text", heldout_text)
    run(script, tmp_path, monkeypatch, "--only", "w8+kv8")
    shown = capsys.readouterr()
    assert "technical, windows of 512" in shown.out
    assert "prose" not in shown.out
    assert "skipped prose: not in this shop" in shown.err
    missing.add("technical")
    with pytest.raises(SystemExit, match="No held-out text is available"):
        run(script, tmp_path, monkeypatch, "--only", "w8")
    assert script.ran == []


def test_an_optional_row_is_made_where_it_is_named_and_an_unknown_one_is_misuse(script, tmp_path, monkeypatch, capsys):
    run(script, tmp_path, monkeypatch, "--only", "w4 AWQ, block 128")
    assert "| w4 AWQ, block 128 |" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        run(script, tmp_path, monkeypatch, "--only", "w5")
    assert "no row 'w5'" in capsys.readouterr().err


def test_a_quick_run_reads_little_and_is_never_taken_for_a_whole_one(script, tmp_path, monkeypatch):
    run(script, tmp_path, monkeypatch, "--quick", "--only", "w8a8")
    quick = {words[0]: words for words in script.ran}
    assert {"--samples", "--require"} <= set(quick["calibrate"])
    assert quick["eval"][quick["eval"].index("--max-tokens") + 1] == "256"
    run(script, tmp_path, monkeypatch, "--only", "w8a8")
    whole = {words[0]: words for words in script.ran}
    assert "--samples" not in whole["calibrate"]
    assert whole["eval"][whole["eval"].index("--max-tokens") + 1] == "8192"


def test_what_is_there_is_not_made_again(script, tmp_path, monkeypatch, capsys):
    run(script, tmp_path, monkeypatch, "--only", "w8")
    first = capsys.readouterr().out
    assert [words[0] for words in script.ran] == ["build", "calibrate", "build", "eval", "eval"]
    run(script, tmp_path, monkeypatch, "--only", "w8")
    assert (script.ran, capsys.readouterr().out) == ([], first)


def test_another_model_or_other_words_make_a_row_anew(script, tmp_path, monkeypatch):
    run(script, tmp_path, monkeypatch, "--only", "w8")
    (tmp_path / "model" / "manifest.json").write_text('{"other": 1}')
    run(script, tmp_path, monkeypatch, "--only", "w8")
    assert "calibrate" in [words[0] for words in script.ran]


def test_a_cache_is_compared_with_the_same_scheme_near_and_far(script, tmp_path, monkeypatch, capsys):
    run(script, tmp_path, monkeypatch, "--only", "w8+kv8")
    evals = [words for words in script.ran if words[0] == "eval"]
    assert {words[words.index("--reference") + 1] for words in evals} == {str(tmp_path / "work" / "w8.bundle")}
    assert {words[words.index("--window") + 1] for words in evals} == {"512", "2048"}
    assert "| w8 | +1.23% [+1.00%, +2.00%] |" in capsys.readouterr().out


def test_the_words_of_every_row_are_words_of_the_command(script):
    import argparse

    from piston.calibration.cli import add_arguments
    from piston.calibration.recipe_cli import budget_of, recipe_of

    parser = argparse.ArgumentParser()
    add_arguments(parser)
    for row in script.ROWS:
        if row.words:
            for extent in (script.Extent(1), script.Extent(1, words=script.QUICK)):
                arguments = parser.parse_args(["model", "-o", "out", *extent.words_of(row)])
                assert recipe_of(arguments).scheme == row.words[1]
                budget_of(arguments)
