"""Engines of encoder-decoders: both graphs built as an encoder's and a decoder's are, each in a folder of its name."""

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import PurePosixPath

from piston.core.bundle.interface import DECODER, ENCODER, source_encoder_interface
from piston.core.bundle.manifest import EngineSpec
from piston.engines.options import Builder, BuildJob


def build_both(job: BuildJob, encoder: Builder, decoder: Builder) -> EngineSpec:
    """Write the engine below `work`, its two graphs by their builders; raises as `piston.engines.build` does."""
    interface = source_encoder_interface(job.model.cross.with_dtype("float32"), job.model.graphs[ENCODER].inputs)
    model = dataclasses.replace(job.model, graphs={**job.model.graphs, ENCODER: interface})
    builders, built = {ENCODER: encoder, DECODER: decoder}, dict[str, EngineSpec]()
    for graph, builder in builders.items():
        work = job.work / graph
        work.mkdir(exist_ok=True)
        part = dataclasses.replace(job, source=job.source / graph, work=work, model=model)
        built[graph] = builder(part)
    if (other := _beyond_float16(built)) is not None:  # the states of one are read by the other: they have one type
        asked = {**job.requested, "dtype": "bfloat16"}
        work = job.work / other
        shutil.rmtree(work)
        work.mkdir()
        part = dataclasses.replace(job, source=job.source / other, work=work, model=model, requested=asked)
        built[other] = builders[other](part)
    cross = job.model.cross.with_dtype(built[DECODER].actual["dtype"])
    files = {graph: PurePosixPath(graph, spec.files[graph]).as_posix() for graph, spec in built.items()}
    return EngineSpec(
        target=job.target,
        files=files,
        states={ENCODER: (), DECODER: (*built[DECODER].cache.states, *cross.states)},
        requested=dict(job.requested),
        actual={**built[DECODER].actual, "encoder": dict(built[ENCODER].actual)},
    )


def _beyond_float16(built: Mapping[str, EngineSpec]) -> str | None:
    """The graph in float16 where the other one is in bfloat16, because its values go beyond float16."""
    dtypes = {graph: spec.actual["dtype"] for graph, spec in built.items()}
    narrow = [graph for graph, dtype in dtypes.items() if dtype == "float16"]
    return narrow[0] if len(narrow) == 1 and "bfloat16" in dtypes.values() else None
