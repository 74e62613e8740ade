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
from piston.pipeline.toml_lines import line_of

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


def line_with(path, text):
    return next(number for number, line in enumerate(path.read_text().split("\n"), 1) if text in line)


WRONG = [
    ('scheme = "w8a8"', 'sheme = "w8a8"', "sheme", "unknown field calibrate.sheme"),
    ('scheme = "w8a8"', 'scheme = "w9"', '"w9"', "must be one of"),
    ('data = ["rows.txt"]', "data = [\n  'a',\n  7,\n]", "  7", "must be a string"),
    ('data = ["rows.txt"]', "samples = true", "true", "must be a integer"),
    ('data = ["rows.txt"]', "samples = -1", "-1", "must be a integer"),
    ('data = ["rows.txt"]', 'data = "rows.txt"', "data =", "must be a list"),
    ("[eval]", "[evil]", "[evil]", "unknown field evil"),
    ('  "verify",', '  "verify", # first\n  "eval.pl <= 2%",', "eval.pl ", "names no figure"),
    ('  "verify",', '  "verify",\n  "bench.tpot.p50 <= 20ms",', "bench", "needs a table [bench]"),
    ('  "verify",', '  "verify",\n  "verify",', "require", "named twice"),
    (
        'require = [\n  "verify",',
        'skip = ["verify"]\nrequire = [\n  "verify",',
        "skip",
        "'verify' is skipped, and its table or its gate asks for it",
    ),
    ("[gates]", '[gates]\nskip = ["eval"]', "skip", "must be one of verify"),
    ("\n[calibrate]", "revision = '" + "a" * 40 + "'\n[calibrate]", "revision", "give one"),
    ('bundle = "out/bundle"', "", "[output]", "field output.bundle is missing"),
    ('bundle = "out/bundle"', "bundle = 3", "bundle = 3", "must be a str"),
    ('[build]\ntarget = ["ort-cpu"]', "[build]\noverwrite = true", "overwrite", "unknown field build.overwrite"),
]


@pytest.mark.parametrize(("old", "new", "line", "said"), WRONG)
def test_what_is_wrong_is_told_with_its_line(edited, old, new, line, said):
    path = edited(old, new)
    with pytest.raises(MisuseError) as caught:
        read_recipe(path)
    assert f"recipe.toml, line {line_with(path, line)}: " in str(caught.value)
    assert said in str(caught.value)


@pytest.mark.parametrize(("old", "new", "line", "said"), WRONG)
def test_the_schema_refuses_what_is_refused_for_its_shape(edited, old, new, line, said):
    value = tomllib.loads(edited(old, new).read_text())
    is_refused = not jsonschema.Draft202012Validator(schema()).is_valid(value)
    assert is_refused or "verify" in old or "revision" in line  # gates are judged beyond their shape


def test_a_good_recipe_is_good_for_both(tmp_path):
    path = write_recipe(tmp_path)
    assert read_recipe(path).gates.require == ("verify", "eval.ppl <= 2%")
    jsonschema.validate(tomllib.loads(path.read_text()), schema())


def test_the_published_schema_is_that_of_the_verbs():
    assert json.loads(PUBLISHED.read_text(encoding="utf-8")) == schema(), "python scripts/recipe_schema.py"


def test_a_checkpoint_without_hash_is_refused(tmp_path):
    path = write_recipe(tmp_path, lambda text: "\n".join(line for line in text.split("\n") if "sha256" not in line))
    with pytest.raises(MisuseError, match=r"line 2: the checkpoint has neither sha256"):
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


TEXT = """\
a = 1

# a comment
[table]
long = [
  1,
  2,  # two

  3,
]
inline = { x = 1, y = 2 }
text = '''
x = 5
'''
[[items]]
name = "first"
[[items]]
name = "second"
"""


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("a",), 1),
        (("table",), 4),
        (("table", "long"), 5),
        (("table", "long", 0), 6),
        (("table", "long", 2), 9),
        (("table", "inline", "y"), 11),
        (("table", "text"), 12),
        (("items", 1, "name"), 18),
        (("items", 0), 15),
        (("table", "missing"), 4),
        (("missing",), 1),
    ],
)
def test_lines_are_those_where_values_begin(path, line):
    assert line_of(TEXT, path) == line


@given(st.binary(max_size=300))
def test_any_bytes_are_a_recipe_or_our_error(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("any") / "r.toml"
    path.write_bytes(data)
    with pytest.raises(Error):
        read_recipe(path)
