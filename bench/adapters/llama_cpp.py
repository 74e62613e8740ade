"""llama.cpp through llama-cpp-python's low-level calls: one batch of the prompts, then one token for each row."""

import ctypes
import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

LIBRARY = "llama_cpp"
PACKAGES = ("llama-cpp-python", "numpy")
_BATCH, _MICRO_BATCH = 2048, 512  # llama.cpp's own defaults


def server(path: str, options: dict[str, Any]) -> list[str]:
    """The command of llama-server, which scripts/prepare_rivals.py puts next to the Python."""
    context, threads = options["max_length"] * options["max_batch"], str(options["threads"])
    words = [str(Path(sys.executable).with_name("llama-server")), "--model", path, "--port", str(options["port"])]
    words += ["--host", "127.0.0.1", "--ctx-size", str(context), "--parallel", str(options["max_batch"])]
    return [*words, "--threads", threads, "--threads-batch", threads, "--no-webui"]


class Adapter:
    """A GGUF file. A call that needs a larger context creates a new one."""

    def __init__(self, library: Any, path: str, options: dict[str, Any]) -> None:
        self._library = library
        self._numpy = importlib.import_module("numpy")
        self._silence = library.llama_log_callback(lambda *_: None)
        library.llama_log_set(self._silence, ctypes.c_void_p(0))
        library.llama_backend_init()
        self._model = library.llama_model_load_from_file(path.encode(), library.llama_model_default_params())
        if not self._model:
            raise ValueError(f"llama.cpp cannot load {path}")
        self._vocab_size = library.llama_vocab_n_tokens(library.llama_model_get_vocab(self._model))
        params = library.llama_context_default_params()
        params.n_ctx, params.n_seq_max = options["max_length"] * options["max_batch"], options["max_batch"]
        params.n_batch, params.n_ubatch = _BATCH, _MICRO_BATCH
        params.n_threads = params.n_threads_batch = options["threads"]
        params.no_perf = True
        self._context = library.llama_init_from_model(self._model, params)
        self._batch = library.llama_batch_init(_BATCH, 0, 1)

    def run(self, prompts: Sequence[Sequence[int]], gen_len: int, step: Callable[[], None]) -> list[list[int]]:
        """Generate greedily, every row to the same length."""
        self._library.llama_memory_clear(self._library.llama_get_memory(self._context), True)
        said: list[list[int]] = [[self._prefill(row, prompt)] for row, prompt in enumerate(prompts)]
        step()
        for position in range(len(prompts[0]), len(prompts[0]) + gen_len - 1):
            self._decode([(ids[-1], position, row, True) for row, ids in enumerate(said)])
            for row, ids in enumerate(said):
                ids.append(self._likeliest(row))
            step()
        return said

    def _prefill(self, row: int, prompt: Sequence[int]) -> int:
        last = len(prompt) - 1
        for start in range(0, len(prompt), _BATCH):
            part = enumerate(prompt[start : start + _BATCH], start)
            self._decode([(token_id, position, row, position == last) for position, token_id in part])
        return self._likeliest(-1)

    def _decode(self, tokens: Sequence[tuple[int, int, int, bool]]) -> None:
        batch = self._batch
        batch.n_tokens = len(tokens)
        for index, (token_id, position, row, wants_logits) in enumerate(tokens):
            batch.token[index], batch.pos[index], batch.logits[index] = token_id, position, wants_logits
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, row
        if self._library.llama_decode(self._context, batch) != 0:
            raise ValueError(f"llama_decode failed on {len(tokens)} tokens")

    def _likeliest(self, index: int) -> int:
        logits = self._library.llama_get_logits_ith(self._context, index)
        return int(self._numpy.ctypeslib.as_array(logits, shape=(self._vocab_size,)).argmax())
