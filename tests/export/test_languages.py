import pytest
from sentencepiece_files import SOURCES, write_marian
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from piston.core.errors import MisuseError
from piston.engines import build
from piston.export import export_model
from piston.runtime import load

TEXT = "the sea is calm and the wind blows"


@pytest.fixture(scope="module")
def translator(sequence_toys):
    """(the loaded bundle, transformers' model, its tokenizer) of a seeded NLLB."""
    tokenizer = AutoTokenizer.from_pretrained(sequence_toys.checkpoint("nllb"))
    with load(sequence_toys.everywhere("nllb", "fp"), target="ort-cpu") as opened:
        yield opened, sequence_toys.reference("nllb"), tokenizer


def test_a_translation_from_another_language_than_the_tokenizers_is_that_of_transformers(translator):
    """tests/end_to_end/test_sequence_matrix.py translates from the tokenizer's own."""
    model, reference, tokenizer = translator
    tokenizer.src_lang, forced = "deu_Latn", tokenizer.convert_tokens_to_ids("fra_Latn")
    ids = tokenizer(TEXT, return_tensors="pt")["input_ids"]
    assert model.encode(TEXT, frame=model.frame("deu_Latn")) == ids[0].tolist()
    expected = reference.generate(ids, forced_bos_token_id=forced, do_sample=False, num_beams=1, max_new_tokens=10)
    sampling = model.sampling(max_tokens=10)
    (found,) = model.translate([TEXT], source="deu_Latn", target="fra_Latn", sampling=sampling)
    assert found.token_ids[0] == forced
    assert list(found.token_ids) == expected[0, 1 : 1 + len(found.token_ids)].tolist()


def test_a_language_that_the_model_lacks_is_refused_with_those_it_has(translator):
    with pytest.raises(MisuseError, match="has no language 'ita_Latn'; it has: deu_Latn, eng_Latn, fra_Latn"):
        translator[0].translate([TEXT], source="eng_Latn", target="ita_Latn")


def test_prompts_of_pairs_are_those_that_the_checkpoint_names(translator):
    model, _, _ = translator
    settings = dict(model.manifest.settings)
    try:
        object.__setattr__(model.manifest, "settings", {"prompts": {"translation_en_to_de": "to German: "}})
        assert model.translation("en", "de") == (None, None, "to German: ")
        with pytest.raises(MisuseError, match="has no translation en_to_fr; it has: en_to_de"):
            model.translation("en", "fr")
        object.__setattr__(model.manifest, "settings", {})
        with pytest.raises(MisuseError, match="has no language codes; use generate"):
            model.translation("en", "de")
    finally:
        object.__setattr__(model.manifest, "settings", settings)


def test_marian_of_one_pair_translates_it_as_transformers_does(tmp_path):
    """tests/end_to_end/test_sequence_matrix.py has one of several targets."""
    tokenizer = write_marian(tmp_path / "checkpoint")
    export_model(tmp_path / "checkpoint", tmp_path / "model")
    build(tmp_path / "model", tmp_path / "bundle", max_batch=2)
    reference = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "checkpoint")
    with load(tmp_path / "bundle") as model:
        assert model.pairs == [("en", "de")]
        found = model.translate(SOURCES, source="en", target="de", sampling=model.sampling(max_tokens=12))
        for text, completion in zip(SOURCES, found, strict=True):
            ids = tokenizer(text, return_tensors="pt")["input_ids"]
            expected = reference.generate(ids, do_sample=False, num_beams=1, max_new_tokens=12)[0, 1:]
            assert list(completion.token_ids) == expected.tolist()
            assert completion.text.strip() == tokenizer.decode(expected, skip_special_tokens=True)
        with pytest.raises(MisuseError, match="has no translation de_to_en; it has: en_to_de"):
            model.translate(SOURCES, source="de", target="en")
