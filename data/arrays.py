"""Calibration samples of a module of one's own: arrays of .npz files, one for each input.

A file holds one run of the module, of any size of its dynamic axes, or several, stacked along one more axis in front.
Where the first axis of every input is dynamic and of one name, it is taken for the batch, and its rows for samples.
"""

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from piston.core.arrays import arrays_of
from piston.core.bundle.examples import EXAMPLES, read_examples
from piston.core.bundle.interface import GraphInterface
from piston.core.data_files import read_bytes
from piston.core.errors import MisuseError
from piston.data.rows import BUILTIN, DataFile, RowOptions
from piston.runtime.tasks.module import checked_feeds

APART = 5  # of so many samples one is kept apart for the check
MOST_APART = 256
BATCH = 32  # samples that are run at once

Feeds = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Arrays:
    """Inputs of a module, batch by batch, and the files that they came from."""

    ids: list[Feeds]
    num_samples: int
    files: tuple[DataFile, ...]

    @property
    def hashes(self) -> dict[str, str]:
        """SHA-256 of each file by name."""
        return {file.name: file.sha256 for file in self.files}

    def to_json(self) -> dict[str, Any]:
        """What the manifest says of them."""
        files = [dataclasses.asdict(file) for file in self.files]
        return {"rows": self.num_samples, "sha256": hash_feeds(self.ids), "files": files}


@dataclass(frozen=True, slots=True)
class HeldOutArrays:
    """Samples that calibration has not seen; `num_shared` of them it has seen all the same."""

    ids: list[Feeds]
    source: str
    num_samples: int
    num_shared: int

    @property
    def sha256(self) -> str:
        """Of the samples."""
        return hash_feeds(self.ids)

    @property
    def share(self) -> float:
        """Of the samples, those that calibration has seen."""
        return self.num_shared / max(self.num_samples, 1)

    @property
    def warning(self) -> str | None:
        """One line if some were seen."""
        if not self.num_shared:
            return None
        return (
            f"warning: {self.num_shared} of {self.num_samples} samples of {self.source} are among the calibration "
            "samples, which flatters the model; give others as --check-data."
        )


def load_arrays(
    sources: Sequence[str | Path],
    model_dir: Path,
    interface: GraphInterface,
    options: RowOptions | None,
    check_data: str | Path | None,
) -> tuple[Arrays | None, HeldOutArrays]:
    """Samples to calibrate on, None without sources, and samples to check on.

    The latter are of `check_data`; else the last fifth of the sources' samples, or without sources the examples of the
    model directory. `options` bounds the samples of the sources; None takes all.

    Raises:
        MisuseError: a file is no .npz file, or its arrays do not fit; an option is for text; there are too few samples.
    """
    _check_options(options)
    if BUILTIN in map(str, sources):
        raise MisuseError("--data builtin is text; a module is calibrated on arrays: give --data FILE.npz.")
    files, samples = list[DataFile](), list[Feeds]()
    for source in sources:
        data = read_bytes(Path(source))
        samples += samples_of(arrays_of(data, str(source)), interface, str(source))
        files.append(DataFile(Path(source).name, hashlib.sha256(data).hexdigest()))
    if options is not None:
        samples = samples[: options.num_rows]
    if check_data is not None:
        where = str(check_data)
        apart = samples_of(arrays_of(read_bytes(Path(where)), where), interface, where)
    elif sources:
        count = min(MOST_APART, len(samples) // APART or 1)
        if len(samples) <= count:
            raise MisuseError(
                f"{sources[0]} holds {len(samples)} sample, and some are kept apart to check the result on; give more, "
                "or others as --check-data FILE.npz."
            )
        samples, apart, where = samples[:-count], samples[-count:], "samples kept apart from the calibration data"
    else:
        apart, where = [example.inputs for example in read_examples(model_dir / EXAMPLES)], "the model's examples"
    seen = {hash_feeds([sample]) for sample in samples}
    shared = sum(hash_feeds([sample]) in seen for sample in apart)
    held_out = HeldOutArrays(list(_batches(apart, interface)), where, len(apart), shared)
    if not sources:
        return None, held_out
    return Arrays(list(_batches(samples, interface)), len(samples), tuple(files)), held_out


def samples_of(arrays: Feeds, interface: GraphInterface, name: str) -> list[Feeds]:
    """The samples in the arrays of one file; raises MisuseError."""
    try:
        ranks = {item.name: len(item.shape) for item in interface.inputs}
        sizes = {array.shape[0] for key, array in arrays.items() if array.ndim == ranks.get(key, -1) + 1}
        if len(sizes) == 1 and all(array.ndim == ranks.get(key, -1) + 1 for key, array in arrays.items()):
            stacked = range(sizes.pop())
            return [checked_feeds(interface, {key: array[place] for key, array in arrays.items()}) for place in stacked]
        whole = checked_feeds(interface, arrays)
    except MisuseError as problem:
        raise MisuseError(f"{name}: {problem}") from None
    if _batch(interface) is None:
        return [whole]
    (count,) = {len(array) for array in whole.values()}
    return [{key: array[place : place + 1] for key, array in whole.items()} for place in range(count)]


def hash_feeds(feeds: Sequence[Feeds]) -> str:
    """SHA-256 of the names, types, shapes and bytes of arrays, in their order."""
    digest = hashlib.sha256()
    for sample in feeds:
        for name, array in sorted(sample.items()):
            digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _batch(interface: GraphInterface) -> str | None:
    """The symbol of the first axis of every input, where there is one."""
    found = {item.shape[0] if item.shape else 0 for item in interface.inputs}
    (size,) = found if len(found) == 1 else (None,)
    return size if isinstance(size, str) else None


def _batches(samples: Sequence[Feeds], interface: GraphInterface) -> Iterator[Feeds]:
    """Samples that follow one another and have one shape are run together, where there is a batch."""
    group = list[Feeds]()
    for sample in samples:
        is_alike = group and all(array.shape[1:] == group[0][name].shape[1:] for name, array in sample.items())
        if group and (not is_alike or len(group) == BATCH or _batch(interface) is None):
            yield _joined(group)
            group = []
        group.append(sample)
    if group:
        yield _joined(group)


def _joined(group: Sequence[Feeds]) -> Feeds:
    if len(group) == 1:
        return group[0]
    return {name: np.concatenate([sample[name] for sample in group]) for name in group[0]}


def _check_options(options: RowOptions | None) -> None:
    if options is None:
        return
    given = {"--seq-len": options.seq_len is not None, "--field": options.field is not None, "--seed": options.seed}
    if names := [name for name, is_given in given.items() if is_given]:
        raise MisuseError(f"{names[0]} is for text, and a module is calibrated on arrays; leave it out.")
    if options.num_rows < 1:
        raise MisuseError(f"--samples is {options.num_rows}; it must be at least 1.")
