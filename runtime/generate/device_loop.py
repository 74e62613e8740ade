"""Runs rows whose tokens the device chooses, for as long as the set of rows stays the same."""

from collections.abc import Iterator, Mapping
from typing import Protocol

from piston.runtime.backends.device_decoding import DeviceDecoding, DeviceRow
from piston.runtime.backends.engine import Engine
from piston.runtime.sampling.sampler import Pick, RowSampler


class Row(Protocol):
    """The data of a row that a run needs."""

    sampler: RowSampler
    output_ids: list[int]


class DeviceRuns:
    """Starts no run for engines without DeviceDecoding, or for options that need logits on the host."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._rows: dict[int, Row] = {}
        self._run: Iterator[dict[int, int]] | None = None
        self._was_broken_off = False

    def step(self, rows: Mapping[int, Row]) -> dict[int, Pick] | None:
        """The next token of each slot, recorded in its sampler; None if the caller must call `Engine.step` instead."""
        if not isinstance(self._engine, DeviceDecoding):
            return None
        if self._rows != rows:  # another row may have taken over a slot
            self.close()
            self._rows, self._was_broken_off = dict(rows), False
        if self._run is None and not self._was_broken_off:
            self._run = _started(self._engine, rows)
        if self._run is None:
            return None
        if (chosen := next(self._run, None)) is None:
            # Another user of the engine is likely to use it again, and an interrupted run wastes its work.
            self._run, self._was_broken_off = None, True
            return None
        return {slot: rows[slot].sampler.record(token_id) for slot, token_id in chosen.items()}

    def close(self) -> None:
        """End the run; steps that the device did ahead are discarded."""
        if self._run is not None:
            self._run.close()  # type: ignore[attr-defined]
            self._run = None


def _started(engine: DeviceDecoding, rows: Mapping[int, Row]) -> Iterator[dict[int, int]] | None:
    """Start a run until the first row reaches its max_tokens; None if some row's tokens are picked from logits."""
    samplers = {slot: row.sampler for slot, row in rows.items()}
    if any(sampler.needs_logits or not engine.can_choose(sampler.sampling) for sampler in samplers.values()):
        return None
    num_steps = min(sampler.sampling.max_tokens - len(sampler.output_ids) for sampler in samplers.values())
    return engine.run(
        {
            slot: DeviceRow(
                token_id=row.output_ids[-1], sampling=row.sampler.sampling, uniforms=row.sampler.uniforms(num_steps)
            )
            for slot, row in rows.items()
        },
        num_steps,
    )
