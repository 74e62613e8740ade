"""Why a module cannot be traced, in one line that names the line of the user's code."""

import traceback
from pathlib import Path

import torch


def untraceable(problem: BaseException) -> str:
    """The line of the module at which tracing failed, and why."""
    torch_dir, own_dir = str(Path(torch.__file__).parent), str(Path(__file__).parent)
    frames = [
        frame
        for cause in _causes(problem)
        for frame in traceback.extract_tb(cause.__traceback__)
        if not frame.filename.startswith((torch_dir, own_dir, "<")) and "onnxscript" not in frame.filename
    ]
    reason = first_line(problem)
    if not frames or not frames[-1].line:
        return f"The module cannot be traced to ONNX: {reason}."
    where = f"{Path(frames[-1].filename).name}, line {frames[-1].lineno}, in {frames[-1].name}"
    return f"The module cannot be traced to ONNX at {where}: `{frames[-1].line}` ({reason})."


def _causes(problem: BaseException | None) -> list[BaseException]:
    """The error and what it was raised from; the origin last."""
    found = []
    while problem is not None and problem not in found:
        found.append(problem)
        problem = problem.__cause__ or problem.__context__
    return found


def first_line(problem: BaseException) -> str:
    """What an error says first, with the reason where it is a constraint on an axis; without a full stop."""
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()] or [type(problem).__name__]
    why = next((line for line in lines if line.startswith("- ")), "")  # of a constraint on an axis
    return f"{lines[0].rstrip('.!')}{': ' * bool(why)}{why[2:]}".rstrip(".")
