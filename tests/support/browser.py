"""A headless Chromium, driven over its debugging pipe."""

import base64
import contextlib
import json
import os
import shutil
import subprocess
import time


class Browser:
    """One page. `run` evaluates JavaScript in it; `messages` holds what its console and policy said."""

    def __init__(self, directory):
        reading, write = os.pipe()
        read, writing = os.pipe()

        # The pipe's ends are file descriptors 3 and 4 of the browser.
        words = [
            "bash",
            "-c",
            f'exec "$@" 3<&{reading} 4>&{writing}',
            "bash",
            "chromium",
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
        ]
        words += ["--remote-debugging-pipe", f"--user-data-dir={directory}", "--window-size=900,800", "about:blank"]
        self._process = subprocess.Popen(
            words, pass_fds=(reading, writing), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(reading)
        os.close(writing)
        self._in, self._out = os.fdopen(write, "wb", 0), os.fdopen(read, "rb", 0)
        self._held, self._number, self._session, self.messages = b"", 0, None, []
        (page,) = [item for item in self.call("Target.getTargets")["targetInfos"] if item["type"] == "page"]
        attached = self.call("Target.attachToTarget", targetId=page["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method, **parameters):
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        self._in.write(json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]
            level = answer.get("params", {}).get("entry", {}).get("level")
            if answer.get("method") == "Runtime.exceptionThrown" or level in ("warning", "error"):
                self.messages.append(answer["params"])

    def _read(self):
        while b"\0" not in self._held:
            data = self._out.read(1 << 16)
            assert data, "the browser has ended"
            self._held += data
        data, _, self._held = self._held.partition(b"\0")
        return json.loads(data)

    def run(self, code):
        result = self.call("Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def until(self, code, seconds=30):
        end = time.monotonic() + seconds
        while not self.run(code):
            assert time.monotonic() < end, code
            time.sleep(0.05)

    def screenshot(self, path):
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

    def close(self):
        with contextlib.suppress(Exception):
            self._session = None
            self.call("Browser.close")
        self._process.kill()
        self._process.wait(10)
        self._in.close()
        self._out.close()


def is_installed():
    return shutil.which("chromium") is not None
