"""How a byte-level vocabulary of a GGUF file splits text before its merges, by the name in tokenizer.ggml.pre.

The names are those of llama.cpp. Each stands for the pre-tokenizer that its models were published with: regular
expressions applied one after another, each splitting what the ones before left whole.
"""

from piston.core.errors import CheckpointError

_SUFFIX = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_CASED = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+%s"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*%s"
)


def _llama3(digits: str = r"\p{N}{1,3}", spaces: str = _SPACES, *, suffix: str = f"{_SUFFIX}|") -> str:
    return rf"{suffix}[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{spaces}"


def _cased(digits: str, suffix: str = "") -> str:
    return f"{_CASED % (suffix, suffix)}|{digits}" + rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"


_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3, _QWEN2 = _llama3(), _llama3(r"\p{N}")
_GPT4O = _cased(r"\p{N}{1,3}", f"{_SUFFIX}?")
_THREES, _HAN_KANA = r"\p{N}{1,3}", "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_WORDS = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|" + _SPACES
)
_EXAONE_MOE = (
    _SUFFIX + r"|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?"
    r"|\s*[\r\n]|\s+(?!\S)|\s+"
)
_YOUTU_SCRIPTS = (
    "[\uac00-\ud7a3\u3131-\u318e]+|[\uff01\u2026\u201c\u201d\u2018\u2019\u2014\uff1a\uff1b\uff0c\u3001-\u303f"
    "\ufe30-\ufe4f]+|[\u3105-\u312f]+|[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
)
_CASED_LETTERS = (  # as DeepSeek lists them
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373"
    "\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f"
    "\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77"
    "\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-"
    "\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec"
    "\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-"
    "\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3"
    "\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17"
    "\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-"
    "\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
)
_BLOOM = " ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"
_LINES = r"\s{512}(?!\S)|\s{256}(?!\S)|\s{128}(?!\S)|\s{64}(?!\S)|\s{32}(?!\S)|\s{16}(?!\S)|\s{8}(?!\S)|\s{4}(?!\S)"

_SPLITS: tuple[tuple[tuple[str, ...], str], ...] = (
    ((r"[\p{P}$+<=>^~|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]"), "default"),
    (
        (_GPT2,),
        (
            "gpt-2 phi-2 jina-es jina-de gigachat jina-v2-es jina-v2-de a.x-4.0 mellum modern-bert jina-v1-en "
            "jina-v2-code roberta-bpe mpt olmo jais trillion granite-docling exaone4"
        ),
    ),
    (
        (r"\p{N}", _GPT2),
        "starcoder refact command-r smollm codeshell exaone minerva-7b mellum2",
    ),
    (
        (_LLAMA3,),
        (
            "llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano dbrx smaug-bpe glm4 "
            "chatglm-bpe"
        ),
    ),
    ((_QWEN2,), "qwen2 deepseek-r1-qwen kormo f2llmv2 stablelm2 hunyuan solar-open megrez grok-2"),
    ((_llama3(r"\p{N}", suffix=""),), "ufakzeka"),
    ((_llama3(spaces=rf"\s*[\r\n]+|{_LINES}|\s{{1,2}}(?!\S)|\s"),), "jais-2"),
    ((r"[^\n]+|[\n]+", _QWEN2), "laguna"),
    ((_THREES, _llama3(r"\p{N}+")), "minicpm5"),
    (
        (_QWEN2.replace(r"?\p{L}+", r"?[\p{L}\p{M}]+").replace(r" ?[^\s\p{L}\p{N}]+", r" ?[^\s\p{L}\p{M}\p{N}]+"),),
        "qwen35",
    ),
    (
        (r"'(?i:[sdmt]|ll|ve|re)|" + _llama3(r"\p{N}", r"\s*[\r\n]|\s+(?!\S)|\s+", suffix=""),),
        "bailingmoe bailingmoe2 llada-moe",
    ),
    ((_QWEN2.replace(r" ?[^\s\p{L}\p{N}]+[\r\n]*", r" ?[^\s\p{L}\p{N}\r\n]+"),), "seed-coder"),
    ((_EXAONE_MOE,), "exaone-moe"),
    ((_cased(r"\p{N}"),), "tekken"),
    ((_GPT4O,), "gpt-4o llama4 kanana2 talkie minimax-m2 granite-embed-multi-97m"),
    ((r"\d{1,3}(?=(?:\d{3})*\b)", _GPT4O), "tiny_aya cohere2moe"),
    ((_THREES, _HAN_KANA, _WORDS), "deepseek-v3 hunyuan-dense hy_v4 joyai-llm"),
    ((_YOUTU_SCRIPTS, _cased(r"\p{N}", f"{_SUFFIX}?")), "youtu"),
    (
        (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+", r"\p{N}"),
        "deepseek-coder",
    ),
    (
        (
            r"[\r\n]",
            rf"\s?[{_CASED_LETTERS}]+",
            "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
            r"\s+$",
            "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+",
            r"\p{N}+",
        ),
        "deepseek-llm",
    ),
    (
        (_THREES, _HAN_KANA, _WORDS.replace(r"[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+", r"[\p{P}\p{S}]+|[\r\n]"), r"\p{N}"),
        "spark2_5",
    ),
    (
        (
            "<sentinel:[0-9]+>",
            "IMGIMG[A-I]{1,4}Z",
            "[\t\n]|    |  ",
            r"\p{N}",
            r"[\p{P}!-/:-@\[-`{-~]",
            _GPT2,
        ),
        "chameleon",
    ),
    ((r"[\p{P}$+<=>^~|`]+", _GPT2, "[0-9][0-9][0-9]"), "falcon"),
    ((_BLOOM,), "poro-chat bloom gpt3-finnish"),
    ((_BLOOM, r"\p{N}"), "viking"),
)
SPLITS = {name: patterns for patterns, names in _SPLITS for name in names.split()}
# Known names that such expressions cannot state: merges over raw UTF-8, or rules of their own for digits and Han.
REFUSED = (
    "afmoe", "gemma4", "granite-embed-multi-311m", "kimi-k2", "sarvam-moe", "superbpe", "whitespace",
)  # fmt: skip
_LLAMA3_LIKE = (
    "llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano", "tekken",
)  # fmt: skip
# A word that is a token is taken whole, whatever the merges would make of it.
IGNORING_MERGES = (*_LLAMA3_LIKE, "minicpm5", "youtu", "granite-embed-multi-97m")
# Text starts with the bos token unless the file says otherwise.
STARTING = (*_LLAMA3_LIKE, "chameleon")


def splits_of(name: str, file: str) -> tuple[str, ...]:
    """The regular expressions of `name`, in order.

    Raises:
        CheckpointError: a name that is not known, or not supported.
    """
    if name in SPLITS:
        return SPLITS[name]
    told = "is not supported" if name in REFUSED else "is not known"
    raise CheckpointError(
        f"The split of text {name!r} (tokenizer.ggml.pre of {file}) {told}, and any other would give wrong tokens; "
        "export the Hugging Face checkpoint it was made from."
    )
