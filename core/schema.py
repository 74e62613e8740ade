"""Parsed JSON or TOML becomes frozen dataclasses, or an error that says which value is wrong.

Unknown fields are errors: what is read either means what this version understands or is refused. Types may be
dataclasses, `tuple[X, ...]`, `Mapping[str, X]`, `Literal`, `X | None`, Any, str, bool, float and int (not negative).
"""

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

Path = tuple[str | int, ...]


class ShapeError(Exception):
    """What is wrong with a value, and where: `path` leads to it, or to what lacks it."""

    def __init__(self, message: str, path: Path) -> None:
        super().__init__(message)
        self.path = path


def shaped(expected: Any, value: object, path: Path = (), *, whole: str = "the manifest") -> Any:
    """Turn a parsed value into `expected`; `whole` names what an empty path leads to. Raises ShapeError."""
    origin = typing.get_origin(expected)
    if dataclasses.is_dataclass(expected):
        return _dataclass(expected, value, path, whole)
    if origin is tuple:
        return tuple(
            shaped(typing.get_args(expected)[0], item, (*path, index)) for index, item in _items(value, path, whole)
        )
    if origin is Mapping:
        return _mapping(typing.get_args(expected)[1], value, path, whole)
    if origin is Literal:
        return _choice(typing.get_args(expected), value, path)
    if origin is types.UnionType:
        return None if value is None else shaped(typing.get_args(expected)[0], value, path, whole=whole)
    return value if expected is Any else _plain(expected, value, path)


def dotted(path: Path) -> str:
    """How a path is written: `engines[0].cache.dtype`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".")


def _dataclass(expected: Any, value: object, path: Path, whole: str) -> object:
    if not isinstance(value, dict):
        raise ShapeError(f"{dotted(path) or whole} must be an object, it is {value!r:.80}", path)
    fields = {item.name: item for item in dataclasses.fields(expected)}
    hints = typing.get_type_hints(expected)
    if unknown := sorted(set(value) - set(fields)):
        raise ShapeError(f"unknown field {dotted((*path, unknown[0]))}", (*path, unknown[0]))
    required = {
        name
        for name, item in fields.items()
        if item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
    }
    if missing := sorted(required - set(value)):
        raise ShapeError(f"field {dotted((*path, missing[0]))} is missing", path)
    return expected(**{name: shaped(hints[name], item, (*path, name)) for name, item in value.items()})


def _mapping(item_type: Any, value: object, path: Path, whole: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ShapeError(f"{dotted(path) or whole} must be an object, it is {value!r:.80}", path)
    return {key: shaped(item_type, item, (*path, key)) for key, item in value.items()}


def _choice(choices: tuple[Any, ...], value: object, path: Path) -> object:
    if not any(value == choice and type(value) is type(choice) for choice in choices):
        listed = ", ".join(map(str, choices))
        raise ShapeError(f"{dotted(path)} is {value!r:.80}, it must be one of {listed}", path)
    return value


def _plain(expected: Any, value: object, path: Path) -> object:
    if expected is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, expected) or (expected is int and (isinstance(value, bool) or value < 0)):
        raise ShapeError(f"{dotted(path)} is {value!r:.80}, it must be a {expected.__name__}", path)
    return value


def _items(value: object, path: Path, whole: str) -> list[tuple[int, object]]:
    if not isinstance(value, list):
        raise ShapeError(f"{dotted(path) or whole} must be a list, it is {value!r:.80}", path)
    return list(enumerate(value))


def to_plain(value: Any) -> Any:
    """Dataclasses as dicts, tuples as lists: what JSON holds."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: to_plain(item) for key, item in value.items()}
    return [to_plain(item) for item in value] if isinstance(value, tuple | list) else value
