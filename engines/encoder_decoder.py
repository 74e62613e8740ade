"""Engines of encoder-decoders: both graphs built as an encoder's and a decoder's are, each in a folder of its name."""

import dataclasses
from pathlib import PurePosixPath

from piston.core.bundle.interface import DECODER, ENCODER, source_encoder_interface
from piston.core.bundle.manifest import EngineSpec
from piston.engines.options import Builder, BuildJob


def build_both(job: BuildJob, encoder: Builder, decoder: Builder) -> EngineSpec:
    """Write the engine below `work`, its two graphs by their builders; raises as `piston.engines.build` does."""
    cross = job.model.cross.with_dtype("float32")
    interface = source_encoder_interface(cross, job.model.graphs[ENCODER].inputs)
    model = dataclasses.replace(job.model, graphs={**job.model.graphs, ENCODER: interface})
    built = {}
    for graph, builder in ((ENCODER, encoder), (DECODER, decoder)):
        work = job.work / graph
        work.mkdir(exist_ok=True)
        built[graph] = builder(dataclasses.replace(job, source=job.source / graph, work=work, model=model))
    files = {graph: PurePosixPath(graph, spec.files[graph]).as_posix() for graph, spec in built.items()}
    return EngineSpec(
        target=job.target,
        files=files,
        states={ENCODER: (), DECODER: (*built[DECODER].cache.states, *cross.states)},
        requested=dict(job.requested),
        actual={**built[DECODER].actual, "encoder": dict(built[ENCODER].actual)},
    )
