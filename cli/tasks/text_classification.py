"""`piston run` on a classifier: the labels of each text."""

import argparse
import dataclasses

from piston.cli.encoder_options import add_json_argument, add_text_arguments, add_truncate_argument, texts_of
from piston.cli.shared_options import load_from
from piston.core.console import print_json, print_text
from piston.core.errors import MisuseError

TASK = "text-classification"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what is asked, and how."""
    add_text_arguments(parser, "classify")
    parser.add_argument(
        "--text-pair",
        action="append",
        default=[],
        metavar="TEXT",
        help="the second text of models that read two together, once for each --text",
    )
    parser.add_argument("--top-k", type=int, metavar="N", help="keep the best N labels of each text (default: all)")
    add_truncate_argument(parser)
    add_json_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Classify the texts."""
    texts = texts_of(arguments.text)
    pairs = arguments.text_pair
    if pairs and len(pairs) != len(texts):
        raise MisuseError(f"There are {len(texts)} --text and {len(pairs)} --text-pair; give one for each.")
    inputs = [*zip(texts, pairs, strict=True)] if pairs else texts
    with load_from(arguments, TASK) as model:
        found = model.classify(inputs, top_k=arguments.top_k, truncate=arguments.truncate)
    if arguments.json:
        print_json({"results": [[dataclasses.asdict(score) for score in scores] for scores in found]})
        return 0
    for text, scores in zip(texts, found, strict=True):
        print_text(f"{text!r:.60}: " + ", ".join(f"{score.label} {score.score:.4f}" for score in scores))
    return 0
