"""What `piston run` offers for each task: one module a task, found by name (piston.core.tasks).

A module is like that of a verb: `add_arguments(parser)` declares the options of the task beside those of every bundle,
and `run(arguments) -> int` loads the bundle, answers and prints.
"""
