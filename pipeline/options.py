"""Options of the verbs as tables of a recipe: a table takes what the verb's command line takes."""

import argparse
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from piston.core.errors import Error, MissingExtraError, MisuseError
from piston.core.schema import Path, SchemaError

JUDGED = ("eval", "bench")  # verbs whose gates `piston make` judges itself
# Options that `piston make` sets itself, that make no sense in an unattended run, or that write a file which would be
# missing where the stage is taken from the cache.
RESERVED = frozenset(
    {"help", "output", "overwrite", "quiet", "json", "html", "report", "fail_on", "debug", "junit", "markdown"}
    | {"cache_dir", "no_cache", "save_recipe", "recipe", "log_format", "checkpoint"}
    | {
        "serve",
        "concurrency",
        "rate",
        "requests",
        "shared_prefix",
        "long_prompt",
        "slo",
        "engine",
    }  # servers under load
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One option of a verb."""

    flag: str
    kind: str  # "boolean", "integer", "number" or "string"
    is_list: bool
    choices: tuple[Any, ...]
    help: str

    def check(self, value: object, path: Path) -> None:
        """Raise SchemaError for a value that the command line would refuse."""
        if self.is_list:
            if not isinstance(value, list) or not value:
                raise SchemaError(f"{'.'.join(map(str, path))} must be a list that is not empty", path)
            for index, item in enumerate(value):
                self._check_one(item, (*path, index))
        else:
            self._check_one(value, path)

    def _check_one(self, value: object, path: Path) -> None:
        name = ".".join(map(str, path))
        types: dict[str, tuple[type, ...]] = {
            "boolean": (bool,),
            "integer": (int,),
            "number": (int, float),
            "string": (str,),
        }
        expected = types[self.kind]
        is_wrong = isinstance(value, bool) != (self.kind == "boolean") or not isinstance(value, expected)
        if is_wrong or (isinstance(value, int | float) and value < 0):
            raise SchemaError(f"{name} is {value!r:.80}; it must be a {self.kind}", path)
        if self.choices and value not in self.choices:
            raise SchemaError(f"{name} is {value!r:.80}; it must be one of {', '.join(map(str, self.choices))}", path)

    def words(self, value: Any) -> list[str]:
        """The option as words of a command line."""
        if self.kind == "boolean":
            return [self.flag] if value else []
        # One word: a value may begin with a dash.
        return [f"{self.flag}={item}" for item in (value if self.is_list else [value])]


def module_of(verb: str) -> Any:
    """The module of a verb's command line; raises ImportError where its packages are not installed."""
    from piston.cli.main import VERBS

    return importlib.import_module(VERBS[verb][0])


def options_of(verb: str) -> dict[str, Option]:
    """The options of a verb by their names in a recipe, where dashes are underscores.

    Raises:
        MissingExtraError: the verb's packages are not installed.
    """
    parser = argparse.ArgumentParser(add_help=False)
    try:
        module_of(verb).add_arguments(parser)
    except ImportError as problem:
        raise MissingExtraError(f"`piston {verb}` needs {problem.name}; pip install 'piston[{verb}]'.") from None
    found = {action.dest: _option(action) for action in parser._actions if action.option_strings}  # noqa: SLF001
    return {
        name: option
        for name, option in found.items()
        if name not in RESERVED and (name != "require" or verb not in JUDGED)
    }


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise MisuseError(message)


def arguments_of(verb: str, table: Mapping[str, Any]) -> argparse.Namespace:
    """A table as the verb reads its command line.

    Raises:
        MisuseError: the verb needs another option, or cannot read a value.
    """
    parser = _Parser(add_help=False)
    module_of(verb).add_arguments(parser)
    output = ["--output=OUTPUT"] if "--output" in parser._option_string_actions else []  # noqa: SLF001
    return parser.parse_args([*words_of(verb, table), *output, "--", "INPUT"])


def check_table(verb: str, table: Mapping[str, Any]) -> None:
    """Raise SchemaError for an option or a value that the verb does not have."""
    from piston.cli.main import VERBS

    if verb not in VERBS:
        raise SchemaError(f"this version of Piston has no verb {verb}", (verb,))
    known = options_of(verb)
    for name, value in table.items():
        if name not in known:
            raise SchemaError(f"unknown field {verb}.{name}; it has {', '.join(sorted(known))}", (verb, name))
        known[name].check(value, (verb, name))
    try:
        arguments_of(verb, table)
    except MisuseError as problem:
        raise SchemaError(f"[{verb}] cannot be run: {problem}", (verb,)) from None


def words_of(verb: str, table: Mapping[str, Any]) -> list[str]:
    """A table as the words of a command line, in the order of the names."""
    known = options_of(verb)
    return [word for name in sorted(table) for word in known[name].words(table[name])]


def _option(action: argparse.Action) -> Option:
    flag = next(word for word in action.option_strings if word.startswith("--"))
    is_flag = action.nargs == 0
    is_list = isinstance(action, argparse._AppendAction) or action.nargs in {"+", "*"}  # noqa: SLF001
    if is_list and action.nargs is not None:
        raise Error(f"{flag} takes several words at once, which a recipe cannot express.")
    kind = "boolean" if is_flag else {int: "integer", float: "number"}.get(action.type, "string")  # type: ignore[call-overload]
    return Option(
        flag=flag,
        kind=kind,
        is_list=is_list,
        choices=tuple(action.choices or ()),
        help=(action.help or "").replace("%%", "%"),
    )
