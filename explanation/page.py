"""An explanation as lines of text, and as one page."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from markupsafe import Markup

from piston.core.report.heat import coloured, heat_map, heat_maps, scale
from piston.core.report.page import Tile, details, figure, heading, page, paragraph, table
from piston.explanation.result import AttentionMap, Attribution, Explanation, MarkedText

MOST_TOKENS = 160  # of a map on the page
MOST_LISTED = 10  # words in a terminal, and in the table of the page
FEWEST_LISTED = 3  # words in a terminal for each of several scores
ATTENTION = (
    "Each row is a token, each column a token that it looks at; a stronger colour is more, of the largest in the map. "
    "Averages are over the heads."
)


def lines_of(found: Explanation) -> Iterator[str]:
    """The answer, and for each score that is explained the words that change it most."""
    yield f"{found.model} ({found.scheme}, {found.target}): {found.answer}"
    if not found.attributions:
        return
    shown = found.attributions[:1] if _writes(found.attributions) else found.attributions
    most = max(MOST_LISTED // len(shown), FEWEST_LISTED)
    for each in shown:
        yield f"{each.of}: {each.value:.4g}; without a word it is lower by"
        words = [(text, word) for text in each.texts for word in text.words]
        for text, word in sorted(words, key=lambda item: -abs(item[1].effect))[:most]:
            where = f"  ({text.name})" if len(each.texts) > 1 else ""
            yield f"  {word.effect:+9.4f}  {text.shown(word)}{where}"
        if len(words) > most:
            yield f"  and {len(words) - most} more words; --output FILE.html and --json have all"


def page_of(found: Mapping[str, Explanation], piston: str) -> str:
    """The whole document, of one bundle or of two next to each other."""
    first = next(iter(found.values()))
    tiles = [Tile(name, each.answer, f"{each.model}, {each.scheme}, {each.target}") for name, each in found.items()]
    tiles += [
        Tile("attention", _same(each.difference), "next to the engine as it is" if len(found) == 1 else name)
        for name, each in found.items()
        if each.difference is not None
    ]
    parts = [*_words(found), *_tokens(found), *_scores(found), *_attention(found)]
    parts += [paragraph(remark, "soft") for each in found.values() for remark in each.remarks]
    lead = [paragraph(f"{first.task}: why {', and '.join(found)} answer{'s' * (len(found) == 1)} so.")]
    title = f"Why: {first.answer}"
    return page(title, tiles, parts, f"Written by piston explain, Piston {piston}.", lead)


def _same(difference: float | None) -> str:
    return "same answers, bit for bit" if difference == 0 else f"same answers to {difference:.1g}"


def _scores(found: Mapping[str, Explanation]) -> Iterator[Markup]:
    """What the models gave; of several models each has a column."""
    names = list(dict.fromkeys(name for each in found.values() for name, _ in each.scores))
    if not names:
        return
    values = [dict(each.scores) for each in found.values()]
    rows = [[name, *(f"{scores[name]:.4f}" if name in scores else "" for scores in values)] for name in names]
    yield heading("Scores")
    yield _folded(["", *found], rows, "scores")


def _words(found: Mapping[str, Explanation]) -> Iterator[Markup]:
    """Coloured texts for each score but those of single tokens, and a table of the words that change most."""
    explained = {name: each.attributions for name, each in found.items() if each.attributions}
    if not explained:
        return
    yield heading("What each word changes")
    yield paragraph(
        "Each word is left out in turn. Orange words hold the score up: without them it is lower. Blue ones hold it "
        "down.",
        "soft",
    )
    writes = _writes(next(iter(explained.values())))
    count = 1 if writes else len(next(iter(explained.values())))
    for place in range(count):
        shown = {name: each[place] for name, each in explained.items()}
        largest = max(abs(word.effect) for each in shown.values() for text in each.texts for word in text.words)
        for name, each in shown.items():
            title = f"{each.of}: {each.value:.4f}" + (f", {name}" if len(shown) > 1 else "")
            yield figure_of(title, each.texts, largest)
        yield scale(largest)
        yield _word_table(shown)


def figure_of(title: str, texts: Sequence[MarkedText], largest: float) -> Markup:
    """One attribution as coloured texts."""
    parts = [
        coloured(text.text, [(word.start, word.end, word.effect) for word in text.words], largest, text.name)
        for text in texts
    ]
    return Markup("<figure><figcaption>{}</figcaption>{}</figure>").format(title, Markup().join(parts))


def _word_table(shown: Mapping[str, Attribution]) -> Markup:
    """The words by their effect in the first model, next to that in the others."""
    first = next(iter(shown.values()))
    places = [(text, word) for text, marked in enumerate(first.texts) for word in range(len(marked.words))]
    places.sort(key=lambda place: -abs(first.texts[place[0]].words[place[1]].effect))
    rows, several = [], len(first.texts) > 1
    for text, word in places:
        marked = first.texts[text]
        effects = [f"{each.texts[text].words[word].effect:+.4f}" for each in shown.values()]
        rows.append([marked.shown(marked.words[word]), *effects, *([marked.name] if several else [])])
    return _folded(["word", *(shown if len(shown) > 1 else ["effect"]), *(["input"] if several else [])], rows, "words")


def _folded(heads: Sequence[str], rows: Sequence[Sequence[str]], what: str) -> Markup:
    """A table whose first rows are seen; numbers are between the first column and one that says where."""
    numbers = [column for column, head in enumerate(heads) if column and head != "input"]
    first, rest = rows[:MOST_LISTED], rows[MOST_LISTED:]
    parts = [table(heads, first, numbers)]
    if rest:
        parts.append(details(heads, rest, f"{len(rest)} more {what}"))
    return Markup().join(parts)


def _writes(attributions: Sequence[Attribution]) -> bool:
    """Whether the first attribution is the sum of the others, one for each token of an answer."""
    return len(attributions) > 1 and attributions[0].of == "log probability of the whole answer"


def _tokens(found: Mapping[str, Explanation]) -> Iterator[Markup]:
    """Of models that write: words of the input by tokens of the answer."""
    for name, each in found.items():
        if not each.attributions or not _writes(each.attributions):
            continue
        own = each.attributions[1:]
        (text,) = own[0].texts
        effects = np.array([[word.effect for word in one.texts[0].words] for one in own], np.float64)
        tokens = [one.of.removeprefix("log probability of ") for one in own]
        svg = heat_map(effects, tokens, [text.shown(word) for word in text.words], f"words by tokens, {name}")
        caption = (
            "Each row is a token of the answer, each column a word of the input. Orange: without the word the token is "
            "less probable; blue: more."
        )
        yield figure(f"Which word each token rests on, {name}", svg, caption)


def _attention(found: Mapping[str, Explanation]) -> Iterator[Markup]:
    maps = {name: each.attention for name, each in found.items() if each.attention}
    if not maps:
        return
    kinds = list(dict.fromkeys(each.kind for each in next(iter(maps.values()))))
    yield heading("Attention")
    yield paragraph(ATTENTION, "soft")
    for kind in kinds:
        for name, own in maps.items():
            chosen = [each for each in own if each.kind == kind]
            suffix = f", {name}" if len(maps) > 1 else ""
            if max(len(chosen[0].queries), len(chosen[0].keys)) > MOST_TOKENS:
                yield paragraph(
                    f"{chosen[0].name}{suffix}: more than {MOST_TOKENS} tokens are not drawn; --json has the numbers."
                )
                continue
            yield from _kind(chosen, suffix)


def _kind(maps: Sequence[AttentionMap], suffix: str) -> Iterator[Markup]:
    """The average of all layers and heads, then each layer, folded."""
    first = maps[0]
    mean = np.mean([each.weights.mean(axis=0) for each in maps], axis=0)
    title = {"encoder": "Encoder", "decoder": "Decoder", "cross": "Decoder to source"}[first.kind] + suffix
    heads = first.weights.shape[0]
    name = f"{title}, average"
    yield figure(
        f"{title}: average of {len(maps)} layers",
        heat_map(mean, first.queries, first.keys, name),
        f"{len(maps)} layers of {heads} heads",
    )
    for each in maps:
        average = heat_map(each.weights.mean(axis=0), each.queries, each.keys, f"{title}, layer {each.layer}, average")
        small = heat_maps(
            [(f"head {head}", weights) for head, weights in enumerate(each.weights)], f"{title}, layer {each.layer}"
        )
        yield Markup("<details{}><summary>layer {}: average and {} heads</summary>{}{}</details>").format(
            Markup(" open") if each.layer == 0 else "", each.layer, len(each.weights), small, average
        )
