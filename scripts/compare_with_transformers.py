"""Decode and prefill speed of a bundle against transformers eager on the same weights, one interleaved run A B A B.

Both sides get the same prompt and decode the same number of tokens greedily; a side's figure is the median over the
rounds, the ratio the median of the rounds' ratios, so that a machine that drifts drifts for both.
"""

import argparse
import json
import os
import platform
import statistics
import time
import warnings
from pathlib import Path

import numpy as np

from piston.runtime import LanguageModel, SamplingParams, load


def main() -> None:
    """Measure, print a table, and optionally JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("checkpoint", type=Path, help="the GGUF file the bundle was made from")
    parser.add_argument("--prompt-len", type=int, default=128)
    parser.add_argument("--gen-len", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    os.environ.setdefault("TQDM_DISABLE", "1")
    warnings.simplefilter("ignore")
    torch_side = TransformersSide(arguments.checkpoint)
    with load(arguments.bundle, max_batch=1) as model:
        prompt = np.random.default_rng(0).integers(100, model.engine.vocab_size, arguments.prompt_len).tolist()
        sides = {"piston": lambda: run_piston(model, prompt, arguments.gen_len)}
        sides["transformers"] = lambda: torch_side.run(prompt, arguments.gen_len)
        for run in sides.values():
            run()  # warm up
        rounds = [{name: run() for name, run in sides.items()} for _ in range(arguments.rounds)]
    report(rounds, arguments)


def run_piston(model: LanguageModel, prompt: list[int], gen_len: int) -> dict[str, float]:
    """One generation; tokens/s of prefill and of decode."""
    completion = model.generate(prompt, SamplingParams(max_tokens=gen_len, ignore_eos=True))
    timings = completion.timings
    return {"prefill": len(prompt) / timings.time_to_first_token, "decode": timings.tokens_per_second}


class TransformersSide:
    """The checkpoint the demo bundle was made from, in float32 with eager attention and transformers' own cache."""

    def __init__(self, checkpoint: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        self.torch = torch
        self.model = AutoModelForCausalLM.from_pretrained(
            checkpoint.parent, gguf_file=checkpoint.name, dtype=torch.float32, attn_implementation="eager"
        ).eval()

    def run(self, prompt: list[int], gen_len: int) -> dict[str, float]:
        """One generation, token by token without transformers' generate(), which would only add to it."""
        torch = self.torch
        with torch.inference_mode():
            start = time.perf_counter()
            output = self.model(torch.tensor([prompt]), use_cache=True, logits_to_keep=1)
            token = output.logits[0, -1].argmax()
            first = time.perf_counter()
            for _ in range(gen_len - 1):
                output = self.model(token.reshape(1, 1), past_key_values=output.past_key_values, use_cache=True)
                token = output.logits[0, -1].argmax()
            end = time.perf_counter()
        return {"prefill": len(prompt) / (first - start), "decode": (gen_len - 1) / (end - first)}


def report(rounds: list[dict[str, dict[str, float]]], arguments: argparse.Namespace) -> None:
    """Medians, and ratios within each round."""
    result = {"prompt_len": arguments.prompt_len, "gen_len": arguments.gen_len, "cpu": platform.processor()}
    for phase in ("prefill", "decode"):
        values = {side: statistics.median(entry[side][phase] for entry in rounds) for side in rounds[0]}
        ratios = [entry["piston"][phase] / entry["transformers"][phase] for entry in rounds]
        result[phase] = values | {"ratio": statistics.median(ratios), "ratios": sorted(ratios)}
    if arguments.json:
        print(json.dumps(result, indent=1))
        return
    print(f"prompt {arguments.prompt_len}, {arguments.gen_len} tokens, {len(rounds)} interleaved rounds, tokens/s")
    for phase in ("prefill", "decode"):
        row = result[phase]
        spread = f"{row['ratios'][0]:.2f}-{row['ratios'][-1]:.2f}"
        print(
            f"{phase:8} piston {row['piston']:7.1f}   transformers {row['transformers']:7.1f}   "
            f"ratio {row['ratio']:.2f} ({spread})"
        )


if __name__ == "__main__":
    main()
