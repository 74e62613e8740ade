"""What prompt lookup gains: the same greedy answers with and without it, in turns A B A B, and whether they agree.

Three sets of prompts (speculation_prompts.json next to this file): summarizing and code editing in the model's chat
template, repetition as plain text that repeats itself (a log, records, a song) and is to be continued. A ratio is over
the decode times of a whole set, the median of the rounds, with an interval of 95 % by drawing rounds with replacement.
Each set says whether it reaches the goal. Exit status 1 when any token differs.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from piston.core.statistics import median_estimate
from piston.runtime import Completion, LanguageModel, SamplingParams, load

PROMPTS = Path(__file__).with_name("speculation_prompts.json")
GOAL = 1.7
Row = dict[str, float | int | str | None]
Prompt = str | dict[str, str]  # a question, or {"text": what is to be continued}
Pair = tuple[Completion, Completion]  # an answer without and with prompt lookup


def main() -> int:
    """Measure and print one line for each bundle and set."""
    arguments = parsed()
    sets = json.loads(PROMPTS.read_text(encoding="utf-8"))
    rows = []
    for path in arguments.bundles:
        with load(path, max_batch=1, max_length=1024) as model:
            for name in arguments.task or sets:
                rows.append({"bundle": path.resolve().name, "task": name} | measure(model, sets[name], arguments))
                if not arguments.json:
                    print(described(rows[-1]), flush=True)
    if arguments.json:
        print(json.dumps(rows, indent=1))
    return 0 if all(row["different"] == 0 for row in rows) else 1


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", type=Path, nargs="+", metavar="BUNDLE")
    parser.add_argument("--prompt-lookup", type=int, default=10, metavar="N", help="most guesses at once (default: 10)")
    parser.add_argument("--max-tokens", type=int, default=100, metavar="N", help="of an answer (default: 100)")
    parser.add_argument("--rounds", type=int, default=4, metavar="N", help="that count (default: 4, after one)")
    parser.add_argument("--temperature", type=float, default=0.0, metavar="T", help="above 0: sampled, one seed")
    parser.add_argument("--task", action="append", metavar="SET", help="only this one of the sets (repeatable)")
    parser.add_argument("--json", action="store_true", help="print a list of objects")
    return parser.parse_args()


def measure(model: LanguageModel, prompts: Sequence[Prompt], arguments: argparse.Namespace) -> Row:
    """Every round of one set; the first warms up and counts only for whether the answers agree."""
    options = {"max_tokens": arguments.max_tokens, "temperature": arguments.temperature, "seed": 1}
    plain = SamplingParams.from_mapping(options)
    guessed = SamplingParams.from_mapping(options | {"prompt_lookup_num_tokens": arguments.prompt_lookup})
    rounds: list[list[Pair]] = [
        [(answer(model, prompt, plain), answer(model, prompt, guessed)) for prompt in prompts]
        for _ in range(1 + arguments.rounds)
    ]
    ratio = median_estimate([ratio_of(pairs) for pairs in rounds[1:]], np.random.default_rng(0))
    drafts = [second.drafts for _, second in rounds[-1] if second.drafts is not None]
    return {
        "prompts": len(prompts),
        "tokens": sum(first.timings.num_tokens for first, _ in rounds[-1]),
        "different": sum(first.token_ids != second.token_ids for pairs in rounds for first, second in pairs),
        "plain_tokens_per_s": statistics.median(speed(pairs, 0) for pairs in rounds[1:]),
        "guessed_tokens_per_s": statistics.median(speed(pairs, 1) for pairs in rounds[1:]),
        "ratio": ratio.value,
        "low": ratio.low,
        "high": ratio.high,
        "drafted": sum(one.num_drafted for one in drafts),
        "accepted": sum(one.num_accepted for one in drafts),
        "problem": next((one.problem for one in drafts if one.problem), ""),
    }


def answer(model: LanguageModel, prompt: Prompt, sampling: SamplingParams) -> Completion:
    """One answer: through the chat template, or the continuation of a text."""
    if isinstance(prompt, str):
        completion = model.chat([{"role": "user", "content": prompt}], sampling)
    else:
        completion = model.generate(prompt["text"], sampling)
    assert isinstance(completion, Completion)
    return completion


def decoding(completion: Completion) -> float:
    """Seconds after the first token."""
    return completion.timings.total - completion.timings.time_to_first_token


def ratio_of(pairs: Sequence[Pair]) -> float:
    """How many times faster the guesses made one round of a set."""
    return sum(decoding(first) for first, _ in pairs) / sum(decoding(second) for _, second in pairs)


def speed(pairs: Sequence[Pair], which: int) -> float:
    """Tokens a second after each first one, over a whole round."""
    answers = [pair[which] for pair in pairs]
    return sum(item.timings.num_tokens - 1 for item in answers) / sum(decoding(item) for item in answers)


def described(row: Row) -> str:
    """The result as one line of text."""
    low, high = row["low"], row["high"]
    interval = f" [{low:.2f}, {high:.2f}]" if low is not None else ""
    assert isinstance(row["ratio"], float)
    goal = f"goal {GOAL}x {'met' if row['ratio'] >= GOAL else 'MISSED'}"
    same = "same tokens" if row["different"] == 0 else f"{row['different']} ANSWERS DIFFER"
    return (
        f"{row['bundle']:14} {row['task']:13} {row['ratio']:.2f}x{interval}, {goal}, {same}; "
        f"{row['plain_tokens_per_s']:.0f} -> {row['guessed_tokens_per_s']:.0f} tokens/s, {row['tokens']} tokens, "
        f"{row['accepted']} of {row['drafted']} guesses right  {row['problem']}"
    )


if __name__ == "__main__":
    sys.exit(main())
