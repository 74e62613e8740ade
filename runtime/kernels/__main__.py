"""Compile the kernels: `python -m piston.runtime.kernels`."""

import sys

from piston.core.errors import Error
from piston.runtime.kernels import level
from piston.runtime.kernels.compiling import compile_library


def main() -> int:
    """Print where the library lies and what the processor offers it; 1 where it cannot be made."""
    try:
        print(f"{compile_library()} ({level()})")  # noqa: T201
    except Error as problem:
        print(f"error: {problem}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
