"""CTranslate2: Generator.generate_batch with a callback; the type of the weights is that of the conversion."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

LIBRARY = "ctranslate2"
PACKAGES = ("ctranslate2", "numpy")


class Adapter:
    """A converted directory. It takes tokens as text, so ids are looked up in its vocabulary."""

    def __init__(self, library: Any, path: str, options: dict[str, Any]) -> None:
        self._tokens: list[str] = json.loads((Path(path) / "vocabulary.json").read_text(encoding="utf-8"))
        self._generator = library.Generator(path, device="cpu", intra_threads=options["threads"], inter_threads=1)

    def run(self, prompts: Sequence[Sequence[int]], gen_len: int, step: Callable[[], None]) -> list[list[int]]:
        """Generate greedily, every row to the same length."""
        said: list[list[int]] = [[] for _ in prompts]

        def took(result: Any) -> bool:
            said[result.batch_id].append(result.token_id)
            if all(len(row) == len(said[result.batch_id]) for row in said):
                step()
            return False

        self._generator.generate_batch(
            [[self._tokens[token_id] for token_id in prompt] for prompt in prompts],
            max_length=gen_len,
            min_length=gen_len,
            sampling_topk=1,
            include_prompt_in_result=False,
            callback=took,
        )
        return said
