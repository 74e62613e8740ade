import subprocess
import sys
from pathlib import Path

import pytest
from openai.types import completion_create_params
from openai.types.chat import completion_create_params as chat_create_params
from openai.types.responses import response_create_params

from piston.serving.fields import REFUSED, ChatRequest, CompletionRequest, ResponsesRequest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("kind", "params"),
    [
        (ChatRequest, chat_create_params.CompletionCreateParamsBase),
        (ChatRequest, chat_create_params.CompletionCreateParamsStreaming),
        (CompletionRequest, completion_create_params.CompletionCreateParamsBase),
        (CompletionRequest, completion_create_params.CompletionCreateParamsStreaming),
        (ResponsesRequest, response_create_params.ResponseCreateParamsBase),
    ],
)
def test_every_field_of_the_official_client_is_known(kind, params):
    assert {"model", "temperature", "stream_options"} <= params.__annotations__.keys()
    known = set(kind.__struct_fields__) | set(REFUSED[kind])
    assert set(params.__annotations__) - known == set()


@pytest.mark.parametrize("kind", REFUSED, ids=lambda kind: kind.__name__)
def test_no_field_is_both_supported_and_refused(kind):
    assert set(kind.__struct_fields__).isdisjoint(REFUSED[kind])


def test_the_table_in_the_docs_is_what_the_code_says():
    script = ROOT / "scripts/serving_fields.py"
    result = subprocess.run([sys.executable, script, "--check"], check=False)
    assert result.returncode == 0, "run scripts/serving_fields.py"
