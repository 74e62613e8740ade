"""What a distillation reads: the teacher with its tokenizer, and rows of tokens to train on and to judge by."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from piston.checkpoint.checkpoint import (
    Checkpoint,
    cache_spec_of,
    check_weights,
    load_config,
    load_model,
    locate,
    weights_dtype,
)
from piston.checkpoint.generation_defaults import check_readable, read_defaults
from piston.checkpoint.quiet import quiet
from piston.checkpoint.tokenizer import save_tokenizer, write_tokenizer
from piston.core.bundle.manifest import Manifest, ModelSpec
from piston.core.errors import MisuseError
from piston.data.rows import RowOptions, Rows, load_rows
from piston.runtime.bundle import Bundle

DEFAULT_LENGTH = 256  # tokens of a row
NUM_HELD_OUT = 8  # rows, as calibrate keeps apart
MOST_TOKENS = 20_000_000  # of the data; the ids are kept in memory, 8 bytes each


@dataclass(frozen=True, slots=True)
class Source:
    """A teacher in float32, frozen, and where it came from."""

    checkpoint: Checkpoint
    model: Any

    @classmethod
    def open(cls, place: str, *, revision: str | None = None, trust_remote_code: bool = False) -> "Source":
        """Check and load a checkpoint: a directory, a hub id or a .gguf file.

        Raises:
            CheckpointError: it cannot be read, is quantized already, or is of a kind that is not supported.
        """
        checkpoint = locate(place, revision=revision, trust_remote_code=trust_remote_code)
        config = load_config(checkpoint)
        check_readable(checkpoint)
        weights_dtype(checkpoint, check_weights(checkpoint, config))  # refuses stored integers
        model: Any = load_model(checkpoint)
        with quiet():
            model.set_attn_implementation("sdpa" if type(model)._supports_sdpa else "eager")  # noqa: SLF001
        return cls(checkpoint, model)

    @property
    def vocab_size(self) -> int:
        """Rows of the lm_head."""
        return int(self.model.get_output_embeddings().weight.shape[0])

    def bundle(self, directory: Path) -> Bundle:
        """The teacher's tokenizer and template, written to `directory`, in the form that data is read with."""
        config, defaults = self.model.config, read_defaults(self.checkpoint, self.model.generation_config)
        directory.mkdir(parents=True, exist_ok=True)
        tokenizer, _ = write_tokenizer(self.checkpoint, config, defaults, directory)
        spec = ModelSpec(
            name=self.checkpoint.name,
            architecture=type(self.model).__name__,
            num_layers=config.num_hidden_layers,
            hidden_size=config.hidden_size,
            vocab_size=self.vocab_size,
            max_positions=config.max_position_embeddings,
            dtype="float32",
        )
        manifest = Manifest.of_decoder(
            kind="model",
            model=spec,
            cache=cache_spec_of(self.model),
            tokenizer=tokenizer,
            generation=defaults.sampling,
            files={},
            made_by={},
        )
        return Bundle(directory, manifest)

    def save_tokenizer(self, out: Path) -> None:
        """Write the tokenizer in the form of a checkpoint."""
        save_tokenizer(self.checkpoint, out).save_pretrained(out)


@dataclass(frozen=True, slots=True)
class Data:
    """Rows int64 [rows, seq_len] to train on, rows that are not trained on, and the files they came from."""

    train: NDArray[np.int64]
    held_out: NDArray[np.int64]
    rows: Rows

    @classmethod
    def load(cls, sources: Sequence[str | Path], bundle: Bundle, *, seq_len: int | None, seed: int) -> "Data":
        """Pack all of the data; its last rows are held out.

        Raises:
            MisuseError: the data is not readable, or not enough for one row besides those held out; or rows are longer
                than the model's positions.
        """
        positions = bundle.manifest.model.max_positions
        length = min(DEFAULT_LENGTH, positions) if seq_len is None else seq_len
        if length > positions:
            raise MisuseError(
                f"--seq-len {length:,}: {bundle.manifest.model.name} takes up to {positions:,} positions."
            )
        options = RowOptions(
            num_rows=max(1, MOST_TOKENS // length),
            num_apart=NUM_HELD_OUT,
            seq_len=length,
            seed=seed,
            takes_fewer=True,
        )
        rows = load_rows(sources, bundle, options)
        return cls(rows.ids[:-NUM_HELD_OUT], rows.ids[-NUM_HELD_OUT:], rows)


def batch(count: int, step: int, size: int, *seeds: int) -> NDArray[np.int64]:
    """Which of `count` rows a step trains on: the epochs' permutations one after another, from the seeds alone."""
    places = range(step * size, (step + 1) * size)
    orders = {
        epoch: np.random.default_rng([*seeds, epoch]).permutation(count) for epoch in {p // count for p in places}
    }
    return np.array([orders[place // count][place % count] for place in places])
