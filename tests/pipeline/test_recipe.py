import json
import tomllib
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from making import write_recipe

from piston.core.errors import Error, MisuseError
from piston.pipeline.recipe import read_recipe
from piston.pipeline.schema import schema

PUBLISHED = Path(__file__).parents[2] / "docs/schemas/recipe.json"


@pytest.fixture
def edited(tmp_path):
    """The path of a recipe with one text replaced by another."""

    def edit(old, new):
        def change(text):
            assert old in text
            return text.replace(old, new, 1)

        return write_recipe(tmp_path / "place", change)

    return edit


WRONG = [
    ('scheme = "w8a8"', 'sheme = "w8a8"', "unknown field calibrate.sheme"),
    ('scheme = "w8a8"', 'scheme = "w9"', "must be one of"),
    ('data = ["rows.txt"]', "data = [\n  'a',\n  7,\n]", "must be a string"),
    ('data = ["rows.txt"]', "samples = true", "must be a integer"),
    ('data = ["rows.txt"]', "samples = -1", "must be a integer"),
    ('data = ["rows.txt"]', 'data = "rows.txt"', "must be a list"),
    ("[eval]", "[evil]", "unknown field evil"),
    ('  "verify",', '  "verify", # first\n  "eval.pl <= 2%",', "Cannot read the gate"),
    ('  "verify",', '  "verify",\n  "bench.tpot.p50 <= 20ms",', "needs a table [bench]"),
    ('  "verify",', '  "verify",\n  "verify",', "named twice"),
    (
        'require = [\n  "verify",',
        'skip = ["verify"]\nrequire = [\n  "verify",',
        "'verify' is skipped, but its table or a gate requires it",
    ),
    ("[gates]", '[gates]\nskip = ["eval"]', "must be one of verify"),
    ("\n[calibrate]", "revision = '" + "a" * 40 + "'\n[calibrate]", "give one"),
    ('bundle = "out/bundle"', "", "field output.bundle is missing"),
    ('bundle = "out/bundle"', "bundle = 3", "must be a str"),
    ('[build]\ntarget = ["ort-cpu"]', "[build]\noverwrite = true", "unknown field build.overwrite"),
]


@pytest.mark.parametrize(("old", "new", "said"), WRONG)
def test_what_is_wrong_is_told_with_its_field(edited, old, new, said):
    with pytest.raises(MisuseError) as caught:
        read_recipe(edited(old, new))
    assert "recipe.toml: " in str(caught.value)
    assert said in str(caught.value)


@pytest.mark.parametrize(("old", "new", "said"), WRONG)
def test_the_schema_refuses_what_is_refused_for_its_shape(edited, old, new, said):
    value = tomllib.loads(edited(old, new).read_text())
    is_refused = not jsonschema.Draft202012Validator(schema()).is_valid(value)
    assert is_refused or "verify" in old or "revision" in new  # gates are judged beyond their shape


def test_a_good_recipe_is_good_for_both(tmp_path):
    path = write_recipe(tmp_path)
    assert read_recipe(path).gates.require == ("verify", "eval.ppl <= 2%")
    jsonschema.validate(tomllib.loads(path.read_text()), schema())


def test_the_published_schema_is_that_of_the_verbs():
    assert json.loads(PUBLISHED.read_text(encoding="utf-8")) == schema(), "python scripts/recipe_schema.py"


def test_a_checkpoint_without_hash_is_refused(tmp_path):
    path = write_recipe(tmp_path, lambda text: "\n".join(line for line in text.split("\n") if "sha256" not in line))
    with pytest.raises(MisuseError, match=r"recipe.toml: the checkpoint has neither sha256"):
        read_recipe(path)


def test_what_is_no_toml_is_told_with_the_parsers_line(edited):
    with pytest.raises(MisuseError, match=r"is not TOML: .*line"):
        read_recipe(edited("[build]", "[build"))


def test_a_recipe_of_any_length_is_not_read(tmp_path):
    (tmp_path / "r.toml").write_text("a = 1\n" * 100_000)
    with pytest.raises(MisuseError, match="at most"):
        read_recipe(tmp_path / "r.toml")
    with pytest.raises(MisuseError, match="Cannot read the recipe"):
        read_recipe(tmp_path / "none.toml")


@given(st.binary(max_size=300))
def test_any_bytes_are_a_recipe_or_our_error(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("any") / "r.toml"
    path.write_bytes(data)
    with pytest.raises(Error):
        read_recipe(path)
