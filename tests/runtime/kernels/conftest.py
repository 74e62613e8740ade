"""Every test of an operator runs on the vector unit and, where the processor has them, on tiles."""

import pytest
from own_kernels import need_kernels

from piston.runtime import kernels


@pytest.fixture(params=["avx512-bf16", "amx"])
def level(request):
    """The best of the vector unit, which may be less than bfloat16, and tiles."""
    yield from at_level(request.param, exact=request.param == "amx")


@pytest.fixture(params=["avx512-vnni", "avx512-bf16", "amx"])
def every_level(request):
    """Each level of which the processor has the instructions."""
    yield from at_level(request.param, exact=True)


def at_level(name, *, exact):
    need_kernels()
    library = kernels.open_library()
    best = library.piston_kernels_level()
    found = library.piston_kernels_set_level(kernels.LEVELS.index(name))
    if exact and kernels.LEVELS[found] != name:
        library.piston_kernels_set_level(best)
        pytest.skip(f"the processor has no {name}")
    yield kernels.LEVELS[found]
    library.piston_kernels_set_level(best)
