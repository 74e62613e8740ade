"""Prefill and decode speed of several bundles, one interleaved run A B C A B C; ratios are to the first."""

import argparse
import json
import statistics
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from piston.runtime import LanguageModel, SamplingParams, load


def main() -> None:
    """Measure, print a table, and optionally JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundles", type=Path, nargs="+")
    parser.add_argument("--prompt-len", type=int, default=512)
    parser.add_argument("--gen-len", type=int, default=64)
    parser.add_argument("--past", type=int, default=64, help="tokens of context before those that are timed")
    parser.add_argument("--batch", type=int, default=1, help="rows decoded together; decode counts all their tokens")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0, help="default: one for each physical core")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with ExitStack() as stack:
        sizes = {"max_batch": arguments.batch, "threads": arguments.threads}
        models = {path.name: stack.enter_context(load(path, **sizes)) for path in arguments.bundles}
        rounds = [
            {name: measure(model, arguments) for name, model in models.items()} for _ in range(arguments.rounds + 1)
        ]
    rows = {name: summary(name, next(iter(models)), rounds[1:]) for name in models}  # the first round warms up
    if arguments.json:
        print(json.dumps({"prompt_len": arguments.prompt_len, "gen_len": arguments.gen_len, "bundles": rows}, indent=1))
        return
    print(f"prompt {arguments.prompt_len}, {arguments.gen_len} tokens, {arguments.rounds} interleaved rounds, tokens/s")
    for name, row in rows.items():
        cells = (f"{phase} {value:8.1f} ({ratio:.2f}x)" for phase, (value, ratio) in row.items())
        print(f"{name:16} {'   '.join(cells)}")


def measure(model: LanguageModel, arguments: argparse.Namespace) -> dict[str, float]:
    """Prefill of a random prompt, then decode after a past: a short one by default, so that attention weighs little."""
    rng = np.random.default_rng(0)
    longest = max(arguments.prompt_len, arguments.past)
    long = rng.integers(100, model.engine.vocab_size, longest).tolist()
    prefill = model.generate(long[: arguments.prompt_len], SamplingParams(max_tokens=1)).timings
    rows = [long[: arguments.past]] * arguments.batch
    decode = model.generate(rows, SamplingParams(max_tokens=arguments.gen_len, ignore_eos=True))[
        -1
    ].timings  # begins last
    return {
        "prefill": arguments.prompt_len / prefill.time_to_first_token,
        "decode": arguments.batch * decode.tokens_per_second,
    }


def summary(name: str, base: str, rounds: list[dict[str, dict[str, float]]]) -> dict[str, tuple[float, float]]:
    """Median speed, and median over rounds of the ratio to the first bundle."""
    return {
        phase: (
            statistics.median(entry[name][phase] for entry in rounds),
            statistics.median(entry[name][phase] / entry[base][phase] for entry in rounds),
        )
        for phase in ("prefill", "decode")
    }


if __name__ == "__main__":
    main()
