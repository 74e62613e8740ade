import contextlib
import subprocess
import sys
from pathlib import Path

import pytest
from openai.types import completion_create_params, decision_create_params, embedding_create_params
from openai.types.chat import completion_create_params as chat_create_params
from openai.types.responses import response_create_params

from piston.core.tasks import task_module, task_names
from piston.serving import tasks
from piston.serving.errors import RequestError
from piston.serving.fields import read

ROOT = Path(__file__).parents[2]


ENDPOINTS = {
    f"{task} {path}": endpoint
    for task in task_names(tasks)
    for path, endpoint in task_module(tasks, task).ENDPOINTS.items()
}
COMMON = {"model", "temperature", "stream_options"}


@pytest.mark.parametrize(
    ("name", "params", "least"),
    [
        ("text-generation /v1/chat/completions", chat_create_params.CompletionCreateParamsBase, COMMON),
        ("text-generation /v1/chat/completions", chat_create_params.CompletionCreateParamsStreaming, COMMON),
        ("text-generation /v1/completions", completion_create_params.CompletionCreateParamsBase, COMMON),
        ("text-generation /v1/completions", completion_create_params.CompletionCreateParamsStreaming, COMMON),
        ("text-generation /v1/responses", response_create_params.ResponseCreateParamsBase, COMMON),
        ("text-generation /v1/decisions", decision_create_params.DecisionCreateParams, {"input", "questions"}),
        ("feature-extraction /v1/embeddings", embedding_create_params.EmbeddingCreateParams, {"input", "dimensions"}),
    ],
)
def test_every_field_of_the_official_client_is_known(name, params, least):
    assert least <= params.__annotations__.keys()
    known = set(ENDPOINTS[name].kind.__struct_fields__) | set(ENDPOINTS[name].refused)
    assert set(params.__annotations__) - known == set()


@pytest.mark.parametrize("name", ENDPOINTS)
def test_the_fields_of_a_request_can_be_read(name):
    with contextlib.suppress(RequestError):  # a field that is needed is missing
        read({}, ENDPOINTS[name].kind, {}, lenient=False)


@pytest.mark.parametrize("name", ENDPOINTS)
def test_no_field_is_both_supported_and_refused(name):
    assert set(ENDPOINTS[name].kind.__struct_fields__).isdisjoint(ENDPOINTS[name].refused)


# What clients send beyond OpenAI's fields: ChatCompletionRequest of vLLM 0.33.
VLLM = (
    "top_k min_p repetition_penalty ignore_eos min_tokens stop_token_ids include_stop_str_in_output "
    "skip_special_tokens chat_template_kwargs add_generation_prompt continue_final_message echo prompt_logprobs "
    "return_token_ids allowed_token_ids bad_words priority request_id cache_salt thinking_token_budget "
    "structured_outputs truncate_prompt_tokens use_beam_search length_penalty spaces_between_special_tokens "
    "documents chat_template include_reasoning return_tokens_as_token_ids"
)


def test_every_common_extension_of_vllm_is_known():
    endpoint = ENDPOINTS["text-generation /v1/chat/completions"]
    assert set(VLLM.split()) - set(endpoint.kind.__struct_fields__) - set(endpoint.refused) == set()


@pytest.mark.parametrize("name", ENDPOINTS)
def test_a_refused_field_is_refused_by_name_and_a_value_that_asks_for_nothing_is_not(name):
    endpoint = ENDPOINTS[name]
    for field, refused in endpoint.refused.items():
        with pytest.raises(RequestError, match=f"^{field} is not supported: ") as problem:
            read({field: object()}, endpoint.kind, endpoint.refused, lenient=False)
        assert (problem.value.status, problem.value.param) == (400, field)
        for value in refused.harmless:
            problem = None
            try:
                read({field: value}, endpoint.kind, endpoint.refused, lenient=False)
            except RequestError as other:
                problem = other
            assert problem is None or problem.param != field


def test_the_table_in_the_docs_is_what_the_code_says():
    script = ROOT / "scripts/serving_fields.py"
    result = subprocess.run([sys.executable, script, "--check"], check=False)
    assert result.returncode == 0, "run scripts/serving_fields.py"
