"""The `sign` verb: a detached signature of a bundle, or a new key."""

import argparse
import os
import time
from hashlib import sha256
from pathlib import Path

from piston.core.bundle.manifest import FILE_NAME
from piston.core.bundle.signing import SUFFIX, SecretKey, read_text
from piston.core.console import print_json, print_text
from piston.core.errors import MisuseError, OutputExistsError
from piston.core.outputs import check_output_files, write_output
from piston.runtime.bundle import Bundle


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `piston sign`."""
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, nargs="?", help="the directory `piston build` wrote")
    parser.add_argument("--key", metavar="FILE", type=Path, help="a secret key without a password (minisign -W)")
    parser.add_argument("--new-key", metavar="NAME", type=Path, help="write NAME.key and NAME.pub, and sign nothing")
    parser.add_argument("-o", "--output", metavar="FILE", type=Path, help="(default: BUNDLE/manifest.json.minisig)")
    parser.add_argument("--comment", metavar="TEXT", help="signed with it (default: the time and the model)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Sign the manifest after every file was checked against it."""
    if arguments.new_key is not None:
        if arguments.bundle is not None or arguments.key is not None:
            raise MisuseError("--new-key makes a key and signs nothing; leave BUNDLE and --key out.")
        return _new_key(arguments)
    if arguments.bundle is None or arguments.key is None:
        raise MisuseError("Give BUNDLE and --key FILE, or --new-key NAME.")
    key = SecretKey.parse(read_text(arguments.key, "the secret key"), str(arguments.key))
    bundle = Bundle.open(arguments.bundle)
    manifest = arguments.bundle / FILE_NAME
    comment = arguments.comment or f"timestamp:{int(time.time())}\tmodel:{bundle.manifest.model.name}"
    if not comment.isprintable() and not comment.replace("\t", "").isprintable():
        raise MisuseError("--comment must be one line of text.")
    output = arguments.output or manifest.with_name(manifest.name + SUFFIX)
    check_output_files({"-o": output}, [arguments.key, arguments.bundle])
    write_output(output, key.sign(bundle.manifest_bytes, comment))
    if arguments.json:
        found = {
            "signature": str(output),
            "key": key.public_key.shown_name,
            "manifest_sha256": sha256(bundle.manifest_bytes).hexdigest(),
        }
        print_json({**found, "comment": comment})
    else:
        print_text(f"{output}: signed with {key.public_key.shown_name}")
    return 0


def _new_key(arguments: argparse.Namespace) -> int:
    secret, public = (arguments.new_key.with_name(arguments.new_key.name + suffix) for suffix in (".key", ".pub"))
    for path in (secret, public):
        if path.exists():
            raise OutputExistsError(f"{path} exists already; name another key.")
    key = SecretKey.new()
    with os.fdopen(os.open(secret, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(key.to_text())
    text = f"untrusted comment: minisign public key {key.public_key.shown_name}\n{key.public_key}\n"
    write_output(public, text)
    if arguments.json:
        print_json({"secret": str(secret), "public": str(public), "key": key.public_key.shown_name})
    else:
        print_text(f"{secret}: keep it secret\n{public}: {key.public_key}")
    return 0
