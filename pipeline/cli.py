"""The `make` verb: from a recipe to a bundle that met its gates."""

import argparse
from pathlib import Path

from piston.core.cache_dir import cache_dir
from piston.core.console import note, print_json, print_text
from piston.core.gates import tell_gates
from piston.core.units import parse_size


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `piston make`."""
    parser.add_argument("recipe", metavar="RECIPE", type=Path, help="a TOML file (docs/schemas/recipe.json)")
    parser.add_argument(
        "--checkpoint", metavar="PATH", help="path of the checkpoint on this machine; its hash must be the recipe's"
    )
    parser.add_argument(
        "--cache-dir",
        type=Path,
        metavar="DIR",
        help="cache of finished stages (default: $PISTON_CACHE_DIR/make)",
    )
    parser.add_argument(
        "--cache-size", default="20GiB", metavar="SIZE", help="maximum size of the cache (default: 20GiB)"
    )
    parser.add_argument("--dry-run", action="store_true", help="show the stages and what is cached")
    parser.add_argument("--locked", action="store_true", help="make everything again and compare it with piston.lock")
    parser.add_argument(
        "--report", type=Path, metavar="DIR", help="write report.json, junit.xml, summary.md, index.html"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")
    parser.add_argument("--json", action="store_true", help="print one JSON object (docs/schemas/make.json)")


def run(arguments: argparse.Namespace) -> int:
    """Make the bundle, print the report, and return 1 if a gate is not met."""
    from piston.pipeline.make import MakeOptions, make
    from piston.pipeline.recipe import read_recipe
    from piston.pipeline.render import lines_of, write_reports, write_sbom

    recipe = read_recipe(arguments.recipe, needs_hash=not arguments.dry_run)
    directory = arguments.report
    if directory is None and recipe.output.report is not None:
        directory = arguments.recipe.absolute().parent / recipe.output.report
    options = MakeOptions(
        cache_dir=arguments.cache_dir or cache_dir("make"),
        cache_bytes=parse_size(arguments.cache_size, "--cache-size"),
        checkpoint=arguments.checkpoint,
        locked=arguments.locked,
        pages=directory,
        quiet=arguments.quiet,
    )
    if arguments.dry_run:
        return _dry_run(arguments, recipe, options)
    report = make(recipe, arguments.recipe, options)
    if directory is not None:
        write_reports(directory, report)
        if report.is_published:
            write_sbom(directory, report, recipe.checkpoint.license)
    if arguments.json:
        print_json(report.to_json())
    else:
        for line in lines_of(report):
            print_text(line)
    status = tell_gates(report.gates)
    if report.lock is not None and report.lock.equality == "none":
        note(f"the rebuild does not match {report.lock.path}: bytes, graph and answers all differ")
    return status if report.is_met else 1


def _dry_run(arguments: argparse.Namespace, recipe: object, options: object) -> int:
    from piston.pipeline.forecast import forecast, lines_of

    found = forecast(recipe, arguments.recipe, options)  # type: ignore[arg-type]
    if arguments.json:
        print_json(found.to_json())
    else:
        for line in lines_of(found):
            print_text(line)
    return 0
