"""Every test of an operator runs on the vector unit and, where the processor has them, on tiles."""

import pytest
from own_kernels import need_kernels

from piston.runtime import kernels


@pytest.fixture(params=[1, 2], ids=["avx512", "amx"])
def level(request):
    need_kernels()
    library = kernels.open_library()
    best = library.piston_kernels_level()
    if library.piston_kernels_set_level(request.param) != request.param:
        library.piston_kernels_set_level(best)
        pytest.skip("the processor has no AMX")
    yield request.param
    library.piston_kernels_set_level(best)
