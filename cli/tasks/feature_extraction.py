"""`piston run` on an embedding model: the vector of each text."""

import argparse

from piston.cli.encoder_options import add_text_arguments, add_truncate_argument, texts_of
from piston.cli.shared_options import load_from
from piston.core.console import print_json, print_text

TASK = "feature-extraction"
SHOWN = 4  # numbers of a vector, for people


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what is asked, and how."""
    add_text_arguments(parser, "embed")
    parser.add_argument("--prompt-name", metavar="NAME", help="which prompt of the checkpoint goes in front")
    add_truncate_argument(parser)
    parser.add_argument("--dimensions", type=int, metavar="N", help="keep the first N numbers of each vector")
    parser.add_argument("--json", action="store_true", help="print one JSON object with the whole vectors")


def run(arguments: argparse.Namespace) -> int:
    """Embed the texts."""
    texts = texts_of(arguments.text)
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
