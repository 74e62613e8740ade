"""`piston run` on an embedding model: the vector of each text."""

import argparse
import sys

from piston.cli.shared_options import load_from
from piston.core.console import print_json, print_text, reading_input
from piston.core.data_files import BYTE_ORDER_MARK, check_text

TASK = "feature-extraction"
SHOWN = 4  # numbers of a vector, for people


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what is asked, and how."""
    parser.add_argument(
        "--text",
        action="append",
        required=True,
        metavar="TEXT",
        help="what to embed, repeatable; - reads standard input, a text a line",
    )
    parser.add_argument("--prompt-name", metavar="NAME", help="which prompt of the checkpoint goes in front")
    parser.add_argument("--truncate", action="store_true", help="cut texts that are too long; else they are refused")
    parser.add_argument("--dimensions", type=int, metavar="N", help="keep the first N numbers of each vector")
    parser.add_argument("--json", action="store_true", help="print one JSON object with the whole vectors")


def run(arguments: argparse.Namespace) -> int:
    """Embed the texts."""
    texts = [text for given in arguments.text for text in (_lines() if given == "-" else [given])]
    with load_from(arguments, TASK) as model:
        vectors = model.embed(
            texts,
            prompt_name=arguments.prompt_name,
            truncate=arguments.truncate,
            dimensions=arguments.dimensions,
        )
    if arguments.json:
        print_json({"dimensions": vectors.shape[1], "embeddings": vectors.tolist()})
        return 0
    for text, vector in zip(texts, vectors, strict=True):
        numbers = ", ".join(f"{number:.4f}" for number in vector[:SHOWN])
        print_text(f"{text!r:.60}: [{numbers}{', ...' if len(vector) > SHOWN else ''}] ({len(vector)} numbers)")
    return 0


def _lines() -> list[str]:
    """Texts of standard input; empty lines are none."""
    with reading_input():
        read = check_text(sys.stdin.read().removeprefix(BYTE_ORDER_MARK), "Standard input")
    return [line for line in read.splitlines() if line.strip()]
