"""Embedding texts: bundles beside sentence-transformers, OpenVINO and FastEmbed, in one interleaved run.

    python scripts/compare_embedders.py BUNDLE [BUNDLE ...] --checkpoint DIR --rivals PYTHON [--rounds N]

PYTHON is the interpreter of an environment with torch, sentence-transformers, optimum-intel, openvino and fastembed.
DIR is a checkpoint in the layout of sentence-transformers. Every system has its own process, with as many threads as
there are cores, and embeds the same 256 texts of 4 to 128 words, then one short text again and again; the systems take
turns. What is printed: texts a second and the median time of one text, with each rival's ratio; the peak memory of each
process; and the least cosine of each system's vectors with those of sentence-transformers.
"""

import argparse
import contextlib
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

RIVALS = ("sentence-transformers", "openvino", "fastembed")
ONE_TEXT_RUNS = 20
Embed = Callable[[list[str]], Any]


def main() -> None:
    """Measure and print; or be one of the systems."""
    if sys.argv[1:2] == ["--worker"]:
        work(*sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("bundle", nargs="+", type=Path)
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="DIR")
    parser.add_argument("--rivals", required=True, metavar="PYTHON")
    parser.add_argument("--rounds", type=int, default=6)
    arguments = parser.parse_args()
    from piston.bench.encoders import made_texts

    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        texts = scratch / "texts.json"
        texts.write_text(json.dumps(made_texts()), encoding="utf-8")
        systems: dict[str, tuple[str, str, Path]] = {
            path.name: (sys.executable, "piston", path) for path in arguments.bundle
        }
        systems |= {name: (arguments.rivals, name, arguments.checkpoint) for name in RIVALS}
        workers = {
            name: stack.enter_context(worker_of(*command, texts, scratch / name)) for name, command in systems.items()
        }
        seconds = measured(workers, arguments.rounds)
        peaks = {name: float(ask(worker, "peak")) for name, worker in workers.items()}
        tell(seconds, peaks, {name: json.loads((scratch / name).read_text()) for name in systems})


@contextlib.contextmanager
def worker_of(python: str, kind: str, path: Path, texts: Path, vectors: Path) -> "Iterator[subprocess.Popen[str]]":
    """A process that embeds when it is asked to."""
    command = [python, __file__, "--worker", kind, str(path), str(texts), str(vectors)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            if answer(process) != "ready":
                raise SystemExit(f"{kind} did not start.")
            yield process
        finally:
            process.kill()


def answer(process: "subprocess.Popen[str]") -> str:
    """The next line of a worker's answers, which begin with a mark: libraries print too."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("answer "):
            return line.split(maxsplit=1)[1].strip()
    return ""


def ask(process: "subprocess.Popen[str]", what: str) -> str:
    """One answer of a worker."""
    assert process.stdin is not None
    print(what, file=process.stdin, flush=True)
    return answer(process)


def measured(workers: "dict[str, subprocess.Popen[str]]", rounds: int) -> dict[str, dict[str, list[float]]]:
    """Seconds of all texts and of one text, by system; the first round only warms up."""
    found: dict[str, dict[str, list[float]]] = {name: {"all": [], "one": []} for name in workers}
    for turn in range(rounds + 1):
        for name, worker in workers.items():
            for what, seconds in found[name].items():
                took = json.loads(ask(worker, what))
                if turn > 0:
                    seconds.extend(took)
    return found


def tell(
    seconds: dict[str, dict[str, list[float]]], peaks: dict[str, float], vectors: dict[str, list[list[float]]]
) -> None:
    """Print a table: the systems by rows."""
    exact = vectors["sentence-transformers"]
    print("| | texts/s | one short text, p50 | peak memory | least cosine |\n|---|---|---|---|---|")
    for name, times in seconds.items():
        cosine = min(cosine_of(*pair) for pair in zip(vectors[name], exact, strict=True))
        per_second = len(exact) / statistics.median(times["all"])
        one = 1e3 * statistics.median(times["one"])
        print(f"| {name} | {per_second:,.0f} | {one:.2f} ms | {peaks[name] / 1e6:,.0f} MB | {cosine:.4f} |")


def cosine_of(one: list[float], other: list[float]) -> float:
    """The cosine of two vectors."""
    product = sum(x * y for x, y in zip(one, other, strict=True))
    return float(product / (sum(x * x for x in one) * sum(y * y for y in other)) ** 0.5)


def work(kind: str, path: str, texts_path: str, vectors: str) -> None:
    """In a worker: embed as asked on standard input. Only the standard library and the system itself are imported."""
    embed, texts = OPENERS[kind](Path(path)), json.loads(Path(texts_path).read_text(encoding="utf-8"))
    Path(vectors).write_text(json.dumps([[float(item) for item in vector] for vector in embed(texts)]))
    print("answer ready", flush=True)
    one = [min(texts, key=len)]
    for line in sys.stdin:
        if line.strip() == "peak":
            print("answer", 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, flush=True)
            continue
        took = []
        for _ in range(ONE_TEXT_RUNS if line.strip() == "one" else 1):
            began = time.perf_counter()
            embed(one if line.strip() == "one" else texts)
            took.append(time.perf_counter() - began)
        print("answer", json.dumps(took), flush=True)


def open_piston(path: Path) -> Embed:
    """A bundle."""
    from piston.runtime import load

    return load(path).embed


def open_sentence_transformers(path: Path, **options: Any) -> Embed:
    """The checkpoint in PyTorch, or in another backend of sentence-transformers."""
    from sentence_transformers import SentenceTransformer  # type: ignore[import-not-found]

    model = SentenceTransformer(str(path), device="cpu", **options)
    return lambda texts: model.encode(texts, normalize_embeddings=True)


def open_openvino(path: Path) -> Embed:
    """The checkpoint in OpenVINO, exported by optimum-intel."""
    return open_sentence_transformers(path, backend="openvino", model_kwargs={"export": True})


def open_fastembed(path: Path) -> Embed:
    """The checkpoint in FastEmbed, which runs an ONNX file: that of torch.onnx."""
    import shutil

    import torch
    from fastembed import TextEmbedding  # type: ignore[import-not-found]
    from fastembed.common.model_description import ModelSource, PoolingType  # type: ignore[import-not-found]
    from transformers import AutoModel

    folder = Path(tempfile.mkdtemp())
    shutil.copytree(path, folder / "model", dirs_exist_ok=True)
    example = {name: torch.ones(2, 8, dtype=torch.int64) for name in ("input_ids", "attention_mask", "token_type_ids")}
    axes = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    torch.onnx.export(
        AutoModel.from_pretrained(path, attn_implementation="sdpa").eval(),
        kwargs=example,
        f=folder / "model" / "model.onnx",
        dynamic_shapes=dict.fromkeys(example, axes),
        output_names=["last_hidden_state", "pooled"],
        dynamo=True,
    )
    TextEmbedding.add_custom_model(
        model="local",
        pooling=PoolingType.MEAN,
        normalization=True,
        sources=ModelSource(url="file:///none"),
        dim=384,
        model_file="model.onnx",
    )
    model = TextEmbedding("local", specific_model_path=str(folder / "model"))
    return lambda texts: list(model.embed(texts))


OPENERS: dict[str, Callable[[Path], Embed]] = {
    "piston": open_piston,
    "sentence-transformers": open_sentence_transformers,
    "openvino": open_openvino,
    "fastembed": open_fastembed,
}

if __name__ == "__main__":
    main()
