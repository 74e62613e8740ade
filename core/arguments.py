"""Arguments of public functions are compared with their annotations: a wrong one is refused in a line that names it.

Without this, a wrong argument fails where it is first used, far from the caller: a number in place of a list of texts
as "object of type 'int' has no len()", and a text in place of a list of texts as so many texts of one letter.
"""

import dataclasses
import functools
import inspect
import operator
import os
import reprlib
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from numbers import Real
from typing import TYPE_CHECKING, Annotated, Any, Literal, ParamSpec, TypeVar

from piston.core.errors import MisuseError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

P = ParamSpec("P")
R = TypeVar("R")
_SINGULAR = {
    str: "a string",
    int: "an integer",
    float: "a number",
    bool: "True or False",
    types.NoneType: "None",
    Mapping: "a dictionary",
    Callable: "a function",
    os.PathLike: "a path",
}
_PLURAL = {str: "strings", int: "integers", float: "numbers", Mapping: "dictionaries"}
_NO_LISTS = (str, bytes, bytearray, memoryview, Mapping, AbstractSet)
_COUNTS = {2: "two"}


def checked_arguments(function: Callable[P, R]) -> Callable[P, R]:
    """A function that raises MisuseError for an argument that is not what its annotation says.

    Annotations may be str, bool, int, float, None, Any, classes, Literal, Sequence[X], tuple[X, Y], tuple[X, ...],
    Mapping, Callable, unions of these, and Annotated[X, "what it must be"]. What is passed for Sequence[X] becomes a
    list: arrays and columns of tables may be given as well, but no text, bytes, mapping, set or iterator.
    """
    signature = inspect.signature(function)
    kinds = {
        name: parameter.annotation
        for name, parameter in signature.parameters.items()
        if parameter.annotation is not parameter.empty
        and parameter.kind not in {parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL}
    }
    quoted = [name for name, kind in kinds.items() if isinstance(kind, str)]
    assert not quoted, f"{function.__qualname__}: the annotations of {quoted} must not be quoted"

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError:
            return function(*args, **kwargs)  # raises Python's own error, which names the function
        for name, value in bound.arguments.items():
            if name in kinds:
                bound.arguments[name] = checked_value(name, value, kinds[name])
        return function(*bound.args, **bound.kwargs)

    return wrapper


def checked_value(name: str, value: Any, kind: Any) -> Any:
    """The value as its annotation says; `name` begins the message of the MisuseError that a wrong one raises."""
    try:
        return _fitted(name, value, kind)
    except _Misfit as misfit:
        hint = "; for one text, give [text]" if isinstance(misfit.value, str) and _takes_texts(misfit.kind) else ""
        raise MisuseError(
            f"{misfit.name} is {_shown(misfit.value)}; it must be {described(misfit.kind)}{hint}."
        ) from None


def check_fields(instance: "DataclassInstance") -> None:
    """Raise MisuseError for a field of a dataclass that is not what its annotation says."""
    for field in dataclasses.fields(instance):
        checked_value(field.name, getattr(instance, field.name), field.type)


def described(kind: Any) -> str:
    """What an annotation allows, in words: "a list of strings or None"."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        return str(kind.__metadata__[0])
    if origin in {types.UnionType, typing.Union}:
        *most, last = [described(each) for each in inner]
        return f"{', '.join(most)} or {last}"
    if origin is Literal:
        return f"one of {', '.join(map(repr, inner))}"
    if origin is Sequence or inner[1:] == (...,):
        return f"a list of {_plural(inner[0])}"
    if origin is tuple:
        return f"a tuple of {_COUNTS.get(len(inner), len(inner))} {_plural(inner[0])}"
    kind = origin or kind
    return _SINGULAR.get(kind) or f"{'an' if kind.__name__[0] in 'AEIOU' else 'a'} {kind.__name__}"


def _plural(kind: Any) -> str:
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in {types.UnionType, typing.Union}:
        return " or ".join(_plural(each) for each in inner)
    if origin is Sequence:
        return f"lists of {_plural(inner[0])}"
    if origin is tuple:
        return described(kind).replace("a tuple", "tuples", 1)
    return _PLURAL.get(origin or kind) or f"{kind.__name__}s"


def _takes_texts(kind: Any) -> bool:
    if typing.get_origin(kind) is not Sequence:
        return False
    (item,) = typing.get_args(kind)
    return item is str or (isinstance(item, types.UnionType) and str in typing.get_args(item))


def _shown(value: Any) -> str:
    """A value in a line, however large it is."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"an array {[*value.shape]} of {value.dtype}"
    return " ".join(reprlib.repr(value).split())


class _Misfit(Exception):  # noqa: N818 - never seen by a caller
    def __init__(self, name: str, value: Any, kind: Any) -> None:
        super().__init__(name)
        self.name, self.value, self.kind = name, value, kind


def _fitted(name: str, value: Any, kind: Any) -> Any:
    """The value as its annotation says; raises _Misfit for the innermost that is wrong."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin is Annotated:
        return _named(name, value, kind)
    if origin in {types.UnionType, typing.Union}:
        return _first_fitted(name, value, kind)
    if origin is tuple and inner[-1] is not ...:
        if not isinstance(value, tuple) or len(value) != len(inner):
            raise _Misfit(name, value, kind)
        return tuple(_fitted(f"{name}[{n}]", *each) for n, each in enumerate(zip(value, inner, strict=True)))
    if origin in {Sequence, tuple}:
        items = _items(value)
        if items is None:
            raise _Misfit(name, value, kind)
        if all(type(item) is inner[0] for item in items):  # mostly, and a hundred times as fast
            return [*items]
        return [_fitted(f"{name}[{index}]", item, inner[0]) for index, item in enumerate(items)]
    if not _is_of(value, origin or kind, inner):
        raise _Misfit(name, value, kind)
    return operator.index(value) if kind is int else value


def _named(name: str, value: Any, kind: Any) -> Any:
    try:
        return _fitted(name, value, kind.__origin__)
    except _Misfit as misfit:
        raise misfit if misfit.name != name else _Misfit(name, value, kind) from None


def _first_fitted(name: str, value: Any, union: Any) -> Any:
    misfits = []
    for kind in typing.get_args(union):
        try:
            return _fitted(name, value, kind)
        except _Misfit as misfit:
            misfits.append(misfit)
    # A list in which one item is wrong is said to have that item, where the union has one kind of list.
    inside = [misfit for misfit in misfits if misfit.name != name]
    raise inside[0] if len(inside) == 1 else _Misfit(name, value, union)


def _is_of(value: Any, kind: Any, choices: tuple[Any, ...]) -> bool:
    is_bool = isinstance(value, bool) or getattr(value, "dtype", None) == "bool"
    if kind is Literal:
        return any(type(value) is type(choice) and value == choice for choice in choices)
    if kind is bool or is_bool:
        return kind is bool and is_bool
    if kind is int:
        try:
            operator.index(value)
        except TypeError:
            return False
        return True
    return callable(value) if kind is Callable else isinstance(value, Real if kind is float else kind)


def _items(value: Any) -> Sequence[Any] | None:
    """The items of what stands for a list; None of anything else."""
    if isinstance(value, _NO_LISTS):
        return None
    if isinstance(value, Sequence):
        return value
    try:  # an array or a column: items by position, whatever its [] means
        return [*value] if len(value) >= 0 else None
    except TypeError:
        return None
