"""transformers, eager: a forward pass of the prompts, then of one token for each row, on a DynamicCache."""

import importlib
from collections.abc import Callable, Sequence
from typing import Any

LIBRARY = "transformers"
PACKAGES = ("transformers", "torch", "numpy")


class Adapter:
    """A Hugging Face directory."""

    def __init__(self, library: Any, path: str, options: dict[str, Any]) -> None:
        self._torch = importlib.import_module("torch")
        self._torch.set_num_threads(options["threads"])
        self._model = library.AutoModelForCausalLM.from_pretrained(path).eval()

    def run(self, prompts: Sequence[Sequence[int]], gen_len: int, step: Callable[[], None]) -> list[list[int]]:
        """Generate greedily, every row to the same length."""
        ids, past, said = self._torch.tensor([list(prompt) for prompt in prompts]), None, []
        with self._torch.inference_mode():
            for _ in range(gen_len):
                out = self._model(input_ids=ids, past_key_values=past, use_cache=True, logits_to_keep=1)
                ids, past = out.logits[:, -1:].argmax(-1), out.past_key_values
                said.append(ids[:, 0].tolist())
                step()
        return [list(row) for row in zip(*said, strict=True)]
