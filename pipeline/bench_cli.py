"""The `bench` verb: a bundle's speed (`piston.bench.cli`), or what the stages of recipes cost (`stage_cli`)."""

import argparse

from piston.bench import cli as of_bundles
from piston.bench.cli import add_arguments, check_arguments
from piston.pipeline.stage_cli import is_of_recipes, run_recipes

__all__ = ["add_arguments", "check_arguments", "run"]


def run(arguments: argparse.Namespace) -> int:
    """Measure, print, judge; raises MisuseError for a mixture of bundles and recipes."""
    if arguments.serve is not None or not is_of_recipes(arguments.bundle):
        return of_bundles.run(arguments)
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return run_recipes(arguments, defaults=parser.parse_args(["any"]))
