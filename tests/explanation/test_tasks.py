"""What words change, against transformers' own scores of the texts without them."""

import dataclasses
import math

import numpy as np
import pytest
import torch
import transformers
from checkpoints import VOCAB_SIZE
from encoder_decoders import END, SPECIAL
from encoder_decoders import WORDS as VOCABULARY
from zoo import make

from piston.core.errors import MisuseError
from piston.explanation.attention import engine_of
from piston.explanation.opened import Opened, named_tokens
from piston.explanation.result import Asked
from piston.explanation.tasks import (
    feature_extraction,
    question_answering,
    text2text_generation,
    text_classification,
    text_generation,
    text_ranking,
    token_classification,
)
from piston.runtime import load
from piston.runtime.bundle import Bundle

TEXT = "paris in world,  good"
WORDS = ["paris", "in", "world", ",", "good"]


@pytest.fixture
def explained():
    """explained(module, bundle, texts, **options)."""

    def explain(module, directory, texts, **options):
        with load(directory, threads=1) as model:
            bundle = Bundle.open(directory)
            spec = engine_of(bundle, None, with_attention=True)
            asked = Asked(texts=texts, **({"with_attention": False} | options))
            return module.explain(Opened(bundle, spec, model, 1), asked)

    return explain


def reference(toys, name):
    """transformers' model, and its tokenizer."""
    return toys.reference(name), transformers.AutoTokenizer.from_pretrained(toys.checkpoint(name))


def logits_of(toys, name, *texts):
    model, tokenizer = reference(toys, name)
    with torch.no_grad():
        return model(**tokenizer(*texts, return_tensors="pt")).logits[0]


def without(text, word):
    """The text without the first of these words, by hand."""
    place = text.index(word)
    return text[:place] + text[place + len(word) :]


def test_words_of_a_classified_text_change_the_probability_of_its_label(encoder_toys, explained):
    found = explained(text_classification, encoder_toys.bundle("single"), {"text": TEXT}, with_attention=True)
    (attribution,) = found.attributions
    whole = logits_of(encoder_toys, "single", TEXT).softmax(-1)
    label = int(whole.argmax())
    assert found.scores[0][0] == ["bad", "fair", "good"][label]
    (text,) = attribution.texts
    assert [text.shown(word) for word in text.words] == WORDS
    assert attribution.value == pytest.approx(float(whole[label]), abs=1e-5)
    for word in text.words:
        changed = logits_of(encoder_toys, "single", without(TEXT, text.shown(word))).softmax(-1)
        assert word.effect == pytest.approx(float(whole[label] - changed[label]), abs=1e-5)
    assert found.attention[0].queries[0] == "[CLS]"
    assert found.difference < 1e-5


def test_another_label_and_another_replacement_are_explained(encoder_toys, explained):
    bundle = encoder_toys.bundle("multi")
    found = explained(text_classification, bundle, {"text": TEXT}, label="spam", replacement="good")
    whole = logits_of(encoder_toys, "multi", TEXT).sigmoid()[1]
    (word, *_), text = found.attributions[0].texts[0].words, TEXT.replace("paris", "good")
    changed = logits_of(encoder_toys, "multi", text).sigmoid()[1]
    assert word.effect == pytest.approx(float(whole - changed), abs=1e-5)
    with pytest.raises(MisuseError, match="no label 'ham'; it has hate, spam"):
        explained(text_classification, bundle, {"text": TEXT}, label="ham")


def test_both_texts_of_a_ranking_are_explained(encoder_toys, explained):
    query, document = "in paris", "good world"
    found = explained(text_ranking, encoder_toys.bundle("reranker"), {"query": query, "document": document})
    (attribution,) = found.attributions
    whole = float(logits_of(encoder_toys, "reranker", query, document).sigmoid())
    assert attribution.value == pytest.approx(whole, abs=1e-5)
    assert [text.name for text in attribution.texts] == ["query", "document"]
    for text in attribution.texts:
        for word in text.words:
            changed = {"query": query, "document": document, text.name: without(text.text, text.shown(word))}
            expected = whole - float(logits_of(encoder_toys, "reranker", *changed.values()).sigmoid())
            assert word.effect == pytest.approx(expected, abs=1e-5)


