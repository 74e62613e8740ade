"""Bundles on a GPU against transformers in float16 there: first token and decode, one interleaved run A B C A B C.

transformers runs as it comes (kernels launched one by one, scaled_dot_product_attention, a cache that grows) and at its
best (a static cache, decode steps through torch.compile in the mode that captures CUDA graphs). All sides get the same
prompts and decode the same number of tokens greedily, all rows together; a side's figure is the median over the rounds,
a ratio the median of the rounds' ratios. What the sides say is compared too: how many of the first tokens agree.
"""

import argparse
import json
import os
import statistics
import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from piston.runtime import LanguageModel, SamplingParams, load

Prompts = list[list[int]]
Side = Callable[[Prompts, int], list[list[int]]]  # prompts and how many tokens -> those tokens


def main() -> None:
    """Measure and print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", type=Path, nargs="+")
    parser.add_argument("--checkpoint", type=Path, required=True, help="the GGUF file the bundles were made from")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--prompt-len", type=int, default=512)
    parser.add_argument("--gen-len", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cuda", help="of transformers; cpu only shows that this script works")
    parser.add_argument("--no-compile", action="store_true", help="without torch.compile, which takes a minute")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    arguments = parser.parse_args()
    os.environ.setdefault("TQDM_DISABLE", "1")
    warnings.simplefilter("ignore")
    with ExitStack() as stack:
        sides: dict[str, Side] = {}
        for bundle in arguments.bundles:
            model = stack.enter_context(load(bundle, max_batch=arguments.batch))
            sides[f"piston {bundle.name}"] = piston_side(model)
            print(f"{bundle.name}: {type(model.engine).__name__}, {describe(model.engine)}", flush=True)
        sides |= transformers_sides(arguments)
        vocab = model.engine.vocab_size
        prompts = np.random.default_rng(0).integers(100, vocab, (arguments.batch, arguments.prompt_len)).tolist()
        report(measure(sides, prompts, arguments), arguments)


def describe(engine: Any) -> str:
    """Whether steps are captured; engines on the CPU have nothing to capture."""
    problem = getattr(engine, "capture_problem", "no device")
    return "steps captured" if problem is None else f"steps not captured: {problem}"


def piston_side(model: LanguageModel) -> Side:
    """Generate through the runtime's public interface."""

    def run(prompts: Prompts, count: int) -> list[list[int]]:
        found = model.generate(prompts, SamplingParams(max_tokens=count, ignore_eos=True))
        return [list(item.token_ids) for item in found]

    return run


def transformers_sides(arguments: argparse.Namespace) -> dict[str, Side]:
    """Both ways of running it, without its generate(), which would only add to them."""
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig, StaticCache

    gguf, config = arguments.checkpoint, GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float16, quantization_config=config
    )
    model = model.to(arguments.device).eval()

    def chosen(output: Any) -> Any:
        return output.logits[:, -1:].argmax(-1)

    def plain(prompts: Prompts, count: int) -> list[list[int]]:
        with torch.inference_mode():
            output = model(torch.tensor(prompts, device=arguments.device), use_cache=True, logits_to_keep=1)
            said = [chosen(output)]
            for _ in range(count - 1):
                output = model(said[-1], past_key_values=output.past_key_values, use_cache=True)
                said.append(chosen(output))
            return torch.cat(said, 1).tolist()

    positions = arguments.prompt_len + arguments.gen_len
    cache = StaticCache(config=model.config, max_cache_len=positions)

    def one(token: Any, position: Any, cache: Any) -> Any:
        output = model(token, position_ids=position[None], cache_position=position, past_key_values=cache)
        return chosen(output).clone()  # the graph's memory is written again by its next launch

    step = torch.compile(one, mode="reduce-overhead", fullgraph=True)

    def compiled(prompts: Prompts, count: int) -> list[list[int]]:
        with torch.inference_mode():
            cache.reset()
            ids = torch.tensor(prompts, device=arguments.device)
            place = torch.arange(ids.shape[1], device=arguments.device)
            said = [chosen(model(ids, cache_position=place, past_key_values=cache, logits_to_keep=1))]
            place = place[-1:].clone()
            for _ in range(count - 1):
                place += 1
                said.append(step(said[-1], place, cache).clone())
            return torch.cat(said, 1).tolist()

    return {"transformers": plain} | ({} if arguments.no_compile else {"transformers compiled": compiled})


def measure(sides: dict[str, Side], prompts: Prompts, arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds to the first token and tokens/s after it, for each side in each round."""
    said = {name: side(prompts, arguments.gen_len) for name, side in sides.items()}  # warms up, too
    rounds: list[dict[str, tuple[float, float]]] = []
    for _ in range(arguments.rounds):
        rounds.append({})
        for name, side in sides.items():
            first, whole = timed(side, prompts, 1), timed(side, prompts, arguments.gen_len)
            rounds[-1][name] = first, (arguments.gen_len - 1) * len(prompts) / (whole - first)
    return {"rounds": rounds, "said": said}


def timed(side: Side, prompts: Prompts, count: int) -> float:
    """Seconds; tokens come to the host on every side, so that the device has ended."""
    start = time.perf_counter()
    side(prompts, count)
    return time.perf_counter() - start


def report(found: dict[str, Any], arguments: argparse.Namespace) -> None:
    """Medians, ratios against transformers as it comes, and on how many first tokens the sides agree."""
    rounds, said = found["rounds"], found["said"]
    sizes = {name: getattr(arguments, name) for name in ("batch", "prompt_len", "gen_len", "rounds")}
    print(", ".join(f"{name} {size}" for name, size in sizes.items()))
    print(f"{'':32}first token     x   tokens/s     x   tokens as transformers")
    rows = []
    for name in rounds[0]:
        first, rate = (statistics.median(entry[name][part] for entry in rounds) for part in (0, 1))
        sooner = statistics.median(entry["transformers"][0] / entry[name][0] for entry in rounds)
        faster = statistics.median(entry[name][1] / entry["transformers"][1] for entry in rounds)
        same = statistics.mean(agreed(mine, its) for mine, its in zip(said[name], said["transformers"], strict=True))
        rows.append({"side": name, "first_ms": first * 1e3, "tokens_per_second": rate, "agreed": same})
        rows[-1] |= {"first_ratio": sooner, "decode_ratio": faster}
        print(f"{name:32}{first * 1e3:8.2f} ms {sooner:5.2f} {rate:10.1f} {faster:5.2f}   {same:.1f}", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(sizes | {"rows": rows}, indent=1))


def agreed(one: list[int], other: list[int]) -> int:
    """How many tokens are the same before the first that is not."""
    return next((index for index, pair in enumerate(zip(one, other, strict=True)) if pair[0] != pair[1]), len(one))


if __name__ == "__main__":
    main()
