"""Damage toy checkpoints at random and export each: it must answer as transformers does, or be refused in one line.

    python scripts/fuzz_checkpoints.py --count 1000 --seed 0 --log fuzz.jsonl

Case N of a seed and of the same --toys is always the same; `--only N` runs it alone and prints all it said. A run
whose log is there goes on after the cases in it. A case fails where `piston export` ends in a traceback, in several
lines, in silence, beyond its time or memory, or where what it wrote answers otherwise. The right answer to a GGUF file
is what numpy computes from its keys and tensors, since transformers passes over some of them.
"""

import argparse
import collections
import contextlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests/support"))

ENVIRONMENT = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
# Of each toy the keys that are damaged most often, see mutations.KEYS.
KINDS = {
    **dict.fromkeys(("llama", "qwen2", "gemma2", "gpt2", "gguf"), "decoder"),
    **dict.fromkeys(("labels", "tags", "sentences"), "encoder"),
    **dict.fromkeys(("t5", "bart", "translations", "speech"), "seq2seq"),
}
TOYS = tuple(KINDS)
TEXTS = ("the quick brown fox", "Grüße 你好", "a<|end|> b  c")
NEW_TOKENS, LOGITS = 8, 1e-3  # tokens asked of transformers, and how far logits may be from numpy's
ENDS = ("eos", "eot", "eom")
MEMORY, CPU_SECONDS, SECONDS = 4 << 30, 60, 900  # what a case may take beyond what is loaded already


def main() -> int:
    """Run the cases; 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, metavar="N", help="run case N alone")
    parser.add_argument("--toys", nargs="+", choices=TOYS, default=TOYS)
    parser.add_argument("--log", type=Path, metavar="FILE", help="add every case's outcome as a line of JSON")
    arguments = parser.parse_args()
    os.environ |= ENVIRONMENT  # before numpy and torch are imported
    outcomes = _logged(arguments.log)
    with tempfile.TemporaryDirectory() as scratch:
        toys = {name: Path(scratch) / "toys" / name for name in arguments.toys}
        _prepare(toys)
        for number in range(arguments.count) if arguments.only is None else (arguments.only,):
            if number in outcomes and arguments.only is None:
                continue
            outcome = outcomes[number] = _case(number, arguments.seed, toys, Path(scratch))
            if outcome["failed"] or arguments.only is not None:
                print(json.dumps(outcome, ensure_ascii=False, indent=1), flush=True)
            if arguments.log is not None:
                with arguments.log.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(outcome, ensure_ascii=False) + "\n")
    kinds = collections.Counter(outcome["outcome"] for outcome in outcomes.values())
    print(f"{len(outcomes)} cases of seed {arguments.seed}: " + ", ".join(f"{n} {kind}" for kind, n in kinds.items()))
    return int(any(outcome["failed"] for outcome in outcomes.values()))


def _logged(log: Path | None) -> dict[int, dict]:
    if log is None or not log.exists():
        return {}
    cases = map(json.loads, log.read_text(encoding="utf-8").splitlines())
    return {case["case"]: case for case in cases}


def _prepare(toys: dict[str, Path]) -> None:
    """Write the toys, export and compare each here once: the cases' processes then begin with all that this loads."""
    import torch
    from zoo import share_tables_of_torch

    from piston.cli.main import main as piston

    torch.set_num_threads(1)
    share_tables_of_torch()
    for name, directory in toys.items():
        _write_toy(name, directory)
        with tempfile.TemporaryDirectory() as scratch:
            given, out = _given(directory), Path(scratch) / "out"
            assert piston(["export", str(given), "-o", str(out), "--quiet"]) == 0
            assert _compare(given, out, "", []) == 0, name


def _given(directory: Path) -> Path:
    return next(directory.glob("*.gguf"), directory)


class Ended:
    """How a forked process ended, and what it wrote."""

    def __init__(self, status: int, seconds: float, said: str) -> None:
        self.status, self.seconds, self.said = status, seconds, said


def _apart(work: Callable[[], int | None], log: Path) -> Ended:
    """Run `work` in a fork with limits; its result is the exit status, 99 a traceback, negative a signal."""
    began, child = time.monotonic(), os.fork()
    if child == 0:
        status = 99
        try:
            with log.open("wb") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            resource.setrlimit(resource.RLIMIT_DATA, (_data_bytes() + MEMORY, resource.RLIM_INFINITY))
            resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 5))
            status = work() or 0
        except BaseException:  # noqa: BLE001 - a traceback is what is looked for
            traceback.print_exc()
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(status)
    while time.monotonic() - began < SECONDS:
        found, code = os.waitpid(child, os.WNOHANG)
        if found:
            said = log.read_text(encoding="utf-8", errors="replace")
            return Ended(os.waitstatus_to_exitcode(code), time.monotonic() - began, said)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return Ended(-signal.SIGXCPU, SECONDS, log.read_text(encoding="utf-8", errors="replace"))


def _data_bytes() -> int:
    fields = Path("/proc/self/status").read_text(encoding="utf-8").split("\n")
    return int(next(line.split()[1] for line in fields if line.startswith("VmData"))) << 10


def _case(number: int, seed: int, toys: dict[str, Path], scratch: Path) -> dict:
    from mutations import mutate

    from piston.cli.main import main as piston

    rng = random.Random(f"{seed}/{number}")  # noqa: S311 - not a secret
    toy = list(toys)[number % len(toys)]
    source, out = scratch / "checkpoint", scratch / "out"
    shutil.rmtree(source, ignore_errors=True)
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(toys[toy], source)
    done = mutate(source, rng, KINDS[toy])
    given = _given(source)
    ended = _apart(lambda: piston(["export", str(given), "-o", str(out)]), scratch / "log")
    kind = _judged(ended, out)
    said = ended.said[-3000:]
    if kind == "exported":
        compared = _apart(lambda: _compare(given, out, ended.said, done), scratch / "log")
        kind = {0: "equal", 3: "told", 4: "transformers fails"}.get(compared.status, "DIFFERENT")
        said += compared.said[-3000:]
    return {
        "case": number,
        "toy": toy,
        "done": done,
        "outcome": kind,
        "failed": kind.isupper(),
        "seconds": round(ended.seconds, 1),
        "said": said,
    }