def test_start_and_end_of_an_answer_are_explained(encoder_toys, explained):
    question, context = "in world", "hello paris good world"
    found = explained(question_answering, encoder_toys.bundle("answerer"), {"question": question, "context": context})
    span = found.fixed["span"]
    model, tokenizer = reference(encoder_toys, "answerer")

    def ends(question, context, start, end):
        encoded = tokenizer(question, context, return_tensors="pt", return_offsets_mapping=True)
        offsets = encoded.pop("offset_mapping")[0].tolist()
        places = [place for place, side in enumerate(encoded.sequence_ids(0)) if side == 1]
        with torch.no_grad():
            outputs = model(**encoded)
        counted = [0, *places]
        first = next(place for place in places if offsets[place][1] > start)
        last = next(place for place in reversed(places) if offsets[place][0] < end)
        chances = [logits[0, counted].softmax(-1) for logits in (outputs.start_logits, outputs.end_logits)]
        return [float(chance[counted.index(place)]) for chance, place in zip(chances, (first, last), strict=True)]

    whole = ends(question, context, *span)
    for column, attribution in enumerate(found.attributions):
        assert attribution.value == pytest.approx(whole[column], abs=1e-5)
        text = attribution.texts[1]
        assert text.name == "context"
        for word in text.words:
            changed = context[: word.start] + context[word.end :]
            # Characters behind the word move to the front; those in it are where it was.
            start, end = (
                place if place <= word.start else max(word.start, place - (word.end - word.start)) for place in span
            )
            if word.start <= span[0] and span[1] <= word.end:
                continue  # nothing is left of the answer
            expected = whole[column] - ends(question, changed, start, end)[column]
            assert word.effect == pytest.approx(expected, abs=1e-5)


def test_words_turn_the_vector_of_their_text(sentence_bundle, sentence_model, explained):
    text = "a girl is styling her hair"
    found = explained(feature_extraction, sentence_bundle, {"text": text})
    with load(sentence_bundle) as model:
        vectors = model.embed([text, "girl is styling her hair"])
    cosine = float(vectors[0] @ vectors[1] / np.linalg.norm(vectors[0]) / np.linalg.norm(vectors[1]))
    assert found.attributions[0].value == pytest.approx(1)
    assert found.attributions[0].texts[0].words[0].effect == pytest.approx(1 - cosine, abs=1e-6)


NER = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]


@pytest.mark.parametrize("replacement", ["", "hello"])
def test_words_of_a_tagged_text_change_the_probability_of_each_spans_label(encoder_toys, explained, replacement):
    bundle = encoder_toys.bundle("tagger")
    own = explained(token_classification, bundle, {"text": TEXT}, with_attention=True)
    with load(bundle) as opened:
        (spans,) = opened.tag([TEXT])
    assert [each.of for each in own.attributions] == [f"probability of {s.label} of {s.text!r}" for s in spans]
    assert own.attention
    spans = [("PER", 0, 5), ("LOC", 9, 21), ("LOC", 6, 8)]
    like = dataclasses.replace(own, fixed={"spans": spans})
    found = explained(token_classification, bundle, {"text": TEXT}, like=like, replacement=replacement)
    model, tokenizer = reference(encoder_toys, "tagger")

    def chance(text, label, start, end):
        encoded = tokenizer(text, return_tensors="pt", return_offsets_mapping=True)
        offsets = encoded.pop("offset_mapping")[0].tolist()
        with torch.no_grad():
            chances = model(**encoded).logits[0].softmax(-1)
        own = [place for place, name in enumerate(NER) if name.removeprefix("B-").removeprefix("I-") == label]
        tokens = [place for place, (first, last) in enumerate(offsets) if first < end and last > start]
        return float(chances[tokens][:, own].sum(-1).mean()) if tokens else 0.0

    for (label, first, last), attribution in zip(spans, found.attributions, strict=True):
        assert attribution.of == f"probability of {label} of {TEXT[first:last]!r}"
        whole = chance(TEXT, label, first, last)
        assert attribution.value == pytest.approx(whole, abs=1e-5)
        (text,) = attribution.texts
        assert [text.shown(word) for word in text.words] == WORDS
        for word in text.words:
            changed = TEXT[: word.start] + replacement + TEXT[word.end :]
            # Characters stay where they are in front of the word, and move with the text behind it.
            move = len(replacement) - (word.end - word.start)
            start = first + (move if first >= word.end else 0)
            end = last + (move if last >= word.end else 0)
            expected = whole - chance(changed, label, start, end)
            assert word.effect == pytest.approx(expected, abs=1e-5)


def test_spans_of_another_model_are_explained_and_a_label_that_it_lacks_is_named(encoder_toys, explained):
    bundle = encoder_toys.bundle("tagger")
    first = explained(token_classification, bundle, {"text": TEXT})
    assert explained(token_classification, bundle, {"text": TEXT}, like=first).attributions == first.attributions
    other = dataclasses.replace(first, fixed={"spans": [("ORG", 0, 5)]})
    with pytest.raises(MisuseError, match="no label 'ORG'; it has O, PER, LOC"):
        explained(token_classification, bundle, {"text": TEXT}, like=other)


