"""`piston run` on a token classifier: the labelled parts of each text."""

import argparse
import dataclasses

from piston.cli.encoder_options import add_json_argument, add_text_arguments, add_truncate_argument, texts_of
from piston.cli.shared_options import load_from
from piston.core.console import print_json, print_text
from piston.runtime.tasks.token_classification import AGGREGATIONS

TASK = "token-classification"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what is asked, and how."""
    add_text_arguments(parser, "label")
    parser.add_argument(
        "--aggregation",
        choices=AGGREGATIONS,
        default="simple",
        help="how tokens become spans, as in transformers (default: %(default)s)",
    )
    parser.add_argument(
        "--ignore-label", action="append", metavar="LABEL", help="leave this label out, repeatable (default: O)"
    )
    parser.add_argument("--stride", type=int, metavar="N", help="read long texts in windows that overlap by N tokens")
    add_truncate_argument(parser)
    add_json_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Label the texts."""
    texts = texts_of(arguments.text)
    with load_from(arguments, TASK) as model:
        found = model.tag(
            texts,
            aggregation=arguments.aggregation,
            ignore_labels=arguments.ignore_label or ("O",),
            truncate=arguments.truncate,
            stride=arguments.stride,
        )
    if arguments.json:
        print_json({"results": [[dataclasses.asdict(span) for span in spans] for spans in found]})
        return 0
    for text, spans in zip(texts, found, strict=True):
        print_text(f"{text!r:.60}:{'' if spans else ' nothing'}")
        for span in spans:
            print_text(f"  {span.start}-{span.end} {span.label} {span.score:.4f} {span.text!r}")
    return 0
