"""Tokenizers of SentencePiece files alone that transformers does not read: of Marian, M2M-100, NLLB and mBART.

Checkpoints of Marian and M2M-100 number the pieces of a SentencePiece model by a vocabulary of their own (vocab.json).
Marian has two models, of sources and of answers: where the second has pieces that the first does not, they get a file
each, and these pieces are hidden in that of sources. A piece that the vocabulary does not number gets an id behind all
tokens of the model; the runtime reads such ids as the unknown token, as transformers does.

NLLB and mBART are numbered as fairseq does it: four tokens of its own, the pieces, the languages of the class in their
order, the mask.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from piston.core.errors import CheckpointError
from piston.runtime.text.tokenizer import HIDDEN

UNIGRAM, BPE = 1, 2  # TrainerSpec.ModelType of sentencepiece_model.proto
NORMAL, CONTROL = 1, 3  # ModelProto.SentencePiece.Type; unknown is 2
UNKNOWN, UNUSED = 2, 5
SPACE = "\u2581"  # as SentencePiece writes it
FAIRSEQ = ("<s>", "<pad>", "</s>", "<unk>")
OWN = ["<unk>", "<s>", "</s>"]  # the pieces of SentencePiece that these take the place of
PADDING = 8  # ids at most that fairseq adds behind the last token, so that a table has a round number of rows
ROLES = ("bos_token", "eos_token", "sep_token", "cls_token", "unk_token", "pad_token", "mask_token")
OTHERS = 1000  # below the least score: pieces that a SentencePiece model does not have are never split off a text


def is_convertible(tokenizer: Any) -> bool:
    """Whether it is a tokenizer of transformers that this module converts."""
    return hasattr(tokenizer, "spm_source") or (hasattr(tokenizer, "sp_model") and hasattr(tokenizer, "encoder"))


def converted(tokenizer: Any, num_ids: int) -> tuple[Any, Any | None]:
    """The tokenizers.Tokenizer of sources, and that of answers where it is another.

    Args:
        tokenizer: transformers' Python tokenizer.
        num_ids: tokens of the model; ids from there on stand for the unknown token.

    Raises:
        CheckpointError: a SentencePiece model has what a tokenizer.json cannot say.
    """
    source_file, target_file = getattr(tokenizer, "spm_files", None) or (tokenizer.spm_file, None)
    ids: dict[str, int] = dict(tokenizer.encoder)
    source = _Pieces(Path(source_file))
    if target_file is None:
        return _backend(tokenizer, source, ids, num_ids), None
    target = dict(getattr(tokenizer, "target_encoder", ids))
    first = _backend(tokenizer, source, ids, num_ids)
    if target == ids and ids.keys() <= source.scores.keys() | {str(token) for token in tokenizer.all_special_tokens}:
        return first, None
    return first, _backend(tokenizer, _Pieces(Path(target_file)), target, num_ids, shows_all=True)


def with_languages(tokenizer: Any, path: Path, num_ids: int) -> Any:
    """The tokenizer of NLLB or mBART with the ids that the models have, from a SentencePiece file alone.

    transformers (5.23) leaves the languages of such a checkpoint out, or puts them behind the mask.

    Args:
        tokenizer: transformers' own.
        path: of the SentencePiece model.
        num_ids: tokens of the model.

    Raises:
        CheckpointError: the model has tokens that nothing numbers, or the file has what a tokenizer.json cannot say.
    """
    pieces, kind = _Pieces(path), type(tokenizer)
    codes: list[str] = list(getattr(sys.modules[kind.__module__], "FAIRSEQ_LANGUAGE_CODES", ()))
    mask = str(tokenizer.mask_token)
    names = [*FAIRSEQ, *pieces.names[len(OWN) :], *codes, mask]
    others = set(tokenizer.all_special_tokens) - {*codes, *FAIRSEQ, mask}
    is_alike = pieces.names[: len(OWN)] == OWN and pieces.is_bpe == (kind.model.__name__ == "BPE")
    if not codes or others or not is_alike or not 0 <= num_ids - len(names) <= PADDING:
        raise CheckpointError(
            f"{path} and its {len(codes)} languages have {len(names):,} tokens as {kind.__name__} numbers them, and "
            f"the model has {num_ids:,}{_listed(others)}; which ids its languages have is not known. Save its "
            "tokenizer as tokenizer.json with the transformers that made it."
        )
    numbered = {name: token_id for token_id, name in enumerate(names)}
    roles = {role: str(getattr(tokenizer, role)) for role in ROLES}
    options = {"src_lang": tokenizer.src_lang, "tgt_lang": tokenizer.tgt_lang, **roles}
    if hasattr(tokenizer, "legacy_behaviour"):
        options["legacy_behaviour"] = tokenizer.legacy_behaviour
    if pieces.is_bpe:
        made = kind(vocab=numbered, merges=_merges(pieces, numbered), **options)
    else:
        made = kind(vocab=[(name, pieces.scores.get(name, 0.0)) for name in names], **options)
    made.backend_tokenizer.normalizer, made.backend_tokenizer.pre_tokenizer = _splitting(pieces)
    if made.convert_tokens_to_ids(names) != list(range(len(names))):
        raise CheckpointError(f"{kind.__name__} of transformers does not take the numbers of {path}'s tokens.")
    return made


def _listed(tokens: set[str]) -> str:
    return f" and the special tokens {', '.join(sorted(tokens))}" if tokens else ""


class _Pieces:
    """What a SentencePiece model says: its pieces, the scores of those that are text, and how it normalizes.

    Raises:
        CheckpointError: it is damaged, or has what a tokenizer.json cannot say.
    """

    def __init__(self, path: Path) -> None:
        from sentencepiece import sentencepiece_model_pb2

        self.name = path.name
        model = sentencepiece_model_pb2.ModelProto()
        try:
            model.ParseFromString(path.read_bytes())
        except Exception as problem:
            raise CheckpointError(f"{path} is no SentencePiece model ({problem}); copy it again.") from problem
        trainer, normalizer = model.trainer_spec, model.normalizer_spec
        kinds = {piece.type for piece in model.pieces}
        for is_so, what in (
            (trainer.model_type not in (UNIGRAM, BPE), f"model type {trainer.model_type}"),
            (trainer.treat_whitespace_as_suffix, "spaces behind words"),
            (not normalizer.add_dummy_prefix, "no space before the first word"),
            (not normalizer.remove_extra_whitespaces, "runs of spaces that are kept"),
            (not normalizer.escape_whitespaces, "spaces that are not escaped"),
            (bool(kinds - {NORMAL, CONTROL, UNKNOWN, UNUSED}), "user-defined or byte pieces"),
        ):
            if is_so:
                raise CheckpointError(
                    f"{path} has {what}, which is not supported; save the tokenizer as tokenizer.json first."
                )
        self.is_bpe = trainer.model_type == BPE
        self.splits = trainer.split_by_whitespace
        self.charsmap = normalizer.precompiled_charsmap
        self.names = [piece.piece for piece in model.pieces]
        self.scores = {piece.piece: piece.score for piece in model.pieces if piece.type == NORMAL}


def _backend(tokenizer: Any, pieces: _Pieces, ids: dict[str, int], num_ids: int, *, shows_all: bool = False) -> Any:
    """One tokenizer.json; `shows_all`: it is to decode, and every token has its own text."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, processors

    unknown = str(tokenizer.unk_token)
    special = {str(token): tokenizer.convert_tokens_to_ids(str(token)) for token in tokenizer.all_special_tokens}
    special |= getattr(tokenizer, "lang_token_to_id", {})  # of languages that the checkpoint may not call special
    special |= {token: ids[token] for token in getattr(tokenizer, "supported_language_codes", ())}
    special = {token: token_id for token, token_id in special.items() if token_id < num_ids}
    shown = {token: token for token in (*special, *ids)}
    if not shows_all:
        shown = {token: token if token in special or token in pieces.scores else HIDDEN + token for token in shown}
    numbered = {shown[token]: token_id for token, token_id in (special | ids).items()}
    missing = [piece for piece in pieces.scores if piece not in numbered]
    first = max(num_ids, max(numbered.values()) + 1)
    numbered |= {piece: first + place for place, piece in enumerate(missing)}
    if pieces.is_bpe:
        model: Any = models.BPE(numbered, _merges(pieces, numbered), unk_token=unknown, fuse_unk=True)
    else:
        by_id = {token_id: piece for piece, token_id in numbered.items()}
        lowest = min(pieces.scores.values()) - (OTHERS if shows_all else 0)
        listed = [by_id.get(token_id, f"{HIDDEN}{token_id}") for token_id in range(max(by_id) + 1)]
        scored = [(piece, pieces.scores.get(piece, lowest)) for piece in listed]
        model = models.Unigram(scored, unk_id=special[unknown], byte_fallback=False)
    backend = Tokenizer(model)
    backend.normalizer, backend.pre_tokenizer = _splitting(pieces)
    backend.decoder = decoders.Metaspace(SPACE, prepend_scheme="always")
    backend.add_special_tokens(
        [AddedToken(token, normalized=False, special=True) for token in sorted(special, key=special.__getitem__)]
    )
    prefix, suffix = _frame(tokenizer)
    backend.post_processor = processors.TemplateProcessing(
        single=[*prefix, "$A", *suffix],
        pair=[*prefix, "$A", "$B", *suffix],
        special_tokens=[(token, special[token]) for token in {*prefix, *suffix}],
    )
    return backend


