"""Recognises what a path is and says which command comes next: bundles, model directories, plans, ONNX files, others.

It looks at names and first bytes only; nothing is loaded, and no byte of a plan reaches TensorRT.
"""

import json
from pathlib import Path

from piston.cli.checks.bundle import examine_bundle
from piston.cli.checks.finding import Finding
from piston.cli.checks.machine import Installed, installed_version
from piston.core.bundle import GRAPH
from piston.core.bundle.gguf_header import GgufHeader
from piston.core.bundle.manifest import FILE_NAME, Manifest
from piston.core.bundle.onnx_header import OnnxHeader
from piston.core.bundle.plan_header import PlanHeader
from piston.core.bundle.weights_header import damage_of, missing_shards
from piston.core.errors import BundleCorruptError, BundleError

PLAN_TAGS, GGUF_TAG = (b"ftrt", b"vtrt"), b"GGUF"
LENGTHS = {"kv_lengths", "lengths"}  # of a decoder, of an encoder; a lowering may make others superfluous
PACKAGES = {
    "tensorrt": (("tensorrt-cu13", "tensorrt"), "piston[trt]"),
    "tensorrt_rtx": (("tensorrt-rtx-cu13", "tensorrt_rtx"), "piston[rtx]"),
}
# Files by which the directories of other tools are recognised: name, what it is, and what to use instead.
FOREIGN = {
    "genai_config.json": "a model of onnxruntime-genai",
    "rank0.engine": "an engine of TensorRT-LLM",
    "openvino_model.xml": "a model of OpenVINO",
    "params.json": "a checkpoint in its authors' own format",
}
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")


def examine_path(path: Path, installed: Installed = installed_version) -> list[Finding]:
    """Findings about a file or directory; at least one."""
    if path.is_dir():
        return _examine_directory(path)
    if not path.is_file():
        return [Finding(str(path), "wrong", "it does not exist", "check the path")]
    try:
        with path.open("rb") as file:
            tag = file.read(4)
    except OSError as problem:
        return [Finding(str(path), "wrong", f"it cannot be read ({problem.strerror})", f"chmod +r {path}")]
    if tag in PLAN_TAGS:
        return _examine_plan(path, installed)
    if tag == GGUF_TAG:
        return _examine_gguf(path, "a GGUF checkpoint, not built yet")
    if path.name == FILE_NAME:
        return _examine_directory(path.parent)
    if path.suffix in WEIGHTS:
        return [Finding(str(path), "wrong", "weights without their config", _export(path.parent))]
    return _examine_onnx(path)


def _examine_directory(path: Path) -> list[Finding]:
    names = {item.name for item in path.iterdir()}
    if FILE_NAME in names:
        return examine_bundle(path)
    for name, what in FOREIGN.items():
        if name in names:
            fix = "piston export CHECKPOINT -o DIR, with the checkpoint it was made from"
            return [Finding(str(path), "wrong", f"{what} ({name}), which Piston cannot run", fix)]
    if "config.json" in names:
        found = _examine_checkpoint(path, names)
        return (_examine_weights(path) if found.level == "ok" else []) or [found]
    if quantized := sorted(name for name in names if name.endswith(".gguf")):
        return _examine_gguf(path / quantized[0], "a GGUF checkpoint in a directory, not built yet")
    graphs = sorted(item.relative_to(path).as_posix() for item in path.glob("*/model.onnx"))
    if "tokenizer.json" in names or graphs or GRAPH in names:
        says = f"{FILE_NAME} is missing, so these files cannot be checked"
        return [Finding(str(path), "wrong", says, "copy the complete directory, or make it again with piston build")]
    return [Finding(str(path), "wrong", "nothing here is a model", "piston export CHECKPOINT -o DIR")]


def _examine_checkpoint(path: Path, names: set[str]) -> Finding:
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as problem:
        return Finding(str(path / "config.json"), "wrong", f"it cannot be read ({problem})", "download it again")
    if isinstance(config, dict) and {"build_config", "pretrained_config"} <= set(config):
        fix = "piston export CHECKPOINT -o DIR, with the checkpoint it was made from"
        return Finding(str(path), "wrong", "an engine of TensorRT-LLM, which Piston cannot run", fix)
    if not any(name.endswith(WEIGHTS) for name in names):
        says = "a checkpoint's config without weights (*.safetensors)"
        return Finding(str(path), "wrong", says, "download the complete checkpoint")
    if not names & {"tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt"}:
        return Finding(
            str(path), "wrong", "a checkpoint without a tokenizer", "download tokenizer.json into the same directory"
        )
    return Finding(str(path), "ok", "a Hugging Face checkpoint, not exported yet", _export(path))


