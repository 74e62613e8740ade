"""onnxruntime-genai: its Generator loop, with `min_length` so that no row ends early."""

import json
from collections.abc import Callable, Sequence
from typing import Any

LIBRARY = "onnxruntime_genai"
PACKAGES = ("onnxruntime-genai", "onnxruntime", "numpy")


class Adapter:
    """A directory of its model builder."""

    def __init__(self, library: Any, path: str, options: dict[str, Any]) -> None:
        config = library.Config(path)
        threads = {"intra_op_num_threads": options["threads"]}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": threads}}}))
        self._library = library
        self._model = library.Model(config)

    def run(self, prompts: Sequence[Sequence[int]], gen_len: int, step: Callable[[], None]) -> list[list[int]]:
        """Generate greedily, every row to the same length."""
        length = len(prompts[0]) + gen_len
        params = self._library.GeneratorParams(self._model)
        params.set_search_options(do_sample=False, max_length=length, min_length=length, batch_size=len(prompts))
        generator = self._library.Generator(self._model, params)
        generator.append_tokens(list(prompts) if len(prompts) > 1 else list(prompts[0]))
        for _ in range(gen_len):
            generator.generate_next_token()
            step()
        return [list(generator.get_sequence(row))[-gen_len:] for row in range(len(prompts))]
