import dataclasses

import pytest
from toy_model import CACHE, edit_manifest, ids_of, manifest_of, write_bundle

from piston.core.bundle.manifest import EngineSpec
from piston.core.errors import BundleCorruptError, BundleError, BundleNotFoundError, BundleTooNewError, TemplateError
from piston.runtime.bundle import Bundle

ENGINES = tuple(
    EngineSpec.of(target=target, path="ort-cpu/model.onnx", cache=CACHE, requested={}, actual={})
    for target in ("a", "b")
)


@pytest.fixture
def bundle(tmp_path):
    write_bundle(tmp_path)
    return tmp_path


def test_open_gives_directory_and_manifest(bundle):
    opened = Bundle.open(str(bundle))
    assert opened.directory == bundle
    assert opened.manifest == manifest_of(files=opened.manifest.files)


def test_open_verifies_the_files(bundle):
    (bundle / "tokenizer.json").write_text("{}")
    with pytest.raises(BundleCorruptError, match=r"tokenizer\.json"):
        Bundle.open(bundle)


def test_open_leaves_the_files_unread_on_request(bundle):
    (bundle / "tokenizer.json").write_text("{}")
    assert Bundle.open(bundle, verify=False).manifest.kind == "bundle"


def test_open_of_nothing_is_not_found(tmp_path):
    with pytest.raises(BundleNotFoundError):
        Bundle.open(tmp_path / "nowhere")


def test_open_of_a_later_schema_is_too_new(bundle):
    edit_manifest(bundle, lambda data: data.update(schema=99))
    with pytest.raises(BundleTooNewError, match="99"):
        Bundle.open(bundle)


def test_without_a_target_every_engine_is_admitted(tmp_path):
    write_bundle(tmp_path, engines=ENGINES)
    assert Bundle.open(tmp_path).engines() == ENGINES


def test_an_engine_is_found_by_its_target(tmp_path):
    write_bundle(tmp_path, engines=ENGINES)
    assert Bundle.open(tmp_path).engines("b") == (ENGINES[1],)


def test_a_family_admits_all_its_engines_and_an_exact_target_one(tmp_path):
    first, second = (dataclasses.replace(ENGINES[0], target=f"a:{gpu}") for gpu in ("sm80", "sm89"))
    write_bundle(tmp_path, engines=(first, ENGINES[1], second))
    assert Bundle.open(tmp_path).engines("a") == (first, second)
    assert Bundle.open(tmp_path).engines("a:sm89") == (second,)


def test_an_unknown_target_lists_those_there_are(tmp_path):
    write_bundle(tmp_path, engines=ENGINES)
    with pytest.raises(BundleError, match="no engine for c; it has: a, b"):
        Bundle.open(tmp_path).engines("c")


def test_a_bundle_without_engines_says_so(tmp_path):
    write_bundle(tmp_path, engines=())
    with pytest.raises(BundleError, match="no engine for any target; it has: none"):
        Bundle.open(tmp_path).engines()


def test_a_model_directory_says_how_to_build_a_bundle(tmp_path):
    write_bundle(tmp_path, kind="model", engines=())
    with pytest.raises(BundleError, match=f"run `piston build {tmp_path} -o BUNDLE"):
        Bundle.open(tmp_path).engines()


def test_the_tokenizer_knows_the_ids_of_the_manifest(bundle):
    tokenizer = Bundle.open(bundle).tokenizer()
    assert tokenizer.encode("hello") == ids_of("hello")
    assert (tokenizer.bos_token_id, tokenizer.eos_token_ids) == (1, (2,))


def test_a_damaged_tokenizer_is_corrupt(bundle):
    (bundle / "tokenizer.json").write_text('{"model": {}}')
    with pytest.raises(BundleCorruptError, match=r"tokenizer\.json"):
        Bundle.open(bundle, verify=False).tokenizer()


def test_the_template_has_the_special_tokens(tmp_path):
    write_bundle(tmp_path, template="{{ messages[0].content }}{{ eos_token }}")
    template = Bundle.open(tmp_path).chat_template()
    assert template.render([{"role": "user", "content": "hi"}]) == "hi<end>"


def test_a_bundle_without_template_has_none(tmp_path):
    tokenizer = manifest_of().tokenizer.__class__(eos_token_ids=(2,))
    write_bundle(tmp_path, template=None, tokenizer=tokenizer)
    assert Bundle.open(tmp_path).chat_template() is None


def test_a_template_that_is_promised_but_missing_is_corrupt(tmp_path):
    write_bundle(tmp_path, template=None)
    with pytest.raises(BundleCorruptError, match=r"chat_template\.jinja"):
        Bundle.open(tmp_path).chat_template()


def test_a_template_that_does_not_parse_is_a_template_error(tmp_path):
    write_bundle(tmp_path, template="{% if %}")
    with pytest.raises(TemplateError, match="broken at line 1"):
        Bundle.open(tmp_path).chat_template().check()
