"""How the bundle of each task is opened and called: one module a task, found by name (piston.core.tasks).

A module has

    open_model(bundle, *, target, max_batch, max_length, threads) -> the object that `piston.runtime.load` returns

and, of tasks of encoders, `MODEL`, the class of that object (piston.runtime.encoder).

The object has `manifest`, `target`, `remarks` and `close()`, and is a context manager.
"""