def _examine_gguf(path: Path, what: str) -> list[Finding]:
    if damage := _examine_weights(path):
        return damage
    header = GgufHeader.read(path)
    if header.part is not None:
        return [Finding(str(path), "wrong", f"{header.part}, and only whole files are exported", header.merging)]
    return [Finding(str(path), "ok", what, _export(path))]


def _examine_weights(path: Path) -> list[Finding]:
    """What is missing or truncated in a GGUF file or a checkpoint's directory, judged by headers and sizes."""
    place, again = path.parent if path.is_file() else path, "download it again"
    found = [
        Finding(str(place / name), "wrong", "it is missing, and it holds part of the weights", again)
        for name in missing_shards(path)
    ]
    files = [path] if path.is_file() else sorted(item for item in path.iterdir() if item.suffix in WEIGHTS)
    for file in files:
        try:
            problem = damage_of(file)
        except OSError as error:
            problem = f"it cannot be read ({error.strerror})"
        if problem is not None:
            found.append(Finding(str(file), "wrong", problem, again))
    return found


def _examine_plan(path: Path, installed: Installed) -> list[Finding]:
    try:
        header = PlanHeader.read(path)
    except BundleCorruptError as problem:
        return [Finding(str(path), "wrong", str(problem), _build(str(path)))]
    names, extra = PACKAGES[header.compiler]
    there = next((version for name in names if (version := installed(name))), None)
    built = ".".join(str(number) for number in header.version)
    target = header.compiler.replace("_", "-")
    if (bundle := _directory_of(path)) is not None:
        fix = f"check the bundle that contains it: piston doctor {bundle}"
        findings = [Finding(str(path), "ok", f"a plan of {header.compiler} {built} in its bundle", fix)]
    else:
        says = f"a plan of {header.compiler} {built} without its bundle: nothing vouches for it, so it is not loaded"
        findings = [Finding(str(path), "wrong", says, _build("BUNDLE", target))]
    if header.size is not None and header.size != path.stat().st_size:
        says = f"its header states {header.size:,} bytes, but it has {path.stat().st_size:,}: it was truncated"
        findings.append(Finding(str(path), "wrong", says, "copy it again"))
    if there is None:
        findings.append(Finding(header.compiler, "missing", "it is not installed", f"pip install '{extra}'"))
    elif there != built:
        says = f"{there} is installed, and it loads only plans of its own version"
        findings.append(Finding(header.compiler, "wrong", says, f"pip install '{names[0]}=={built}'"))
    return findings


def _examine_onnx(path: Path) -> list[Finding]:
    try:
        header = OnnxHeader.read(path)
    except BundleCorruptError:
        says = "it is not an ONNX file, a plan or a GGUF checkpoint, or it was truncated"
        return [
            Finding(
                str(path), "wrong", says, "copy it again, or name a directory that piston export or piston build wrote"
            )
        ]
    findings = [
        Finding(str(path.parent / name), "wrong", f"it is missing, and {path.name} keeps weights in it", "copy both")
        for name in header.external_files
        if Path(name).is_absolute() or ".." in Path(name).parts or not (path.parent / name).is_file()
    ]
    names = {info.name for info in header.inputs}
    if "input_ids" not in names or not names & LENGTHS:
        inputs = ", ".join(info.name for info in header.inputs[:6])
        says = f"an ONNX graph that Piston did not export (its inputs: {inputs or 'none'})"
        fix = "piston export CHECKPOINT -o DIR, with the checkpoint it was made from"
        return [*findings, Finding(str(path), "wrong", says, fix)]
    if (directory := _directory_of(path)) is not None:
        fix = f"check the directory that contains it: piston doctor {directory}"
        return [*findings, Finding(str(path), "ok", "a graph of Piston in its directory", fix)]
    says = f"a graph of Piston without its directory: {FILE_NAME} is missing"
    return [*findings, Finding(str(path), "wrong", says, "copy the complete directory")]


def _directory_of(path: Path) -> Path | None:
    """The directory above a file whose manifest records it; a manifest that does not vouches for nothing."""
    for directory in (path.parent, path.parent.parent, path.parent.parent.parent):
        try:
            if path.relative_to(directory).as_posix() in Manifest.read(directory).files:
                return directory
        except BundleError:
            continue
    return None


def _export(source: Path) -> str:
    return f"piston export {source} -o DIR"


def _build(goal: str, target: str = "TARGET") -> str:
    return f"piston build MODEL_DIR -o {goal} --target {target}"