def test_words_of_a_source_change_the_probability_of_each_token(text_bundle, text_model, explained):
    text = "the sea is calm"
    found = explained(text2text_generation, text_bundle, {"text": text}, max_tokens=4, with_attention=True)
    _, model = text_model
    ids = found.fixed["token_ids"]

    def read(words):
        source = [(SPECIAL + VOCABULARY).index(word) for word in words] + [END]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([source]), decoder_input_ids=torch.tensor([[0, *ids[:-1]]])).logits
        return [float(row[token]) for row, token in zip(logits[0].log_softmax(-1), ids, strict=True)]

    whole, words = read(text.split()), text.split()
    assert len(found.attributions) == len(ids) + 1
    assert found.attributions[0].value == pytest.approx(sum(whole), abs=1e-3)
    for place, word in enumerate(words):
        changed = read([other for other in words if other is not word])
        for token, attribution in enumerate(found.attributions[1:]):
            assert attribution.texts[0].words[place].effect == pytest.approx(whole[token] - changed[token], abs=1e-3)
    assert {each.kind for each in found.attention} == {"encoder", "decoder", "cross"}


@pytest.mark.parametrize("source", ["eng_Latn", "fra_Latn"])
def test_words_of_a_translation_are_read_behind_the_code_of_their_language(sequence_toys, explained, source):
    checkpoint, model = sequence_toys.checkpoint("nllb"), sequence_toys.reference("nllb")
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint, src_lang=source)
    bundle, text = sequence_toys.everywhere("nllb", "fp"), "the sea is calm"
    options = {"languages": (source, "deu_Latn"), "max_tokens": 4, "with_attention": True}
    found = explained(text2text_generation, bundle, {"text": text}, **options)
    given = [2, tokenizer.convert_tokens_to_ids("deu_Latn")]
    inputs = tokenizer(text, return_tensors="pt")
    generated = model.generate(**inputs, forced_bos_token_id=given[1], max_new_tokens=5, do_sample=False, num_beams=1)
    ids = generated[0, len(given) :].tolist()
    assert found.fixed["token_ids"] == ids[: len(found.fixed["token_ids"])]
    ids = found.fixed["token_ids"]

    def read(text):
        with torch.no_grad():
            decoded = torch.tensor([[*given, *ids[:-1]]])
            logits = model(**tokenizer(text, return_tensors="pt"), decoder_input_ids=decoded).logits[0, 1:]
        return sum(float(row[token]) for row, token in zip(logits.log_softmax(-1), ids, strict=True))

    (whole,) = found.attributions[0].texts
    assert found.attributions[0].value == pytest.approx(read(text), abs=1e-3)
    for word in whole.words:
        changed = read(text[: word.start] + text[word.end :])
        assert word.effect == pytest.approx(read(text) - changed, abs=1e-3)
    assert next(each for each in found.attention if each.kind == "cross").queries[1] == "deu_Latn"


def test_words_of_a_prompt_change_the_probability_of_each_token(toys, explained):
    found = explained(text_generation, toys.bundle(model_type="llama"), {"prompt": "ab cd"}, max_tokens=3)
    model, ids = make("llama", vocab_size=VOCAB_SIZE), found.fixed["token_ids"]
    with load(toys.bundle(model_type="llama")) as opened:
        tokenizer = opened.tokenizer

    def read(prompt):
        before = tokenizer.encode(prompt)
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[*before, *ids[:-1]]])).logits[0, len(before) - 1 :]
        return [float(row[token]) for row, token in zip(logits.log_softmax(-1), ids, strict=True)]

    whole = read("ab cd")
    (text,) = found.attributions[0].texts
    for place, word in enumerate(text.words):
        changed = read("ab cd"[: word.start] + "ab cd"[word.end :])
        for token, attribution in enumerate(found.attributions[1:]):
            assert attribution.texts[0].words[place].effect == pytest.approx(whole[token] - changed[token], abs=1e-3)
    assert not math.isnan(found.attributions[0].value)


def test_the_answer_of_another_model_is_explained(encoder_toys, explained):
    bundle = encoder_toys.bundle("single")
    first = explained(text_classification, bundle, {"text": TEXT}, label="bad")
    second = explained(text_classification, bundle, {"text": TEXT}, like=first)
    assert second.attributions == first.attributions


def test_a_text_of_one_word_needs_a_replacement(encoder_toys, explained):
    bundle = encoder_toys.bundle("single")
    with pytest.raises(MisuseError, match="nothing is left without it; give --replacement TEXT"):
        explained(text_classification, bundle, {"text": "in"})
    assert explained(text_classification, bundle, {"text": "in"}, replacement="good").attributions


def test_tokens_are_shown_as_the_text_they_add(toys):
    with load(toys.bundle(model_type="llama")) as model:
        ids = model.tokenizer.encode("the quick ü")
        shown = named_tokens([*ids, model.tokenizer.id_of("<|end|>")], model.tokenizer)
    assert shown[0] == "the"
    assert "".join(shown).startswith("the·quick·")
    assert shown[-1] == "<|end|>"
