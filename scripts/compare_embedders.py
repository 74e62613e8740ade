"""Embedding texts: bundles beside sentence-transformers, OpenVINO and FastEmbed, in one interleaved run.

    python scripts/compare_embedders.py BUNDLE [BUNDLE ...] --checkpoint DIR --rivals PYTHON [--rounds N]

PYTHON is the interpreter of an environment with torch, sentence-transformers, optimum-intel, openvino and fastembed.
DIR is a checkpoint in the layout of sentence-transformers. Every system has its own process, with as many threads as
there are cores, and embeds the same 256 texts of 4 to 128 words, and one short text again and again; the systems take
turns. What is printed: texts a second and the time of one text; the peak memory of each process, which in that of a
rival counts what converts the checkpoint; the least cosine of each system's vectors with those of
sentence-transformers; and the ratios of speed.
"""

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from interleaved import Found, Run, bundles_and_rivals, machine_line, measured, ratio_lines

EXACT = "sentence-transformers"
RIVALS = (EXACT, "openvino", "fastembed")
WORKS = {"texts": 1, "one text": 20}  # calls in one turn
Embed = Callable[[list[str]], Any]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", nargs="+", type=Path)
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="DIR")
    parser.add_argument("--rivals", required=True, metavar="PYTHON")
    parser.add_argument("--rounds", type=int, default=6)
    arguments = parser.parse_args()
    from piston.bench.encoders import made_texts
    from piston.core.machine import num_cores

    checkpoints = dict.fromkeys(RIVALS, arguments.checkpoint)
    bundles, rivals = bundles_and_rivals(arguments.bundle, checkpoints, arguments.rivals)
    with tempfile.TemporaryDirectory() as scratch:
        texts = Path(scratch) / "texts.json"
        texts.write_text(json.dumps(made_texts()), encoding="utf-8")
        options = {"threads": num_cores(), "texts": str(texts)}
        found = measured(__file__, [*bundles, *rivals], WORKS, options, arguments.rounds)
    print(machine_line(num_cores(), arguments.rounds))
    tell(found)
    print()
    print("\n".join(ratio_lines(found, [item.name for item in bundles], dict.fromkeys(RIVALS), {w: w for w in WORKS})))


def tell(found: dict[str, Found]) -> None:
    """Print a table: the systems by rows."""
    from piston.core.units import shown

    exact = found[EXACT].answers["texts"]
    print("\n| | texts/s | one short text | peak memory | least cosine |\n|---|---|---|---|---|")
    for name, item in found.items():
        cosine = min(cosine_of(*pair) for pair in zip(item.answers["texts"], exact, strict=True))
        cells = [f"{len(exact) / item.median('texts'):,.0f}", shown(item.median("one text"), "s")]
        print(f"| {name} | {' | '.join(cells)} | {shown(item.peak_bytes, 'bytes')} | {cosine:.4f} |")


def cosine_of(one: list[float], other: list[float]) -> float:
    """The cosine of two vectors."""
    product = sum(x * y for x, y in zip(one, other, strict=True))
    return float(product / (sum(x * x for x in one) * sum(y * y for y in other)) ** 0.5)


def embedding(embed: Embed, options: dict[str, Any]) -> Run:
    """What a system does in its turns."""
    texts = json.loads(Path(options["texts"]).read_text(encoding="utf-8"))
    works = {"texts": texts, "one text": [min(texts, key=len)]}
    return lambda work: embed(works[work])


def open_piston(path: Path, options: dict[str, Any]) -> Run:
    """A bundle."""
    from piston.runtime import load

    return embedding(load(path, threads=options["threads"]).embed, options)


def open_sentence_transformers(path: Path, options: dict[str, Any], **settings: Any) -> Run:
    """The checkpoint in PyTorch, or in another backend of sentence-transformers."""
    from sentence_transformers import SentenceTransformer  # type: ignore[import-not-found]

    model = SentenceTransformer(str(path), device="cpu", **settings)
    return embedding(lambda texts: model.encode(texts, normalize_embeddings=True), options)


def open_openvino(path: Path, options: dict[str, Any]) -> Run:
    """The checkpoint in OpenVINO, exported by optimum-intel."""
    return open_sentence_transformers(path, options, backend="openvino", model_kwargs={"export": True})


def open_fastembed(path: Path, options: dict[str, Any]) -> Run:
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
    model = TextEmbedding("local", specific_model_path=str(folder / "model"), threads=options["threads"])
    return embedding(lambda texts: list(model.embed(texts)), options)


OPENERS = {
    "piston": open_piston,
    EXACT: open_sentence_transformers,
    "openvino": open_openvino,
    "fastembed": open_fastembed,
}

if __name__ == "__main__":
    main()
