import base64
import hashlib
import os
import re
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from browser import Browser, is_installed
from embedded import CLS, SEP, A, B, C, answerer, classifier, embedder, reranker, tagger
from toy_model import replying, toy_model


def test_the_page_loads_nothing_foreign_and_only_its_own_script_may_run(live):
    status, headers, data = live(replying("x")).request("GET", "/")
    text = data.decode()
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", text)
    assert "http://" not in text
    assert "https://" not in text
    (script,) = re.findall("<script>(.+?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = headers["content-security-policy"]
    assert f"script-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy


def test_no_page_is_a_404(live):
    assert live(replying("x"), settings={"page": False}).request("GET", "/")[0] == 404


needs_chromium = pytest.mark.skipif(not is_installed(), reason="needs Debian's chromium")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("chromium") / "profile")
    yield browser
    browser.close()


@pytest.fixture
def visit(browser):
    """visit(server): open its page; at the end nothing was on the console, and the policy stopped nothing."""

    def go(server):
        browser.messages.clear()
        browser.call("Page.navigate", url=f"http://127.0.0.1:{server.port}/")
        browser.until("document.querySelector('#model')?.value")
        return browser

    yield go
    assert browser.messages == []


def shot(browser, tmp_path, name):
    """A picture of the page, for people: kept where PISTON_SCREENSHOTS says."""
    directory = Path(os.environ.get("PISTON_SCREENSHOTS", tmp_path))
    browser.screenshot(directory / f"{name}.png")
    assert (directory / f"{name}.png").stat().st_size > 5000


@needs_chromium
def test_a_chat_in_a_real_browser_streams_stops_and_shows_its_speed(live, visit, tmp_path):
    gate = threading.Event()
    slow = replying("hello no " * 5)

    def script(history):
        if len(history) > 40:  # in the second answer
            assert gate.wait(30)
        return slow(history)

    server = live(script)
    browser = visit(server)
    try:
        browser.run("document.querySelector('#temperature').value = 0")
        say(browser, "hi")
        browser.until("document.querySelector('#log .figures') !== null")
        assert browser.run("document.querySelector('#log .assistant:not(.reasoning)').textContent") == "hello no " * 5
        assert "tokens/s, first token after" in browser.run("document.querySelector('#log .figures').textContent")
        shot(browser, tmp_path, "chat")
        say(browser, "w" * 10)  # its answer hangs in the middle
        browser.until("document.querySelectorAll('#log .assistant')[3]?.textContent")
        until(lambda: server.thread().num_open == 1)
        browser.run("document.querySelector('#stop').click()")
        browser.until("document.querySelector('#stop').disabled")
        gate.set()
        until(lambda: server.thread().num_open == 0)
    finally:
        gate.set()


@needs_chromium
def test_the_page_has_the_jobs_of_each_loaded_bundle(live, visit, tmp_path):
    server = live(None, models=[("toy", toy_model(replying("B"))), ("embed", embedder())])
    browser = visit(server)
    assert tabs(browser) == ["Chat", "Decide"]
    click(browser, "#jobs button:nth-child(2)")
    browser.run("document.querySelector('#decide textarea').value = 'w'")
    click(browser, "#decide button")
    browser.until("document.querySelectorAll('#decide tr').length === 3")
    assert browser.run("document.querySelector('#decide th').textContent") == "billing"  # the letter B
    shot(browser, tmp_path, "decide")
    browser.run("document.querySelector('#model').value = 'embed'")
    browser.run("document.querySelector('#model').dispatchEvent(new Event('change'))")
    assert tabs(browser) == ["Compare texts"]
    browser.run("document.querySelector('#embed textarea').value = 'a b\\nb a\\na b c'")
    click(browser, "#embed button")
    browser.until("document.querySelectorAll('#embed tr').length === 4")
    cells = "[...document.querySelectorAll('#embed tr:nth-child(2) td')].map((cell) => cell.textContent)"
    one, other = ([len(ids), sum(ids), 2] for ids in ([CLS, A, B, SEP], [CLS, A, B, C, SEP]))
    cosine = np.dot(one, other) / np.linalg.norm(one) / np.linalg.norm(other)
    assert browser.run(cells) == ["1.000", "1.000", f"{cosine:.3f}"]
    shot(browser, tmp_path, "compare")


@needs_chromium
@pytest.mark.parametrize(
    ("make", "job", "expected"),
    [
        (classifier, "classify", ["a a ba-ish73.1 %", "ca-ish50.0 %"]),
        (reranker, "rank", ["a a0.953", "b0.731"]),
        (answerer, "find", ["c"]),
        (tagger, "tag", ["aA", "bB"]),
    ],
)
def test_each_task_of_encoders_has_its_job(live, visit, tmp_path, make, job, expected):
    browser = visit(live(None, models=[("toy", make())]))
    assert len(tabs(browser)) == 1
    fill = {"classify": "a a b\\nc", "rank": "b\\na a", "find": "b a c b", "tag": "a c b"}[job]
    browser.run(f"document.querySelector('#{job} input')?.setAttribute('value', 'a')")
    browser.run(f"document.querySelector('#{job} textarea').value = '{fill}'")
    click(browser, f"#{job} button")
    browser.until(f"document.querySelector('#{job} table') !== null")
    rows = browser.run(f"[...document.querySelectorAll('#{job} tr')].map((row) => row.textContent)")
    assert len(rows) == len(expected)
    assert all(row.startswith(start) for row, start in zip(rows, expected, strict=True)), rows
    shot(browser, tmp_path, job)


@needs_chromium
def test_what_a_job_is_refused_for_is_shown(live, browser):
    server = live(None, models=[("embed", embedder())])
    browser.call("Page.navigate", url=f"http://127.0.0.1:{server.port}/")
    browser.until("document.querySelector('#model')?.value === 'embed'")
    browser.run("document.querySelector('#embed textarea').value = 'a a a a a a a a'")
    click(browser, "#embed button")
    browser.until("document.querySelector('#embed .error') !== null")
    assert "has 10 tokens" in browser.run("document.querySelector('#embed .error').textContent")


@needs_chromium
def test_with_an_api_key_the_page_asks_for_it(live, browser):
    server = live(replying("x"), settings={"api_keys": ("one",)})
    browser.call("Page.navigate", url=f"http://127.0.0.1:{server.port}/")
    browser.until("document.querySelector('#none')?.textContent.includes('API key')")
    assert browser.run("document.querySelector('#options').open && !document.querySelector('#options').hidden")
    browser.run("document.querySelector('#key').value = 'one'")
    browser.run("document.querySelector('#key').dispatchEvent(new Event('change'))")
    browser.until("document.querySelector('#model').value === 'toy'")
    assert browser.run("document.querySelector('#none').hidden")


def tabs(browser):
    return browser.run("[...document.querySelectorAll('#jobs button')].map((tab) => tab.textContent)")


def click(browser, selector):
    browser.run(f"document.querySelector({selector!r}).click()")


def say(browser, text):
    browser.run(f"document.querySelector('#text').value = {text!r}; document.querySelector('#form').requestSubmit()")


def until(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)
