"""The `piston` command whose engines are scripted: `python scripted_piston.py REPLY SECONDS_PER_TOKEN VERB ...`."""

import sys
import time

from toy_model import VOCAB_SIZE, replying

from piston.cli.main import main
from piston.runtime.backends.ort_cpu import OrtEngine
from piston.runtime.backends.scripted import ScriptedEngine


def script_engines(script, patch=setattr):
    """Let `load` open scripted engines, whatever the bundle holds."""

    def opened(path, spec, *, num_slots, capacity, options):
        return ScriptedEngine(script, vocab_size=VOCAB_SIZE, num_slots=num_slots, capacity=capacity)

    patch(OrtEngine, "open", opened)


if __name__ == "__main__":
    reply = replying(sys.argv[1])

    def slow(history):
        time.sleep(float(sys.argv[2]))
        return reply(history)

    script_engines(slow)
    sys.exit(main(sys.argv[3:]))
