"""Measures this machine's limits: memory bandwidth for reading, and float32 and INT8 matrix products.

The kernels are numpy's (BLAS) for reading and float32, ONNX Runtime's MatMulInteger for INT8; each figure is the best
of several trials, since a limit is wanted and not a typical value.
"""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from piston.bench.tiny_onnx import matmul_integer

_READ_BYTES = 2**29  # far larger than the last-level cache of a small machine
_SIDE = 1024
_TRIALS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bytes and operations per second, with the threads of the benchmark."""

    read_bytes_per_s: float
    float_ops_per_s: float
    int8_ops_per_s: float | None  # None where ONNX Runtime is not installed
    how: str


def measure_limits(threads: int) -> Limits:
    """Measure the limits; uses the whole machine for a second or two."""
    int8 = _int8_ops(threads)
    return Limits(
        read_bytes_per_s=_read_speed(threads),
        float_ops_per_s=_float_ops(),
        int8_ops_per_s=int8,
        how=(
            f"read: {threads} threads sum {_READ_BYTES / 2**20:.0f} MiB with numpy; float32: numpy's product of "
            f"{_SIDE} x {_SIDE}; int8: ONNX Runtime's MatMulInteger of {_SIDE} x {_SIDE}; the best of {_TRIALS}"
        ),
    )


def _best(work: Callable[[], Any]) -> float:
    """Seconds of the fastest trial, after one warm-up."""
    work()
    times = []
    for _ in range(_TRIALS):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def _read_speed(threads: int) -> float:
    parts = np.array_split(np.ones(_READ_BYTES // 8, np.int64), threads)
    with ThreadPoolExecutor(threads) as pool:
        return _READ_BYTES / _best(lambda: list(pool.map(np.bitwise_or.reduce, parts)))


def _float_ops() -> float:
    rng = np.random.default_rng(0)
    left, right = rng.random((2, _SIDE, _SIDE), np.float32)
    return 2 * _SIDE**3 / _best(lambda: left @ right)


def _int8_ops(threads: int) -> float | None:
    try:
        import onnxruntime
    except ImportError:
        return None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    rng = np.random.default_rng(0)
    weight = rng.integers(-127, 127, (_SIDE, _SIDE), np.int8)
    graph = matmul_integer(weight)
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    feed = {"a": rng.integers(0, 255, (_SIDE, _SIDE), np.uint8)}
    return 2 * _SIDE**3 / _best(lambda: session.run(None, feed))
