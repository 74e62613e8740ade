"""A student of other sizes, described by a config.json of its own."""

from pathlib import Path
from typing import Any

import torch

from piston.checkpoint.checkpoint import CAUSAL_LM, auto_class, check_decoder, translated
from piston.checkpoint.config_checks import check_config, num_layers_of
from piston.checkpoint.json_files import read_object
from piston.checkpoint.quiet import quiet
from piston.core.errors import CheckpointError, MisuseError

MOST_LAYERS = 1000


def from_config(teacher: Any, path: Path) -> tuple[Any, str]:
    """A model of the config in `path` with the teacher's weights where names and shapes agree; a remark on how many.

    Raises:
        MisuseError: the file is not readable, or its vocabulary is not the teacher's.
        UnsupportedModelError: an architecture that is not exported.
    """
    from transformers import AutoConfig

    path = path / "config.json" if path.is_dir() else path
    try:
        values = read_object(path)
    except CheckpointError as problem:
        raise MisuseError(f"--student: {problem}") from None
    with quiet(), translated(f"{path} describes no model"):
        config = AutoConfig.for_model(**values)
    check_decoder(config)
    check_config(str(path), config)
    wanted, has = int(config.vocab_size), int(teacher.get_output_embeddings().weight.shape[0])
    if wanted != has:
        raise MisuseError(
            f"The student's config has a vocabulary of {wanted:,} tokens, the teacher {has:,}; a student answers with "
            f"its teacher's tokens: set vocab_size to {has}."
        )
    _check_size(path, config, teacher)
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


def _check_size(path: Path, config: Any, teacher: Any) -> None:
    """Raise MisuseError for a student of more weights than its teacher, before memory is taken for it."""
    if (layers := num_layers_of(config)) > MOST_LAYERS:
        raise MisuseError(f"{path} describes {layers:,} layers; a student has {MOST_LAYERS:,} at most.")
    with quiet(), translated(f"{path} describes no model"), torch.device("meta"):
        described = auto_class(CAUSAL_LM).from_config(config)
    wanted, has = (sum(item.numel() for item in model.parameters()) for model in (described, teacher))
    if wanted > has:
        raise MisuseError(f"{path} describes {wanted:,} weights, the teacher has {has:,}; a student has no more.")
