"""How a bundle of each task is explained: one module a task, found by name (piston.core.tasks).

A module has

    TAKES: Mapping[str, bool]  # its inputs, by the names of options, and whether each is needed
    HAS_LABELS = True  # takes --label; left out where not
    WRITES = True  # takes --max-tokens; left out where not
    explain(opened, asked) -> Explanation
"""