def _judged(ended: Ended, out: Path) -> str:
    errors = [line for line in ended.said.splitlines() if line.startswith("error:")]
    if ended.status == -signal.SIGXCPU:
        return "HANG"
    if ended.status < 0:
        return "CRASH"
    if "Traceback" in ended.said or ended.status not in {0, 1, 2}:
        return "TRACEBACK"
    if ended.status == 0:
        return "exported" if (out / "manifest.json").is_file() else "NOTHING WRITTEN"
    if len(errors) != 1:
        return "NO CLEAR LINE"
    if any(word in errors[0].lower() for word in ("allocat", "out of memory", "memoryerror")):
        return "MEMORY"
    if out.exists():
        return "LEFT OUTPUT"
    return "refused"


def _write_toy(name: str, directory: Path) -> None:
    import fuzz_kinds
    from checkpoints import write_checkpoint
    from gguf_files import write_gguf

    if KINDS[name] != "decoder":
        fuzz_kinds.write(name, directory)
    elif name == "gguf":
        directory.mkdir(parents=True)
        write_gguf(directory / "toy.gguf", num_hidden_layers=1)
    else:
        write_checkpoint(directory, name, **({"num_hidden_layers": 1} if name != "gemma2" else {}))


def _compare(given: Path, out: Path, said: str, done: list[str]) -> int:
    """0: same tokens for the same texts; 3: they may differ, as the export said; 4: transformers answers nothing.

    `done` is the damage, which what is said must name.
    """
    import fuzz_kinds

    from piston.core.bundle.manifest import Manifest
    from piston.runtime.backends.ort_cpu import OrtEngine
    from piston.runtime.backends.session import OrtOptions

    manifest = Manifest.read(out)
    manifest.verify(out)
    if manifest.task != "text-generation":
        return fuzz_kinds.compare(given, out, manifest, said, done)
    with contextlib.ExitStack() as stack:
        engine = None
        if manifest.model.dtype == "float32":  # the only type that ONNX Runtime computes on a CPU
            engine = OrtEngine.open(out / "model.onnx", manifest.cache, num_slots=1, capacity=64, options=OrtOptions())
            stack.enter_context(contextlib.closing(engine))
        if given.is_file():
            return _compare_with_numpy(given, manifest, engine)
        return _compare_with_transformers(given, out, manifest, engine, said)


def _compare_with_numpy(given: Path, manifest: Any, engine: Any) -> int:
    import gguf
    import numpy as np
    from gguf_files import llama_logits

    ids = [5, 9, 200, 17, 33, 80, 41, 6][: manifest.model.max_positions]
    actual = [engine.prefill(slot := engine.cache.admit(), ids[:1])[0].copy()]
    actual += [engine.step({slot: token})[slot].copy() for token in ids[1:]]
    difference = np.abs(np.array(actual) - llama_logits(given, ids)).max()
    assert difference < LOGITS, difference
    fields = gguf.GGUFReader(given).fields
    ends = {fields[key].contents() for name in ENDS if (key := f"tokenizer.ggml.{name}_token_id") in fields}
    assert set(manifest.tokenizer.eos_token_ids) == ends, (manifest.tokenizer.eos_token_ids, ends)
    return 0


def _compare_with_transformers(given: Path, out: Path, manifest: Any, engine: Any, said: str) -> int:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from piston.core.errors import MisuseError
    from piston.runtime.model import LanguageModel
    from piston.runtime.sampling.params import SamplingParams
    from piston.runtime.text.tokenizer import Tokenizer

    spec = manifest.tokenizer
    ours = Tokenizer.open(out / "tokenizer.json", bos_token_id=spec.bos_token_id, eos_token_ids=spec.eos_token_ids)
    theirs = AutoTokenizer.from_pretrained(given)
    for text in TEXTS:
        assert ours.encode(text) == list(theirs(text)["input_ids"]), text
    if engine is None:
        return 3  # the export proved the graph before rounding it
    model = LanguageModel(manifest, engine, ours)
    reference = AutoModelForCausalLM.from_pretrained(given, dtype=torch.float32, attn_implementation="eager")
    new = min(NEW_TOKENS, manifest.model.max_positions - 3)
    if new < 1:
        return 0
    try:
        options = model.default_sampling.to_json() | {"temperature": 0.0, "max_tokens": new}
        options["min_tokens"] = min(options["min_tokens"], new)
        sampling = SamplingParams.from_json(options)
    except MisuseError:
        if "cannot apply" in said:
            return 3
        raise
    for prompt in ([5, 6, 7], [40], [60, 61]):
        prompt = [token % manifest.model.vocab_size for token in prompt]  # noqa: PLW2901
        answer = [*model.generate(prompt, sampling).token_ids]  # type: ignore[union-attr]
        tokens = torch.tensor([prompt])
        try:
            expected = reference.generate(
                tokens,
                attention_mask=torch.ones_like(tokens),
                do_sample=False,
                max_new_tokens=new,
                tokenizer=theirs,
            )[0, len(prompt) :].tolist()
        except (ValueError, TypeError, RuntimeError, IndexError) as problem:
            print("transformers:", problem)
            return 4
        assert answer == expected, (prompt, answer, expected)
    return 0


if __name__ == "__main__":
    sys.exit(main())
