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


def test_the_table_in_the_docs_is_what_the_code_says():
    script = ROOT / "scripts/serving_fields.py"
    result = subprocess.run([sys.executable, script, "--check"], check=False)
    assert result.returncode == 0, "run scripts/serving_fields.py"
