"""Compile the kernels: `python -m piston.runtime.kernels`."""

import sys

from piston.core.errors import Error
from piston.runtime.kernels import level
from piston.runtime.kernels.compiling import compile_library


def main() -> int:
    """Print the library's path and the processor's level; return 1 if it cannot be compiled."""
    try:
        print(f"{compile_library()} ({level()})")  # noqa: T201
    except Error as problem:
        print(f"error: {problem}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
