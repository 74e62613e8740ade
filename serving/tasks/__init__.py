"""What a server offers for a bundle of each task: one module a task, found by name (piston.core.tasks).

A module has

    ENDPOINTS: Mapping[str, Endpoint]                      what is answered under which path, by POST
    serve(name, model, metrics, settings) -> Served        the bundle, with a thread that is not yet started

Two tasks may have one path: the model that a request names decides.
"""
