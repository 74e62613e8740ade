"""Converts a manifest of schema 1, which had only decoders with equal layers, to schema 2."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from piston.core.bundle.interface import DECODER, CacheSpec, StateType, decoder_interface
from piston.core.schema import validated


@dataclass(frozen=True, slots=True)
class _Cache:
    num_layers: int
    num_kv_heads: int
    head_dim: int
    dtype: StateType

    def spec(self) -> CacheSpec:
        return CacheSpec.of(**asdict(self))


@dataclass(frozen=True, slots=True)
class _Engine:
    target: str
    path: str
    cache: _Cache
    asked: Mapping[str, Any]
    got: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class _Model:
    vocab_size: int


@dataclass(frozen=True, slots=True)
class _Manifest:
    cache: _Cache
    model: _Model
    engines: tuple[_Engine, ...] = ()


def upgraded(data: Any) -> Any:
    """The manifest in schema 2. Raises SchemaError."""
    old: _Manifest = validated(_Manifest, data, ignore_unknown=True)
    interface = decoder_interface(old.cache.spec(), old.model.vocab_size)
    engines = [
        {
            "target": engine.target,
            "files": {DECODER: engine.path},
            "states": {DECODER: [asdict(state) for state in engine.cache.spec().states]},
            "requested": engine.asked,
            "actual": engine.got,
        }
        for engine in old.engines
    ]
    return {**data, "schema": 2, "graphs": {DECODER: asdict(interface)}, "engines": engines}
