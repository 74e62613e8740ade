"""The environment chat templates run in: Jinja's immutable sandbox with what Hugging Face adds, and bounds.

Templates come with checkpoints and are not trusted. These are bounded, with an error within about a second:

- time: CPU time, checked before every iteration of a `for`, every call and every filter;
- text: everything printed, and everything that loops repeat;
- values: results of `+`, `*`, `**`, `~`, calls and filters, and padding widths.

Not bounded are single steps of the interpreter: printing deeply nested lists, `replace` and `join` with results far
larger than their arguments, widths inside format strings. Run hostile templates in a process with a memory limit.
"""

import datetime as dt
import functools
import json
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NoReturn

from jinja2 import Environment, Template, TemplateError, TemplateRuntimeError, nodes, pass_environment
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from piston.runtime.text.chat_template import MARKS

_MAX_SECONDS = 1.0
_MAX_SIZE = 10_000_000  # characters of text, items of a list
_BIT_SIZE = 1_000  # weight of one bit of an integer: arithmetic on long integers is slow
_MAX_WIDTH = 100_000  # as MAX_RANGE of Jinja's sandbox

_ESCAPABLE = re.compile(f"[^\\x00-\\x7f{''.join(MARKS)}]")

# Filters that pad, repeat or loop as often as an argument states.
_WIDTH_FILTERS = frozenset({"batch", "center", "indent", "slice", "tojson"})


class Sandbox(ImmutableSandboxedEnvironment):
    """Compiles and runs one template at a time per thread.

    The caller must call `allowance.renew()` before rendering. Raises jinja2's `TemplateRuntimeError` beyond a bound.
    """

    intercepted_binops = frozenset({"+", "*", "**"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=["jinja2.ext.loopcontrols", _GenerationTag],
            finalize=_printed,
        )
        self.allowance = Allowance()
        del self.globals["lipsum"]  # prints any number of paragraphs
        self.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
        self.filters["tojson"] = _to_json
        self.filters = {name: self._bounded(name, function) for name, function in self.filters.items()}
        self.filters[_COUNTED] = self._count
        self.filters[_SIZED] = _sized

    def compile_template(self, source: str) -> Template:
        """Compile a template; its loops and `~` report to the allowance."""
        return self.from_string(_Instrument().visit(self.parse(source)))

    def literals(self, source: str) -> set[str]:
        """The pieces of text and the string constants in the source of a template."""
        tree = self.parse(source)
        constants = (node.value for node in tree.find_all(nodes.Const))
        texts = {node.data for node in tree.find_all(nodes.TemplateData)}
        return texts | {value for value in constants if isinstance(value, str)}

    def call(self, context: Context, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call for the template, within the bounds."""
        self.allowance.check_time()
        if isinstance(getattr(function, "__self__", None), str | bytes | int):  # 'x'.ljust(10**10)
            _check_widths([*args, *kwargs.values()])
        return _sized(super().call(context, function, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Compute an operator for the template, within the bounds."""
        if _size_of_result(operator, left, right) > _MAX_SIZE:
            raise TemplateRuntimeError(f"the result of {operator} has more than {_MAX_SIZE:,} characters or items")
        return super().call_binop(context, operator, left, right)

    def _bounded(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            self.allowance.check_time()
            if name in _WIDTH_FILTERS:
                _check_widths([*args, *kwargs.values()])
            return _sized(function(*args, **kwargs))

        return run

    def _count(self, items: Iterable[Any], text_len: int) -> Iterator[Any]:
        for item in items:
            self.allowance.check_time()
            self.allowance.spend(text_len)
            yield item


class Allowance(threading.local):
    """The remaining budget of a rendering; every thread has its own."""

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """Begin a rendering."""
        # Time of this thread: a busy machine does not make a harmless template fail.
        self._deadline = time.thread_time() + _MAX_SECONDS
        self._num_chars = _MAX_SIZE

    def check_time(self) -> None:
        """Stop a template that has run too long."""
        if time.thread_time() > self._deadline:
            raise TemplateRuntimeError(f"it ran for more than {_MAX_SECONDS:g} s")

    def spend(self, num_chars: int) -> None:
        """Stop a template that prints too much."""
        self._num_chars -= num_chars
        if self._num_chars < 0:
            raise TemplateRuntimeError(f"it printed more than {_MAX_SIZE:,} characters")


# Names that no template can write, so none can replace or avoid them.
_COUNTED = "loop items, counted"
_SIZED = "concatenation, sized"


class _Instrument(NodeTransformer):
    """Wraps loop iterables and results of `~` in the filters that bound them."""

    def visit_For(self, node: nodes.For) -> nodes.For:  # noqa: N802  jinja2 calls visitors after node classes
        self.generic_visit(node)
        text_len = sum(len(text.data) for text in node.find_all(nodes.TemplateData))
        arguments = [nodes.Const(text_len, lineno=node.lineno)]
        node.iter = nodes.Filter(node.iter, _COUNTED, arguments, [], None, None, lineno=node.lineno)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Filter:  # noqa: N802
        self.generic_visit(node)
        return nodes.Filter(node, _SIZED, [], [], None, None, lineno=node.lineno)


class _GenerationTag(Extension):
    """`{% generation %}`, which marks training text: here only its content is rendered."""

    tags = {"generation"}  # noqa: RUF012  as jinja2 declares it

    def parse(self, parser: Parser) -> nodes.Node:
        lineno = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=lineno)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,  # noqa: FBT001, FBT002  positional in templates
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,  # noqa: FBT001, FBT002
) -> str:
    """JSON as transformers writes it, NaN included: unlike Jinja's own, characters stay as they are."""
    dumps = json.dumps  # noqa: TID251
    text = dumps(value, ensure_ascii=False, indent=indent, separators=separators, sort_keys=sort_keys)
    # Marks are not escaped: the text between them is found by them.
    return _ESCAPABLE.sub(lambda match: dumps(match[0])[1:-1], text) if ensure_ascii else text


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime_now(format_: str) -> str:
    return dt.datetime.now().strftime(format_)  # noqa: DTZ005  local time, as transformers has it


@pass_environment
def _printed(environment: Environment, value: Any) -> str:
    assert isinstance(environment, Sandbox)
    text = str(value)
    environment.allowance.spend(len(text))
    return text


def _sized(value: Any) -> Any:
    if _size(value) > _MAX_SIZE:
        raise TemplateRuntimeError(f"a value has more than {_MAX_SIZE:,} characters or items")
    return value


def _size(value: Any) -> int:
    if isinstance(value, int):
        return value.bit_length() * _BIT_SIZE
    return len(value) if isinstance(value, str | bytes | list | tuple) else 0


def _size_of_result(operator: str, left: Any, right: Any) -> int:
    if operator == "**":
        return _size(left) * abs(right) if isinstance(left, int) and isinstance(right, int) else 0
    if operator == "*" and not (isinstance(left, int) and isinstance(right, int)):
        times = next((number for number in (left, right) if isinstance(number, int)), 0)
        return max(times, 0) * (_size(left) if times is right else _size(right))
    return _size(left) + _size(right)


def _check_widths(arguments: list[Any]) -> None:
    widest = max((number for number in arguments if isinstance(number, int)), default=0)
    if widest > _MAX_WIDTH:
        raise TemplateRuntimeError(f"{widest:,} is too wide: at most {_MAX_WIDTH:,}")
