"""Small SentencePiece models, trained here, and checkpoints of Marian around them."""

import json
import warnings

import numpy as np
import sentencepiece
from encoder_decoders import make_encoder_decoder
from transformers import MarianTokenizer

SOURCES = [
    "the sea is calm today and the wind blows from the north",
    "naïve café, crème brûlée à la carte: 1,234.5 € or 20 %",
    "Hello, World! It's a test; isn't it?",
    "你好 世界 今天 天气 很好",
    "emoji 👍 🎉 and 👩‍👩‍👧",
]
TARGETS = [
    "das Meer ist heute ruhig und der Wind weht von Norden",
    "Grüße aus Köln, größer als Öl",
    "안녕 세계 오늘은 날씨가 좋다",
]


def trained(path, texts, kind, size, **options):
    """A small SentencePiece model, the same on every machine."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts * 10),
        model_prefix=str(path.with_suffix("")),
        vocab_size=size,
        model_type=kind,
        hard_vocab_limit=False,
        num_threads=1,
        minloglevel=3,
        **options,
    )
    path.with_suffix(".model").rename(path)
    return sentencepiece.SentencePieceProcessor(model_file=str(path))


def pieces_of(model):
    return [model.id_to_piece(index) for index in range(model.get_piece_size()) if not model.is_control(index)]


def write_model(directory, size, name="marian", **changes):
    make_encoder_decoder(name, vocab_size=size, **changes).save_pretrained(directory)


def write_marian(directory, *, kind="unigram", left_out=0, codes=(), model=None, **settings):
    """A checkpoint of Marian: two SentencePiece models, one vocabulary that lacks some pieces; `model` has changes."""
    directory.mkdir()
    source = trained(directory / "source.spm", SOURCES, kind, 120)
    target = trained(directory / "target.spm", TARGETS, kind, 90)
    pieces = sorted({*pieces_of(source), *pieces_of(target)} - {"<unk>"})
    np.random.default_rng(3).shuffle(pieces)  # ids are not those of either model
    kept = [piece for index, piece in enumerate(pieces) if index >= left_out]
    vocabulary = ["</s>", "<unk>", *kept, *codes, "<pad>"]
    (directory / "vocab.json").write_text(json.dumps({piece: index for index, piece in enumerate(vocabulary)}))
    settings = {"source_lang": "en", "target_lang": "de", "tokenizer_class": "MarianTokenizer"} | settings
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    pad = len(vocabulary) - 1
    tokens = {"pad_token_id": pad, "eos_token_id": 0, "decoder_start_token_id": pad}
    write_model(directory, len(vocabulary), **tokens, **model or {})
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Recommended: pip install sacremoses")  # which normalizes punctuation
        return MarianTokenizer.from_pretrained(directory)
