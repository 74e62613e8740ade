"""Memory of a process that loads a bundle and uses it to the full, compared with the prediction of `piston plan`.

Of a language model: what is resident when its cache is filled. Of an encoder: the peak of a process that reads one
whole batch. Of an encoder-decoder, speech included: the peak of one that encodes a whole source and fills its caches.

One new process for each batch x length. Exit status 1 when a prediction is off by more than the stated tolerance.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from piston.cli.plan_memory import TOLERANCE, planned
from piston.runtime import Manifest

CHILD = """
import sys

import numpy as np
from piston.runtime import SamplingParams, load


class Enough(Exception):
    pass


def hear(model):
    '''Encode a window of noise and decode a few tokens.'''
    steps = iter(range(64))  # blocks of audio, then the encoder, then tokens

    def on_step():
        if next(steps, None) is None:
            raise Enough

    rate = model.features.rate
    noise = np.random.default_rng(0).standard_normal(30 * rate).astype(np.float32) / 10
    try:
        model.transcribe((noise, rate), temperatures=(0.0,), no_speech_threshold=None, on_step=on_step)
    except Enough:
        pass


batch, length = map(int, sys.argv[2:4])
with load(sys.argv[1], target=sys.argv[4], max_batch=batch, max_length=length) as model:
    shown = "VmHWM:"
    if hasattr(model, "transcribe"):
        hear(model)
    elif hasattr(model, "translate"):
        text = " ".join(["one two three"] * length)
        model.generate([f"{row} {text}" for row in range(batch)], model.sampling(max_tokens=4), truncate=True)
    elif hasattr(model, "engine"):
        shown = "VmRSS:"
    else:
        list(model.outputs([[1 + place % 1000 for place in range(length)]] * batch))
    if hasattr(model, "engine"):
        cache = model.engine.cache
        for array in [*cache.arrays, *(cache.cross.arrays if cache.cross is not None else [])]:
            array.fill(0)  # the operating system gives pages when they are written
    if shown == "VmRSS:":
        prompts = [[5 + row, *range(100, 300)] for row in range(batch)]
        model.generate(prompts, SamplingParams(max_tokens=4, ignore_eos=True))
    text = open("/proc/self/status").read()
print(int(text.split(shown)[1].split()[0]) * 1024)
"""


def main() -> int:
    """Measure and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundles", type=Path, nargs="+")
    parser.add_argument("--sizes", default="1x512,1x4096,8x1024,8x4096", help="batch x length, comma-separated")
    parser.add_argument("--target", default="ort-cpu", choices=("ort-cpu", "ort-cpu:avx512"))
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows = []
    for path in arguments.bundles:
        plan = planned(path, Manifest.read(path), arguments.target)
        for size in arguments.sizes.split(","):
            batch, length = (int(number) for number in size.split("x"))
            command = [sys.executable, "-c", CHILD, str(path), str(batch), str(length), arguments.target]
            measured = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            predicted = plan.at(batch, length).total
            rows.append({"bundle": path.name, "size": size, "predicted": predicted, "measured": measured})
            if not arguments.json:
                print(
                    f"{path.name:14} {size:8} predicted {predicted / 1e6:7,.0f} MB   measured {measured / 1e6:7,.0f} MB"
                    f"   {predicted / measured - 1:+.1%}",
                    flush=True,
                )
    if arguments.json:
        print(json.dumps(rows, indent=1))
    return int(any(abs(row["predicted"] / row["measured"] - 1) > TOLERANCE for row in rows))


if __name__ == "__main__":
    sys.exit(main())
