"""Translation: bundles of a Marian model beside CTranslate2 in INT8, in one interleaved run.

    python scripts/compare_translators.py --rivals PYTHON -o DIR [--target ort-cpu --target ort-cpu:avx512]

The model has the size of Marian's base models (6 + 6 layers, 512 wide, 58,101 tokens) and random weights, which serve
for speed: it is made, exported, calibrated to w8a8, built for each target and converted to CTranslate2 in DIR; what is
there already is not made again. A smaller model shows that everything answers: --layers, --width, --vocab.

Sources of --source-len tokens are translated one at a time and eight at a time, greedily and with four beams. Every
system generates exactly --gen-len tokens, the end token being forbidden, which is checked. CTranslate2 is given tokens;
bundles are given text, so that their times include the tokenizer. What is printed: generated tokens a second (of the
best beam), peak memory of each process, how many tokens a greedy answer has in common with that of the first bundle
before rounding makes them differ, and ratios.

PYTHON is the interpreter of an environment with torch==2.13.0, transformers<5 and ctranslate2==4.8.5; the one of
scripts/compare_speech.py serves.
"""

import argparse
import json
import sys
from itertools import accumulate
from operator import eq, mul
from pathlib import Path
from typing import Any

from interleaved import Found, Run, bundles_and_rivals, machine_line, made, measured, ratio_lines

GOALS = {"ctranslate2": 1.2}
BATCH, BEAMS = 8, 4
SETTINGS = {
    f"batch {batch}, {how}": (batch, beams)
    for batch in (1, BATCH)
    for how, beams in (("greedy", 1), ("4 beams", BEAMS))
}
END, UNKNOWN, FIRST = "</s>", "<unk>", 2
CALIBRATED, CHECKED = 32, 8  # sources
# Random weights move more under rounding than trained ones do; their quality says nothing.
ANYTHING = ("--require", "kl<=1000")


def main() -> None:
    """Make what is missing, measure, and print."""
    arguments = parsed()
    from piston.core.machine import num_cores

    bundles, rivals = bundles_and_rivals(*all_made(arguments), arguments.rivals)
    options = {"threads": num_cores(), "sources": str(arguments.out / "sources.json"), "gen_len": arguments.gen_len}
    found = measured(__file__, [*bundles, *rivals], dict.fromkeys(SETTINGS, 1), options, arguments.rounds)
    check_lengths(found, arguments.gen_len)
    print(
        f"Marian, {arguments.layers} + {arguments.layers} layers, {arguments.width} wide, {arguments.vocab:,} tokens: "
    )
    print(f"sources of {arguments.source_len} tokens, {arguments.gen_len} generated for each")
    print(machine_line(num_cores(), arguments.rounds))
    print("\n".join(["", *system_lines(found, arguments.gen_len), ""]))
    print("\n".join(ratio_lines(found, [item.name for item in bundles], GOALS, {name: name for name in SETTINGS})))


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rivals", required=True, metavar="PYTHON")
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--target", action="append", metavar="TARGET", help="default: ort-cpu and ort-cpu:avx512")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--vocab", type=int, default=58_101)
    parser.add_argument("--source-len", type=int, default=32)
    parser.add_argument("--gen-len", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=8)
    arguments = parser.parse_args()
    arguments.target = arguments.target or ["ort-cpu", "ort-cpu:avx512"]
    return arguments


def all_made(arguments: argparse.Namespace) -> tuple[list[Path], dict[str, Path]]:
    """The bundles and the rivals' models; made where they are missing."""
    out, piston = arguments.out, (sys.executable, "-m", "piston.cli.main")
    write_sources(arguments)
    checkpoint = out / "checkpoint"
    if not checkpoint.exists():
        write_checkpoint(checkpoint, arguments)
    model = made(out / "model", [*piston, "export", checkpoint, "-o", out / "model"])
    data = ["--data", out / "sources.txt", "--samples", CALIBRATED, *ANYTHING]
    int8 = made(out / "w8a8", [*piston, "calibrate", model, "-o", out / "w8a8", "--scheme", "w8a8", *data])
    bundles = []
    for target in arguments.target:
        bundle = out / f"w8a8-{target.replace(':', '-')}"
        sizes = ["--max-batch", BATCH * BEAMS, "--max-length", 2 * max(arguments.source_len, arguments.gen_len)]
        bundles.append(made(bundle, [*piston, "build", int8, "-o", bundle, "--target", target, *sizes]))
    converter = Path(arguments.rivals).absolute().with_name("ct2-transformers-converter")
    rival = out / "ctranslate2-int8"
    made(rival, [converter, "--model", checkpoint, "--output_dir", rival, "--quantization", "int8"])
    return bundles, {"ctranslate2": rival}


def write_sources(arguments: argparse.Namespace) -> None:
    """Sources to measure with as tokens, and others to calibrate with as text; the end token counts."""
    import numpy as np

    arguments.out.mkdir(parents=True, exist_ok=True)
    ids = np.random.default_rng(0).integers(
        FIRST, arguments.vocab - 1, (BATCH + CALIBRATED + CHECKED, arguments.source_len - 1)
    )
    words = [[word(int(number)) for number in row] for row in ids]
    (arguments.out / "sources.json").write_text(json.dumps(words[:BATCH]), encoding="utf-8")
    (arguments.out / "sources.txt").write_text("\n".join(" ".join(row) for row in words[BATCH:]), encoding="utf-8")


