"""The `export` verb."""

import argparse
import contextlib
import sys
from pathlib import Path

from piston.core.console import Progress, note, print_json, print_text
from piston.core.errors import MisuseError
from piston.core.tasks import task_module, task_names
from piston.export import ExportOptions, export_model, tasks
from piston.runtime.process_memory import peak_memory


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `piston export`."""
    parser.add_argument("source", metavar="SRC", help="a Hugging Face directory, a hub id, or a .gguf file")
    parser.add_argument(
        "--task", choices=task_names(tasks), help="what the model is for (default: what the checkpoint says)"
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="the model directory to write")
    parser.add_argument(
        "--dtype", choices=("auto", "fp32", "fp16", "bf16"), default="auto", help="weights (auto: the checkpoint's own)"
    )
    parser.add_argument("--context", type=int, metavar="N", help="positions to export (default: the trained context)")
    parser.add_argument("--revision", metavar="REV", help="branch, tag or commit of a hub id")
    parser.add_argument(
        "--trust-remote-code", action="store_true", help="run Python code that the checkpoint brings; off unless given"
    )
    parser.add_argument("--chat-template", metavar="NAME", help="which of several chat templates (default: default)")
    parser.add_argument(
        "--no-parity", action="store_true", help="skip the comparison with transformers; recorded in the manifest"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace DIR if it exists")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Export, and print where, how large and how close to transformers."""
    if arguments.context is not None and arguments.context < 1:
        raise MisuseError(f"--context {arguments.context} must be at least 1.")
    options = ExportOptions(
        task=arguments.task,
        dtype=arguments.dtype,
        context=arguments.context,
        revision=arguments.revision,
        trust_remote_code=arguments.trust_remote_code,
        chat_template=arguments.chat_template,
        overwrite=arguments.overwrite,
        check_parity=not arguments.no_parity,
    )
    # What a checkpoint's own code prints goes where progress goes: stdout is for the result.
    with contextlib.redirect_stdout(sys.stderr):
        manifest = export_model(arguments.source, arguments.output, options, Progress(quiet=arguments.quiet))
    size = sum(record.size for record in manifest.files.values())
    parity, remarks = manifest.made_by["parity"], manifest.made_by["remarks"]
    for remark in () if arguments.quiet else remarks:
        note(f"note: {remark}")
    if arguments.json:
        print_json(
            {
                "output": str(arguments.output),
                "task": manifest.task,
                "architecture": manifest.model.architecture,
                "dtype": manifest.model.dtype,
                "positions": manifest.model.max_positions,
                "bytes": size,
                "peak_rss_bytes": peak_memory(),
                "parity": parity,
                "remarks": remarks,
            }
        )
        return 0
    model = manifest.model
    print_text(
        f"{arguments.output}: {model.architecture}, {model.num_layers} layers, {model.max_positions} positions, "
        f"{model.dtype}, {size / 1e6:,.0f} MB; peak memory {peak_memory() / 1e9:.2f} GB"
    )
    if parity is None:
        note("warning: not compared with transformers (--no-parity)")
    else:
        print_text(f"parity with transformers: {task_module(tasks, manifest.task).summary(manifest)}")
    return 0
