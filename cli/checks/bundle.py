"""Checks a bundle or a model directory: every file against the manifest, then the tokenizer and the engines."""

from pathlib import Path

from piston.cli.checks.finding import Finding
from piston.core.bundle.interface import MODULE
from piston.core.bundle.manifest import FILE_NAME, FileRecord, Manifest, sha256_of, stays_inside
from piston.core.errors import BundleCorruptError, BundleTooNewError, Error
from piston.runtime.backends.registry import evaluate_candidates
from piston.runtime.bundle import TOKENIZER, Bundle
from piston.runtime.text.chat_template import ChatTemplate

AGAIN = {
    "bundle": "copy it whole, or piston build MODEL_DIR -o {} --target {} --overwrite",
    "model": "copy it whole, or piston export CHECKPOINT -o {}",
}


def examine_bundle(path: Path) -> list[Finding]:
    """Findings about a directory with a manifest; at least one."""
    try:
        manifest = Manifest.read(path)
    except BundleTooNewError as problem:
        return [Finding(str(path / FILE_NAME), "wrong", str(problem), "pip install --upgrade piston")]
    except BundleCorruptError as problem:
        # Without a manifest nothing shows that Piston wrote the directory, so --overwrite would not replace it.
        fix = f"copy it whole, or remove it and piston build MODEL_DIR -o {path} --target TARGET"
        return [Finding(str(path / FILE_NAME), "wrong", str(problem), fix)]
    targets = " --target ".join(spec.target for spec in manifest.engines) or "TARGET"
    again = AGAIN[manifest.kind].format(path, targets)
    findings = [
        Finding(str(path / name), "wrong", damage, again)
        for name, record in manifest.files.items()
        if (damage := _file_problem(path, name, record))
    ]
    findings += _texts(path, manifest, again, damaged={finding.subject for finding in findings})
    findings += _engines(Bundle(path, manifest), again) if manifest.kind == "bundle" else []
    if any(finding.level == "wrong" for finding in findings):
        return findings
    what = f"a complete {'bundle' if manifest.kind == 'bundle' else 'model directory'} of {manifest.model.name}"
    run = f"piston run {path} --prompt TEXT" if manifest.kind == "bundle" else ""
    build = f"piston build {path} -o BUNDLE --target ort-cpu"
    says = what if run else f"{what}; it cannot be run before it is built"
    return [Finding(str(path), "ok", says, "" if run else build), *findings]


def _file_problem(directory: Path, name: str, record: FileRecord) -> str:
    path = directory / name
    if not stays_inside(name):
        return "it is outside the directory; do not trust this manifest"
    try:
        size = path.stat().st_size if path.is_file() else None
    except OSError as problem:
        return f"it cannot be read ({problem.strerror})"
    if size is None:
        return "it is missing"
    if size != record.size:
        return f"it has {size:,} bytes, not {record.size:,}{': it was truncated' if size < record.size else ''}"
    return "" if sha256_of(path) == record.sha256 else "it is not the file that was recorded (SHA-256 differs)"


def _texts(path: Path, manifest: Manifest, again: str, damaged: set[str]) -> list[Finding]:
    """Load the tokenizer and the chat template, if their files match the manifest, and report errors."""
    bundle, findings = Bundle(path, manifest), list[Finding]()
    if MODULE in manifest.graphs:
        return findings
    if TOKENIZER not in manifest.files and not (path / TOKENIZER).is_file():
        fix = "put the checkpoint's tokenizer.json into the checkpoint's directory and export it again"
        return [Finding(str(path / TOKENIZER), "wrong", "it has no tokenizer", fix)]
    for name, opened in (("tokenizer", bundle.tokenizer), ("chat template", bundle.chat_template)):
        if damaged:
            break
        try:
            found = opened()
            if isinstance(found, ChatTemplate):
                found.check()
        except Error as problem:
            findings.append(Finding(f"{path}, {name}", "wrong", str(problem), again))
    return findings


def _engines(bundle: Bundle, again: str) -> list[Finding]:
    manifest, path = bundle.manifest, bundle.directory
    if not manifest.engines:
        return [Finding(str(path), "wrong", "a bundle without engines", again)]
    findings = [
        Finding(f"{path}, {spec.target}", "wrong", f"its engine {spec.path} is not among the recorded files", again)
        for spec in manifest.engines
        if spec.path not in manifest.files
    ]
    if findings or not all((path / spec.path).is_file() for spec in manifest.engines):
        return findings
    verdicts = evaluate_candidates(bundle)
    runs = any(verdict.problem is None for verdict in verdicts)
    fix = "" if runs else f"piston build MODEL_DIR -o {path} --target ort-cpu --overwrite"
    return [
        Finding(f"{path}, {verdict.spec.target}", "ok", "it runs here")
        if verdict.problem is None
        else Finding(f"{path}, {verdict.spec.target}", "missing" if runs else "wrong", verdict.reason, fix)
        for verdict in verdicts
    ]
