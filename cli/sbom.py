"""The `sbom` verb: a bundle's bill of materials."""

import argparse
from pathlib import Path

from piston.core.bundle.sbom import sbom_of
from piston.core.console import print_json
from piston.runtime.bundle import Bundle


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `piston sbom`."""
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, help="a bundle, or a model directory")
    parser.add_argument("--license", metavar="SPDX", help="licence of the model, which the bundle does not record")


def run(arguments: argparse.Namespace) -> int:
    """Print the document after checking every file against the manifest."""
    bundle = Bundle.open(arguments.bundle)
    print_json(sbom_of(arguments.bundle, bundle.manifest, arguments.license))
    return 0
