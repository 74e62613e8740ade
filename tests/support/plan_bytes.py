"""The first bytes of plans, without a graph behind them."""

import struct


def rtx_header(*, size, version=(1, 7, 1, 116), gpus=0b1000, tag=b"vtrt"):
    """64 bytes as TensorRT-RTX 1.7.1 writes them; bit 3 of `gpus` is sm89."""
    return tag + struct.pack("<IQQ", 0, 2, size) + bytes(version) + tag + struct.pack("<Q", gpus) + bytes(24)


def trt_header(*, version=(11, 4, 0, 106)):
    """64 bytes whose first 28 are as TensorRT documents them."""
    return b"ftrt" + bytes(20) + bytes(version) + bytes(36)


def rtx_plan(body=b"NGNE a plan", **header):
    return rtx_header(size=64 + len(body), **header) + body
