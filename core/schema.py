"""Turns parsed JSON or TOML into frozen dataclasses, or raises an error that names the wrong value.

Unknown fields are errors, unless they are to be ignored. Types may be dataclasses, `tuple[X, ...]`, `Mapping[str, X]`,
`Literal`, unions such as `X | None` and `int | str`, Any, str, bool, float and int (not negative). A float that is not
finite may be a string, as `piston.core.json_text` writes it.
"""

import dataclasses
import functools
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal

from piston.core.json_text import NOT_FINITE

Path = tuple[str | int, ...]


class SchemaError(Exception):
    """What is wrong with a value; `path` leads to it, or to the object that lacks it."""

    def __init__(self, message: str, path: Path) -> None:
        super().__init__(message)
        self.path = path


def validated(
    expected: Any, value: object, path: Path = (), *, whole: str = "the manifest", ignore_unknown: bool = False
) -> Any:
    """Turn a parsed value into `expected`. Raises SchemaError.

    Args:
        expected: a type, see above.
        value: parsed JSON or TOML.
        path: where the value is.
        whole: what an empty path leads to.
        ignore_unknown: leave fields of dataclasses out that `expected` does not have.
    """
    origin, arguments = typing.get_origin(expected), typing.get_args(expected)

    def inner(kind: Any, item: object, *step: str | int) -> Any:
        return validated(kind, item, (*path, *step), whole=whole, ignore_unknown=ignore_unknown)

    if dataclasses.is_dataclass(expected):
        return _dataclass(expected, value, path, whole, inner, ignore_unknown=ignore_unknown)
    if origin is tuple:
        return tuple(inner(arguments[0], item, index) for index, item in enumerate(_items(value, path, whole)))
    if origin is Mapping:
        return {key: inner(arguments[1], item, key) for key, item in _object(value, path, whole).items()}
    if origin is Literal:
        return _choice(arguments, value, path)
    if origin in {types.UnionType, typing.Union}:
        kinds = [kind for kind in arguments if kind is not types.NoneType]
        if value is None and len(kinds) < len(arguments):
            return None
        plain = [kind for kind in kinds if isinstance(kind, type) and type(value) is kind]
        return inner((plain or kinds)[0], value)
    return value if expected is Any else _plain(expected, value, path)


def dotted(path: Path) -> str:
    """How a path is written: `engines[0].cache.dtype`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".")


def _dataclass(
    expected: Any,
    value: object,
    path: Path,
    whole: str,
    inner: Callable[[Any, object, str], Any],
    *,
    ignore_unknown: bool,
) -> object:
    found = _object(value, path, whole)
    kinds, required = _fields_of(expected)
    if not ignore_unknown and (unknown := sorted(set(found) - set(kinds))):
        raise SchemaError(f"unknown field {dotted((*path, unknown[0]))}", (*path, unknown[0]))
    if missing := sorted(required - set(found)):
        raise SchemaError(f"field {dotted((*path, missing[0]))} is missing", path)
    return expected(**{name: inner(kinds[name], item, name) for name, item in found.items() if name in kinds})


@functools.cache
def _fields_of(expected: type[Any]) -> tuple[dict[str, Any], set[str]]:
    """The types of a dataclass's fields by name, and the names of those without a default."""
    fields, hints = dataclasses.fields(expected), typing.get_type_hints(expected)
    required = {
        item.name
        for item in fields
        if item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
    }
    return {item.name: hints[item.name] for item in fields}, required


def _object(value: object, path: Path, whole: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise SchemaError(f"{dotted(path) or whole} must be an object, it is {value!r:.80}", path)
    return value


def _choice(choices: tuple[Any, ...], value: object, path: Path) -> object:
    if not any(value == choice and type(value) is type(choice) for choice in choices):
        listed = ", ".join(map(str, choices))
        raise SchemaError(f"{dotted(path)} is {value!r:.80}, it must be one of {listed}", path)
    return value


def _plain(expected: Any, value: object, path: Path) -> object:
    if expected is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if expected is float and isinstance(value, str) and value in NOT_FINITE:
        return float(value)
    if not isinstance(value, expected) or (expected is int and (isinstance(value, bool) or value < 0)):
        raise SchemaError(f"{dotted(path)} is {value!r:.80}, it must be a {expected.__name__}", path)
    return value


def _items(value: object, path: Path, whole: str) -> list[object] | tuple[object, ...]:
    if not isinstance(value, list | tuple):
        raise SchemaError(f"{dotted(path) or whole} must be a list, it is {value!r:.80}", path)
    return value


def to_plain(value: Any) -> Any:
    """Dataclasses as dicts, tuples as lists: what JSON holds."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: to_plain(item) for key, item in value.items()}
    return [to_plain(item) for item in value] if isinstance(value, tuple | list) else value
