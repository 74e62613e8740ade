import threading
import time

import pytest

from piston.core.errors import TemplateError
from piston.runtime.text import template_sandbox
from piston.runtime.text.chat_template import ChatTemplate
from piston.runtime.text.template_sandbox import Allowance

USER = {"role": "user", "content": "Hello"}
RANGE = "{% set r = range(99999) %}"
DOUBLE = "{% set ns = namespace(x=SEED) %}{% for _ in range(99) %}{% set ns.x = OP %}{% endfor %}"


def render(source, messages=(USER,)):
    return ChatTemplate(source, special_tokens={}).render(messages)


def doubling(seed, operation):
    return DOUBLE.replace("SEED", seed).replace("OP", operation)


def refused(message, sources):
    return [pytest.param(source, message, id=source[:60]) for source in sources]


@pytest.mark.parametrize(
    ("source", "message"),
    refused(
        "ran for more than 0.2 s",
        [
            RANGE + "{% for i in r %}{% for j in r %}{% endfor %}{% endfor %}",
            RANGE + "{% for i in [1] %}{% for j in r %}{% for k in r %}x{% endfor %}{% endfor %}{% endfor %}",
            RANGE + "{{ ([r] * 99999)|map('list')|map('length')|list }}",
            RANGE + "{{ ([r] * 99999)|map('sum')|sum }}",
            "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        ],
    )
    + refused(
        "more than 10,000,000 characters or items",
        [
            "{{ 'x' * 10**10 }}",
            "{{ 10**10 * 'x' }}",
            "{{ [1] * 10**10 }}",
            "{{ 9**(9**9) }}",
            doubling("3", "ns.x * ns.x"),
            doubling("'ab'", "ns.x + ns.x"),
            doubling("'ab'", "ns.x ~ ns.x"),
            doubling("'ab'", "ns.x|replace('a', 'aaaaaaaaa')"),
            doubling("'ab'", "ns.x.replace('a', 'aaaaaaaaa')"),
        ],
    )
    + refused(
        "printed more than 10,000,000 characters",
        [
            DOUBLE.replace("SEED", "'a'").replace(" = OP %}", " %}{{ ns.x }}{{ ns.x }}{% endset %}"),
            RANGE + "{% for i in r %}" + "y" * 9_999 + "{% endfor %}",
            RANGE + "{% set x %}{% for i in r %}" + "y" * 9_999 + "{% endfor %}{% endset %}",
            "{{ 'x' * 6000000 }}{{ 'x' * 6000000 }}",
        ],
    )
    + refused(
        "10,000,000,000 is too wide",
        [
            "{{ 'x'.ljust(10**10) }}",
            "{{ 'x'.expandtabs(tabsize=10**10) }}",
            "{{ 'x'|center(10**10) }}",
            "{{ 'x'|center(10000000000) }}",
            "{{ 'x'|indent(width=10**10, first=true) }}",
            "{{ ['x']|map('center', 10**10)|list }}",
            "{{ [1]|batch(10**10, 0)|list }}",
            "{{ [1]|slice(10**10)|list }}",
            "{{ messages|tojson(indent=10**10) }}",
            "{{ (1).to_bytes(10**10) }}",
        ],
    )
    + refused("Range too big", ["{% for i in range(10**9) %}{% endfor %}"])
    + refused("'lipsum' is undefined", ["{{ lipsum(10**6) }}"])
    + refused("recursion depth", ["{% for i in [1] recursive %}{{ loop([1, 1]) }}{% endfor %}"]),
)
def test_hostile_template_is_stopped_by_the_bound_it_breaks(source, message, monkeypatch):
    if message.startswith("ran"):
        monkeypatch.setattr(template_sandbox, "_MAX_SECONDS", 0.2)
    start = time.thread_time()
    with pytest.raises(TemplateError, match=message):
        render(source)
    assert time.thread_time() - start < 10


def test_compiling_computes_nothing_large():
    ChatTemplate("{{ 'x'|center(10000000000) }}{{ 'x' * 10**10 }}", special_tokens={})


def test_long_conversation_is_within_the_bounds():
    source = "{% for message in messages %}{{ message.role + ': ' + message.content|trim ~ eos }}{% endfor %}"
    assert render(source, [USER] * 10_000) == "user: Hello" * 10_000


def test_numbers_beyond_the_widest_width_are_ordinary_values():
    source = "{% macro show(n) %}{{ n }}{% endmacro %}{{ show(1700000000) }} {{ none|default(1700000000, true) }}"
    assert render(source) == "1700000000 1700000000"


@pytest.mark.parametrize("product", ["100000 * 'x'", "'x' * 100000", "[1] * 100000"])
def test_repetition_within_the_bounds_is_allowed(product):
    assert render("{{ (" + product + ")|length }}") == "100000"


def test_bounds_begin_anew_with_every_rendering():
    template = ChatTemplate("{{ 'x' * 6000000 }}", special_tokens={})
    for _ in range(3):
        assert len(template.render([USER])) == 6_000_000


def test_threads_spend_their_own_allowance():
    allowance = Allowance()
    thread = threading.Thread(target=allowance.spend, args=(9_000_000,))
    thread.start()
    thread.join()
    allowance.spend(9_000_000)


def test_template_serves_several_threads():
    template = ChatTemplate("{% for i in range(2000) %}{{ messages[0].content }}{% endfor %}", special_tokens={})
    texts = {}

    def work(name):
        texts[name] = template.render([{"role": "user", "content": name}])

    threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == {name: name * 2000 for name in "abcd"}
