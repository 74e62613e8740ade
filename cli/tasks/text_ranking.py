"""`piston run` on a reranker: documents in the order of what they say about a query."""

import argparse

from piston.cli.encoder_options import add_json_argument, add_truncate_argument, texts_of
from piston.cli.shared_options import load_from
from piston.core.console import print_json, print_text

TASK = "text-ranking"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what is asked, and how."""
    parser.add_argument("--query", required=True, metavar="TEXT", help="what is looked for")
    parser.add_argument(
        "--document",
        action="append",
        required=True,
        metavar="TEXT",
        help="what to rank, repeatable; - reads standard input, a document a line",
    )
    parser.add_argument("--top-n", type=int, metavar="N", help="keep the best N documents (default: all)")
    parser.add_argument("--raw-scores", action="store_true", help="print logits instead of probabilities")
    parser.add_argument("--instruction", metavar="TEXT", help="what a language model is to look for")
    add_truncate_argument(parser)
    add_json_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Rank the documents."""
    documents = texts_of(arguments.document)
    with load_from(arguments, TASK) as model:
        found = model.rerank(
            arguments.query,
            documents,
            top_n=arguments.top_n,
            raw_scores=arguments.raw_scores,
            truncate=arguments.truncate,
            instruction=arguments.instruction,
        )
    if arguments.json:
        results = [{"index": item.index, "score": item.score, "document": documents[item.index]} for item in found]
        print_json({"results": results})
        return 0
    for item in found:
        print_text(f"{item.score:.4f} [{item.index}] {documents[item.index]!r:.80}")
    return 0
