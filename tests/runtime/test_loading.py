import dataclasses
import json

import pytest
from toy_model import write_bundle

from piston.core.bundle.manifest import record_files
from piston.core.errors import BundleCorruptError, EngineError, MissingExtraError, MisuseError
from piston.runtime import loading as opening
from piston.runtime.backends.registry import Sizes
from piston.runtime.bundle import Bundle

SIZES = Sizes(num_slots=1, capacity=8)


class Opens:
    """Stands where a backend opens engines: remembers what became of them."""

    def __init__(self, failure=None):
        self.failure, self.opened, self.closed = failure, 0, 0

    def __call__(self, bundle, spec, sizes):
        self.opened += 1
        if self.failure is not None:
            raise self.failure
        return self

    def close(self):
        self.closed += 1


@pytest.fixture
def bundle(tmp_path):
    write_bundle(tmp_path / "bundle")
    manifest = tmp_path / "bundle/manifest.json"
    data = json.loads(manifest.read_text())
    data["files"] = {name: dataclasses.asdict(record) for name, record in record_files(manifest.parent).items()}
    manifest.write_text(json.dumps(data))
    return Bundle.open(tmp_path / "bundle", verify=False)


def damage(bundle):
    path = bundle.directory / bundle.engine().path
    path.write_bytes(path.read_bytes()[:-1] + b"\xaa")


def test_what_is_right_is_given_out(bundle, monkeypatch):
    opens = Opens()
    opened = opening.open_verified(bundle, bundle.engine(), SIZES, opening=opens)
    assert (opened.engine, opens.closed) == (opens, 0)
    assert opened.tokenizer.encode("a")


def test_an_engine_of_other_bytes_is_closed_and_never_given_out(bundle, monkeypatch):
    damage(bundle)
    opens = Opens()
    with pytest.raises(BundleCorruptError, match="SHA-256 differs"):
        opening.open_verified(bundle, bundle.engine(), SIZES, opening=opens)
    assert opens.opened == opens.closed == 1


def test_damage_is_named_rather_than_what_came_of_it(bundle, monkeypatch):
    damage(bundle)
    opens = Opens(EngineError("cannot be parsed"))
    with pytest.raises(BundleCorruptError, match="SHA-256 differs"):
        opening.open_verified(bundle, bundle.engine(), SIZES, opening=opens)


def test_an_engine_that_fails_on_the_right_bytes_says_why(bundle, monkeypatch):
    opens = Opens(EngineError("too new"))
    with pytest.raises(EngineError, match="too new"):
        opening.open_verified(bundle, bundle.engine(), SIZES, opening=opens)


def test_a_plan_is_not_even_loaded_before_its_hash_is_right(bundle, monkeypatch):
    damage(bundle)
    opens = Opens()
    with pytest.raises(BundleCorruptError):
        opening.open_verified(
            bundle, dataclasses.replace(bundle.engine(), target="tensorrt:sm90"), SIZES, opening=opens
        )
    assert opens.opened == 0


def specs_of(bundle, *targets):
    return [dataclasses.replace(bundle.engine(), target=target) for target in targets]


def failing(**problems):
    """Opens an engine by its target, or raises what is given for it."""

    def opened(spec):
        if (problem := problems.get(spec.target)) is not None:
            raise problem
        return f"engine of {spec.target}"

    return opened


def test_the_first_engine_that_opens_is_taken_and_each_before_it_gets_a_sentence(bundle):
    opened = failing(a=EngineError("no libcublas.so.13."), b=MissingExtraError("no driver package"))
    found, remarks = opening.open_first(specs_of(bundle, "a", "b", "c", "d"), opened)
    assert found == "engine of c"
    assert remarks == (
        "a could not be opened (no libcublas.so.13); c is used instead.",
        "b could not be opened (no driver package); c is used instead.",
    )


def test_the_only_engine_fails_in_its_own_words(bundle):
    with pytest.raises(MissingExtraError, match=r"^no package$"):
        opening.open_first(specs_of(bundle, "a"), failing(a=MissingExtraError("no package")))


def test_where_none_opens_every_reason_is_given(bundle):
    opened = failing(a=EngineError("no library."), b=EngineError("too new"))
    with pytest.raises(EngineError, match=r"^No engine could be opened\. a: no library; b: too new\.$"):
        opening.open_first(specs_of(bundle, "a", "b"), opened)


@pytest.mark.parametrize("problem", [BundleCorruptError("damaged"), MisuseError("threads")])
def test_damage_and_misuse_are_no_reasons_to_take_another_engine(bundle, problem):
    with pytest.raises(type(problem), match=str(problem)):
        opening.open_first(specs_of(bundle, "a", "b"), failing(a=problem))
