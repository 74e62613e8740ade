"""NVIDIA GPUs people run language models on: memory as sold, and compute capability. From NVIDIA's product pages."""

import difflib
from dataclasses import dataclass

from piston.core.errors import MisuseError

GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Gpu:
    """One product; `usable_bytes` leaves out what driver and error correction take, about 5 % on those we know of."""

    name: str
    gibibytes: int
    compute_capability: str

    @property
    def usable_bytes(self) -> int:
        """Memory that a process can have."""
        return self.gibibytes * GIB * 95 // 100


_SOLD = """
sm75: T4 16, RTX-2080-Ti 11, Quadro-RTX-6000 24, GTX-1660 6
sm80: A100-40 40, A100-80 80, A30 24
sm86: A10 24, A40 48, RTX-A6000 48, RTX-3060 12, RTX-3070 8, RTX-3080 10, RTX-3090 24
sm87: Orin-Nano 8, Orin-NX 16, AGX-Orin 64
sm89: L4 24, L40 48, L40S 48, RTX-4060 8, RTX-4070 12, RTX-4080 16, RTX-4090 24, RTX-6000-Ada 48
sm90: H100 80, H100-NVL 94, H200 141, GH200 96
sm100: B200 180
sm120: RTX-5060 8, RTX-5070 12, RTX-5080 16, RTX-5090 32, RTX-PRO-6000 96
"""


def _rows() -> dict[str, Gpu]:
    lines = (line.split(": ") for line in _SOLD.strip().splitlines())
    pairs = ((capability, item.rsplit(" ", 1)) for capability, items in lines for item in items.split(", "))
    return {_key(name): Gpu(name, int(size), capability) for capability, (name, size) in pairs}


def _key(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum()).removeprefix("nvidia").removeprefix("geforce")


GPUS = _rows()


def gpu_named(name: str) -> Gpu:
    """The GPU of a name, however it is spelled: `rtx 4090`, `RTX-4090`, `NVIDIA GeForce RTX 4090`.

    Raises:
        MisuseError: it is not in the table.
    """
    if (found := GPUS.get(_key(name))) is not None:
        return found
    near = difflib.get_close_matches(_key(name), GPUS, n=3, cutoff=0.5)
    hint = ", ".join(GPUS[key].name for key in near) or ", ".join(gpu.name for gpu in GPUS.values())
    raise MisuseError(f"No GPU is called {name!r} here; is it one of {hint}? --memory takes any size.")
