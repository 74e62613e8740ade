"""OpenVINO GenAI's continuous batching behind HTTP, for the benchmark alone. Run as a file by its own Python.

    python openvino_server.py MODEL '{"port": 8001, "threads": 2, "max_length": 768, "max_batch": 8}'

It has no server of its own but OpenVINO Model Server's. One thread steps the pipeline, each connection has its own. As
much of OpenAI's API is spoken as the benchmark asks for: GET /v1/models, and POST /v1/completions with token ids,
streamed, greedy, of exactly `max_tokens` tokens.
"""

import importlib
import itertools
import json
import queue
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_CACHE_GB = 1  # holds more than the rows of any load here


class Engine:
    """The pipeline, and the thread that steps it. Each answer is a queue of token ids, closed by None."""

    def __init__(self, path: str, options: dict[str, Any]) -> None:
        self._library = importlib.import_module("openvino_genai")
        self._tensor = importlib.import_module("openvino").Tensor
        self._numpy = importlib.import_module("numpy")
        config = self._library.SchedulerConfig()
        config.max_num_seqs, config.cache_size = options["max_batch"], _CACHE_GB
        config.enable_prefix_caching = True
        properties = {"INFERENCE_NUM_THREADS": options["threads"]}
        self._pipeline = self._library.ContinuousBatchingPipeline(path, config, "CPU", properties)
        self._tokenizer = self._pipeline.get_tokenizer()
        self._new: queue.SimpleQueue[tuple[list[int], int, queue.SimpleQueue[int | None]]] = queue.SimpleQueue()
        self._ids = itertools.count()
        threading.Thread(target=self._run, daemon=True).start()

    def submit(self, prompt: list[int], count: int) -> "queue.SimpleQueue[int | None]":
        """Begin an answer of `count` tokens."""
        answer: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._new.put((prompt, count, answer))
        return answer

    def text(self, token_ids: list[int]) -> str:
        """The text of tokens."""
        return str(self._tokenizer.decode(token_ids))

    def _run(self) -> None:
        running: list[tuple[Any, queue.SimpleQueue[int | None]]] = []
        while True:
            while not running or not self._new.empty():
                prompt, count, answer = self._new.get()
                config = self._library.GenerationConfig(max_new_tokens=count, ignore_eos=True, do_sample=False)
                ids = self._tensor(self._numpy.array([prompt], dtype=self._numpy.int64))
                running.append((self._pipeline.add_request(next(self._ids), ids, config), answer))
            self._pipeline.step()
            running = [item for item in running if not self._deliver(*item)]

    def _deliver(self, handle: Any, answer: "queue.SimpleQueue[int | None]") -> bool:
        """Pass on what a request has got; whether it has ended."""
        while handle.can_read():
            for output in handle.read().values():
                for token_id in output.generated_ids:
                    answer.put(int(token_id))
        if handle.get_status() == self._library.GenerationStatus.RUNNING:
            return False
        answer.put(None)
        return True


class Handler(BaseHTTPRequestHandler):
    """Speaks HTTP/1.1 and closes each connection."""

    engine: Engine
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answer with the one model."""
        body = b'{"object":"list","data":[{"id":"openvino","object":"model"}]}'
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        """Stream an answer, one event a token."""
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        answer, said = self.engine.submit(asked["prompt"], asked["max_tokens"]), 0
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.send_header("Connection", "close")
        self.end_headers()
        while (token_id := answer.get()) is not None:
            said += 1
            self._event({"choices": [{"index": 0, "text": self.engine.text([token_id]) or " "}]})
        usage = {"prompt_tokens": len(asked["prompt"]), "completion_tokens": said}
        self._event({"choices": [], "usage": usage})
        self._chunk(b"data: [DONE]\n\n")
        self._chunk(b"")

    def log_message(self, *_: Any) -> None:
        """Nothing is logged."""

    def _event(self, data: dict[str, Any]) -> None:
        self._chunk(b"data: " + json.dumps(data).encode() + b"\n\n")

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))


if __name__ == "__main__":
    settings = json.loads(sys.argv[2])
    Handler.engine = Engine(sys.argv[1], settings)
    ThreadingHTTPServer(("127.0.0.1", settings["port"]), Handler).serve_forever()
