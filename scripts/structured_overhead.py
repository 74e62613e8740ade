"""What structured output costs at batch 1: the same bundle with and without a JSON schema, in turns.

    python scripts/structured_overhead.py BUNDLE [--target T] [--threads N] [--rounds N]

Prints microseconds of sampling a token, with and without the grammar, and the difference as a share of a decode step;
then tokens/s with and without verifying forced tokens as drafts. Medians over the rounds. Beside other work on the
machine the figures mean little.
"""

import argparse
import statistics
import time
from functools import partial

import piston.runtime
from piston.runtime.generate.generation import prepare, run
from piston.runtime.generate.speculation import Verification
from piston.runtime.model import LanguageModel
from piston.runtime.sampling.params import SamplingParams
from piston.serving.structured import Grammars, json_grammar

FREE = {"type": "object", "properties": {"text": {"type": "string", "minLength": 2000}}, "required": ["text"]}
NAMES = ("customer_name", "delivery_address", "number_of_items", "is_available", "comment")
FORCED = {
    "type": "object",
    "properties": {name: {"type": "string", "maxLength": 12} for name in NAMES},
    "required": list(NAMES),
    "additionalProperties": False,
}
PROMPT = "Write the record of an order as JSON.\n"
NUM_TOKENS = 96


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("bundle")
    parser.add_argument("--target")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with piston.runtime.load(
        arguments.bundle, target=arguments.target, max_batch=1, threads=arguments.threads
    ) as model:
        grammars = Grammars(model)
        free, forced = (grammars.compile(json_grammar(schema, "schema")) for schema in (FREE, FORCED))
        kinds = {"plain": None, "grammar": free, "forced, one by one": forced, "forced, as drafts": forced}
        found: dict[str, list[tuple[float, float, float]]] = {kind: [] for kind in kinds}
        for _ in range(arguments.rounds + 1):
            for kind, grammar in kinds.items():
                limit = model.verification.limit if kind.endswith("drafts") else 0
                found[kind].append(measured(model, grammar, model.verification if limit else Verification(0)))
        medians = {
            kind: [statistics.median(column) for column in zip(*rows[1:], strict=True)] for kind, rows in found.items()
        }
        for kind, (sampling, step, speed) in medians.items():
            print(f"{kind:20} {sampling:8.0f} us of sampling a token, step {step:8.0f} us, {speed:7.1f} tokens/s")
        extra = medians["grammar"][0] - medians["plain"][0]
        print(
            f"grammar: {extra:.0f} us a token, {extra / medians['plain'][1]:.2%} of a decode step (goal: at most 2 %)"
        )
        if not model.verification.limit:
            print(f"{model.target} rounds a token among others differently: forced tokens are not drafted.")


def measured(model: LanguageModel, grammar: object, verification: Verification) -> tuple[float, float, float]:
    """Microseconds of sampling and of a whole step, a token; tokens/s."""
    sampling = SamplingParams(max_tokens=NUM_TOKENS, ignore_eos=grammar is None)
    constrain = None if grammar is None else partial(grammar.begin)  # type: ignore[attr-defined]
    ends = model.manifest.tokenizer.eos_token_ids
    (row,) = prepare([model.encode(PROMPT)], sampling, model.tokenizer, ends, verification, constrain)
    began = time.perf_counter()
    for _ in run(model.engine, [row]):
        pass
    num_tokens = len(row.request.output_ids)
    seconds = time.perf_counter() - began - row.request.times.prefill
    return 1e6 * row.request.times.sampling / num_tokens, 1e6 * seconds / num_tokens, num_tokens / seconds


if __name__ == "__main__":
    main()
