"""How well embeddings rank pairs of sentences as people do: bundles beside the checkpoint in transformers.

    python scripts/embedding_quality.py PAIRS.csv BUNDLE [BUNDLE ...] --checkpoint DIR

PAIRS.csv has rows of two sentences and a score, without a header (STS-B: 0 to 5). The figure is Spearman's rank
correlation of the cosines with the scores, in points of 100. With --checkpoint the same is measured of sentences that
transformers embeds as sentence-transformers does: mean of the tokens, length 1. It needs torch and transformers.
"""

import argparse
import csv
import json
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from piston.evaluation.quality import spearman
from piston.evaluation.tasks.feature_extraction import cosine
from piston.runtime import load

Vectors = NDArray[np.float32]


def by_transformers(checkpoint: Path, texts: list[str], max_length: int) -> Vectors:
    """Mean pooling and normalization by hand, each text alone."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModel.from_pretrained(checkpoint, dtype=torch.float32).eval()
    found = []
    with torch.no_grad():
        for text in texts:
            inputs = tokenizer(text, return_tensors="pt", truncation=True, max_length=max_length)
            found.append(torch.nn.functional.normalize(model(**inputs).last_hidden_state.mean(dim=1)))
    return np.asarray(torch.cat(found).numpy(), np.float32)


def main() -> None:
    """Measure, and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", type=Path)
    parser.add_argument("bundles", type=Path, nargs="+")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--target")
    arguments = parser.parse_args()
    with arguments.pairs.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    left, right, labels = [row[0] for row in rows], [row[1] for row in rows], [float(row[2]) for row in rows]
    figures: dict[str, dict[str, float]] = {}
    vectors: dict[str, Vectors] = {}
    max_length = 0
    for path in arguments.bundles:
        with load(path, target=arguments.target) as model:
            max_length = model.max_length
            began = time.perf_counter()
            vectors[str(path)] = model.embed([*left, *right], truncate=True)
            figures[str(path)] = {"texts_per_second": 2 * len(rows) / (time.perf_counter() - began)}
    if arguments.checkpoint is not None:
        vectors["transformers"] = by_transformers(arguments.checkpoint, [*left, *right], max_length)
    for name, found in vectors.items():
        scores = cosine(found[: len(left)], found[len(left) :])
        figures.setdefault(name, {})["spearman"] = 100 * spearman(scores.tolist(), labels)
        if "transformers" in vectors:
            same = cosine(found, vectors["transformers"])
            figures[name] |= {"cosine_mean": float(same.mean()), "cosine_min": float(same.min())}
    print(json.dumps({"pairs": len(rows), "figures": figures}, indent=1))


if __name__ == "__main__":
    main()
