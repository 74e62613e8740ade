import base64
import hashlib
import re
import threading
import time

import pytest
from browser import Browser, is_installed
from toy_model import replying


def test_the_page_loads_nothing_foreign_and_only_its_own_script_may_run(live):
    status, headers, data = live(replying("x")).request("GET", "/")
    text = data.decode()
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", text)
    assert "http://" not in text
    assert "https://" not in text
    (script,) = re.findall("<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = headers["content-security-policy"]
    assert f"script-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy


def test_no_page_is_a_404(live):
    assert live(replying("x"), settings={"page": False}).request("GET", "/")[0] == 404


@pytest.mark.skipif(not is_installed(), reason="needs Debian's chromium")
def test_a_chat_in_a_real_browser_streams_stops_and_shows_its_speed(live, tmp_path):
    gate = threading.Event()
    slow = replying("hello no " * 5)

    def script(history):
        if len(history) > 40:  # in the second answer
            assert gate.wait(30)
        return slow(history)

    server = live(script)
    browser = Browser(tmp_path / "profile")
    try:
        browser.call("Page.navigate", url=f"http://127.0.0.1:{server.port}/")
        browser.until("document.querySelector('#model')?.value === 'toy'")
        browser.run("document.querySelector('#temperature').value = 0")
        say(browser, "hi")
        browser.until("document.querySelector('#log .figures') !== null")
        assert browser.run("document.querySelector('#log .assistant:not(.reasoning)').textContent") == "hello no " * 5
        assert "tokens/s, first token after" in browser.run("document.querySelector('#log .figures').textContent")
        browser.screenshot(tmp_path / "page.png")
        say(browser, "w" * 10)  # its answer hangs in the middle
        browser.until("document.querySelectorAll('#log .assistant')[3]?.textContent")
        until(lambda: server.thread().num_open == 1)
        browser.run("document.querySelector('#stop').click()")
        browser.until("document.querySelector('#stop').disabled")
        gate.set()
        until(lambda: server.thread().num_open == 0)
        assert browser.messages == []
    finally:
        gate.set()
        browser.close()


def say(browser, text):
    browser.run(f"document.querySelector('#text').value = {text!r}; document.querySelector('#form').requestSubmit()")


def until(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)
