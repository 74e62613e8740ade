"""A student of other sizes, described by a config.json of its own."""

import json
from pathlib import Path
from typing import Any

import torch

from piston.checkpoint.checkpoint import CAUSAL_LM, auto_class, check_decoder, translated
from piston.checkpoint.quiet import quiet
from piston.core.errors import MisuseError


def from_config(teacher: Any, path: Path) -> tuple[Any, str]:
    """A model of the config in `path` with the teacher's weights where names and shapes agree; a remark on how many.

    Raises:
        MisuseError: the file is not readable, or its vocabulary is not the teacher's.
        UnsupportedModelError: an architecture that is not exported.
    """
    from transformers import AutoConfig

    path = path / "config.json" if path.is_dir() else path
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise MisuseError(f"--student {path} is not a config.json: {problem}") from None
    with quiet(), translated(f"{path} describes no model"):
        config = AutoConfig.for_model(**values)
    check_decoder(config)
    wanted, has = int(config.vocab_size), int(teacher.get_output_embeddings().weight.shape[0])
    if wanted != has:
        raise MisuseError(
            f"The student's config has a vocabulary of {wanted:,} tokens, the teacher {has:,}; a student answers with "
            f"its teacher's tokens: set vocab_size to {has}."
        )
    with quiet():
        student = auto_class(CAUSAL_LM).from_config(config, dtype=torch.float32)
    student.generation_config = teacher.generation_config
    own, theirs = student.state_dict(), teacher.state_dict()
    same = [name for name in own if name in theirs and theirs[name].shape == own[name].shape]
    with torch.no_grad():
        for name in same:
            own[name].copy_(theirs[name])
    student.tie_weights()
    return (
        student.eval(),
        f"{len(same)} of the student's {len(own)} tensors begin as the teacher's, the others at random.",
    )
