"""How a checkpoint of each task becomes a model directory: one module a task, found by name (piston.core.tasks).

A module has

    export(job, work) -> Manifest  # writes the model directory
    summary(manifest) -> str  # how near the graph is to transformers, in a line for people

Where no --task is given, `piston.checkpoint.task` says which of them a checkpoint is for.
"""
