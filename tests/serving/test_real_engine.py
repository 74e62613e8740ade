"""A real two-layer Llama on ONNX Runtime behind HTTP: tokens are those of the torch module, whoever asks beside."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from toy_model import byte_tokenizer, manifest_of

from piston.runtime.backends.kv_cache import KVCache
from piston.runtime.backends.ort_cpu import OrtEngine, OrtOptions, open_session
from piston.runtime.model import LanguageModel

NUM_TOKENS = 12


def test_eight_clients_at_once_get_the_tokens_of_the_torch_module(live, toy_llama):
    torch = pytest.importorskip("torch")
    prompts = [[(7 * row + 5 * position) % 90 + 10 for position in range(3 + 4 * row)] for row in range(8)]
    module, tokenizer = toy_llama.make(), byte_tokenizer()
    expected = []
    for prompt in prompts:
        ids = list(prompt)
        for _ in range(NUM_TOKENS):
            with torch.no_grad():
                ids.append(int(module(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
        expected.append([spelt(tokenizer.token_bytes(token_id)) for token_id in ids[len(prompt) :]])
    engine = OrtEngine(open_session(toy_llama.path, OrtOptions(threads=1)), KVCache(toy_llama.spec, 3, 64), 512)
    server = live(None, models=[("toy", LanguageModel(manifest_of(), engine, tokenizer))], settings={"max_stall": 1e-4})

    def ask(prompt):
        body = {"model": "toy", "prompt": prompt, "temperature": 0, "max_tokens": NUM_TOKENS, "ignore_eos": True}
        status, answer = server.post("/v1/completions", body | {"logprobs": 1})
        assert status == 200
        return answer["choices"][0]["logprobs"]["tokens"]

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, prompts)) == expected


def spelt(data):
    """Part of a character as OpenAI writes it."""
    return data.decode() if data.decode(errors="ignore") or not data else f"bytes:\\x{data.hex()}"
