"""How a checkpoint of each task becomes a model directory: one module a task, found by name (piston.core.tasks).

A module has

    recognises(checkpoint) -> bool  # whether this is the checkpoint's task where no --task is given
    export(job, work) -> Manifest  # writes the model directory
    summary(manifest) -> str  # how near the graph is to transformers, in a line for people

A checkpoint that no other task recognises is for text-generation.
"""