def word(number: int) -> str:
    """The text of a token."""
    return f"w{number}"


def write_checkpoint(path: Path, arguments: argparse.Namespace) -> None:
    """A seeded model of Marian's classes, and a tokenizer that has a token for each word."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import MarianConfig, MarianMTModel, PreTrainedTokenizerFast

    torch.manual_seed(0)
    pad = arguments.vocab - 1
    config = MarianConfig(
        vocab_size=arguments.vocab,
        d_model=arguments.width,
        **dict.fromkeys(("encoder_layers", "decoder_layers"), arguments.layers),
        **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 4 * arguments.width),
        **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 8),
        max_position_embeddings=512,
        init_std=arguments.width**-0.5,
        activation_function="swish",
        scale_embedding=True,
        pad_token_id=pad,
        eos_token_id=0,
        bos_token_id=0,
        decoder_start_token_id=pad,
        forced_eos_token_id=None,
    )
    model = MarianMTModel(config)
    last = model.get_decoder().layers[-1]
    with torch.no_grad():  # else an answer repeats one token for ever, and beams never change places
        last.fc2.weight *= 10
        last.final_layer_norm.weight *= 5
    model.save_pretrained(path)
    words = [END, UNKNOWN, *(word(number) for number in range(FIRST, pad)), "<pad>"]
    tokenizer = Tokenizer(models.WordLevel({text: index for index, text in enumerate(words)}, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {END}", pair=f"$A $B {END}", special_tokens=[(END, 0)]
    )
    special = {"pad_token": "<pad>", "eos_token": END, "unk_token": UNKNOWN}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    fast.save_pretrained(path)
    settings = path / "tokenizer_config.json"  # transformers 4 knows this class by this name
    known = json.loads(settings.read_text(encoding="utf-8")) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    settings.write_text(json.dumps(known), encoding="utf-8")


def check_lengths(found: dict[str, Found], gen_len: int) -> None:
    """Every answer must have as many tokens: figures could not be compared otherwise."""
    for name, item in found.items():
        for work, (batch, _) in SETTINGS.items():
            if (lengths := [len(answer) for answer in item.answers[work]]) != [gen_len] * batch:
                sys.exit(f"{name} generated {lengths} tokens ({work}), not {gen_len} for each of {batch} sources.")


def system_lines(found: dict[str, Found], gen_len: int) -> list[str]:
    """A table of tokens a second and peak memory: systems by rows."""
    from piston.core.units import shown

    lines = [f"| | {' | '.join(SETTINGS)} | peak memory | tokens in common |", f"|{'---|' * (len(SETTINGS) + 3)}"]
    first = next(iter(found.values()))
    for name, item in found.items():
        rates = [shown(batch * gen_len / item.median(work), "tokens/s") for work, (batch, _) in SETTINGS.items()]
        lines.append(
            f"| {name} | {' | '.join(rates)} | {shown(item.peak_bytes, 'bytes')} | {in_common(first, item):.1f} |"
        )
    return lines


def in_common(one: Found, other: Found) -> float:
    """How many tokens at the beginning of an answer are the same, on average over the batch's greedy answers.

    A difference in rounding changes a token sooner or later, and all behind it.
    """
    work = f"batch {BATCH}, greedy"
    pairs = list(zip(one.answers[work], other.answers[work], strict=True))
    return sum(sum(accumulate(map(eq, mine, theirs), mul)) for mine, theirs in pairs) / len(pairs)


def read_sources(options: dict[str, Any]) -> list[list[str]]:
    """The sources as words."""
    words: list[list[str]] = json.loads(Path(options["sources"]).read_text(encoding="utf-8"))
    return words


def open_piston(path: Path, options: dict[str, Any]) -> Run:
    """A bundle."""
    from piston.runtime import load
    from piston.runtime.sampling.beam_params import BeamParams

    model, gen_len = load(path, threads=options["threads"]), options["gen_len"]
    texts = [" ".join(words) for words in read_sources(options)]
    sampling = model.sampling(max_tokens=gen_len, min_tokens=gen_len)

    def run(work: str) -> list[list[str]]:
        batch, beams = SETTINGS[work]
        search = None if beams == 1 else BeamParams(num_beams=beams)
        answers = model.generate(texts[:batch], sampling, beams=search)
        return [[word(token) for token in answer.token_ids] for answer in answers]

    return run


def open_ctranslate2(path: Path, options: dict[str, Any]) -> Run:
    """The checkpoint that CTranslate2 has converted."""
    import ctranslate2  # type: ignore[import-not-found]

    threads, gen_len = options["threads"], options["gen_len"]
    translator = ctranslate2.Translator(str(path), device="cpu", intra_threads=threads, inter_threads=1)
    sources = [[*words, END] for words in read_sources(options)]

    def run(work: str) -> list[list[str]]:
        batch, beams = SETTINGS[work]
        lengths = {"min_decoding_length": gen_len, "max_decoding_length": gen_len}
        results = translator.translate_batch(sources[:batch], beam_size=beams, **lengths)
        return [result.hypotheses[0] for result in results]

    return run


OPENERS = {"piston": open_piston, "ctranslate2": open_ctranslate2}

if __name__ == "__main__":
    main()
