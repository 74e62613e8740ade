"""What prompt lookup gains: the same greedy answers with and without it, interleaved A B A B, and whether they agree.

Prompts are those of speculation_prompts.json beside this file, in the model's chat template. Exit status 1 when any
token differs.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path

from piston.runtime import Completion, LanguageModel, Sampling, load

PROMPTS = Path(__file__).with_name("speculation_prompts.json")


def main() -> int:
    """Measure and print one line for each bundle and task."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundles", type=Path, nargs="+")
    parser.add_argument("--prompt-lookup", type=int, default=10, metavar="N")
    parser.add_argument("--max-tokens", type=int, default=160)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--task", action="append", help="only this one of the tasks (repeatable)")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    tasks = json.loads(PROMPTS.read_text(encoding="utf-8"))
    rows = []
    for path in arguments.bundles:
        with load(path, max_batch=1, max_length=1024) as model:
            for task in arguments.task or tasks:
                rows.append({"bundle": path.name, "task": task} | measure(model, tasks[task], arguments))
                if not arguments.json:
                    print(described(rows[-1]), flush=True)
    if arguments.json:
        print(json.dumps(rows, indent=1))
    return 0 if all(row["different"] == 0 for row in rows) else 1


def measure(model: LanguageModel, prompts: list[str], arguments: argparse.Namespace) -> dict[str, float | int | str]:
    """Median over rounds of the ratio of decode times, all prompts of a task together."""
    options = {"max_tokens": arguments.max_tokens, "temperature": arguments.temperature, "seed": 1}
    plain = Sampling.from_mapping(options)
    guessed = Sampling.from_mapping(options | {"prompt_lookup_num_tokens": arguments.prompt_lookup})
    answers = [[(answer(model, prompt, plain), answer(model, prompt, guessed)) for prompt in prompts]]  # warms up
    answers += [
        [(answer(model, prompt, plain), answer(model, prompt, guessed)) for prompt in prompts]
        for _ in range(arguments.rounds)
    ]
    ratios = [sum(decoding(a) for a, _ in one) / sum(decoding(b) for _, b in one) for one in answers[1:]]
    pairs = answers[-1]
    drafts = [second.drafts for _, second in pairs if second.drafts is not None]
    return {
        "tokens": sum(first.timings.num_tokens for first, _ in pairs),
        "different": sum(first.token_ids != second.token_ids for one in answers for first, second in one),
        "plain_tokens_per_s": statistics.median(first.timings.tokens_per_second for first, _ in pairs),
        "ratio": statistics.median(ratios),
        "lowest": min(ratios),
        "highest": max(ratios),
        "drafted": sum(one.num_drafted for one in drafts),
        "accepted": sum(one.num_accepted for one in drafts),
        "problem": next((one.problem for one in drafts if one.problem), ""),
    }


def answer(model: LanguageModel, prompt: str, sampling: Sampling) -> Completion:
    """One answer through the chat template."""
    completion = model.chat([{"role": "user", "content": prompt}], sampling)
    assert isinstance(completion, Completion)
    return completion


def decoding(completion: Completion) -> float:
    """Seconds after the first token."""
    return completion.timings.total - completion.timings.time_to_first_token


def described(row: dict[str, float | int | str]) -> str:
    """One line for people."""
    return (
        f"{row['bundle']:14} {row['task']:13} {row['ratio']:.2f}x ({row['lowest']:.2f}-{row['highest']:.2f})  "
        f"plain {row['plain_tokens_per_s']:.0f} tokens/s, {row['tokens']} tokens, "
        f"{row['accepted']} of {row['drafted']} guesses right, {row['different']} answers differ  {row['problem']}"
    )


if __name__ == "__main__":
    sys.exit(main())
