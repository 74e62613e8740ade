"""What surrounds the engines of a bundle: tokenizer, manifest, and where everything came from."""

import shutil
from importlib.metadata import version
from pathlib import Path

from piston.core.bundle.manifest import FILE_NAME, EngineSpec, Manifest, record_files, sha256_of

COPIED = ("tokenizer.json", "answers.tokenizer.json", "chat_template.jinja")  # as far as the model directory has them
TOOLS = ("numpy", "onnx", "onnx-ir", "onnxruntime")


def write_bundle(work: Path, model_dir: Path, model: Manifest, engines: list[EngineSpec]) -> Manifest:
    """Complete the directory `work`, which holds the engines, and return the manifest written there.

    Model and cache are described as the checkpoint has them; every engine states the cache that it reads.
    """
    for name in COPIED:
        if (model_dir / name).is_file():
            shutil.copyfile(model_dir / name, work / name)
    manifest = Manifest(
        kind="bundle",
        task=model.task,
        model=model.model,
        graphs=model.graphs,
        settings=model.settings,
        tokenizer=model.tokenizer,
        generation=model.generation,
        files=record_files(work),
        engines=tuple(engines),
        made_by={
            "stage": "build",
            "piston": version("piston"),
            "source": {"sha256": _hashes(model_dir, model), "made_by": dict(model.made_by)},
            "tools": {name: version(name) for name in TOOLS},
        },
    )
    manifest.write(work)
    return manifest


def _hashes(model_dir: Path, model: Manifest) -> dict[str, str]:
    """The hashes of everything that was read; those in the manifest were verified before the build."""
    return {FILE_NAME: sha256_of(model_dir / FILE_NAME), **{name: file.sha256 for name, file in model.files.items()}}