def _splitting(pieces: _Pieces) -> tuple[Any, Any]:
    """The normalizer and the pre-tokenizer, which prepare a text as SentencePiece does."""
    from tokenizers import Regex, normalizers, pre_tokenizers

    spaces = [normalizers.Replace(Regex(" {2,}"), " "), normalizers.Replace(Regex("^ | $"), "")]
    charsmap = [normalizers.Precompiled(pieces.charsmap)] if pieces.charsmap else []
    metaspace = pre_tokenizers.Metaspace(SPACE, prepend_scheme="always", split=pieces.splits)
    return normalizers.Sequence([*charsmap, *spaces]), metaspace


def _frame(tokenizer: Any) -> tuple[list[str], list[str]]:
    """The special tokens before and behind a text."""
    inner = tokenizer.convert_tokens_to_ids(str(tokenizer.unk_token))
    whole = tokenizer.build_inputs_with_special_tokens([inner])
    place = whole.index(inner)
    before, behind = (tokenizer.convert_ids_to_tokens(part) for part in (whole[:place], whole[place + 1 :]))
    return list(before), list(behind)


def _merges(pieces: _Pieces, numbered: Mapping[str, int]) -> list[tuple[str, str]]:
    """Pairs that SentencePiece joins, the one first whose piece has the highest score."""
    found: list[tuple[float, int, str, str]] = []
    for piece, score in pieces.scores.items():
        for place in range(1, len(piece)):
            left, right = piece[:place], piece[place:]
            if left in pieces.scores and right in pieces.scores:
                found.append((-score, numbered[piece], left, right))
    return [(left, right) for _, _, left, right in sorted(found)]
