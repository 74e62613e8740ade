"""What is refused, and how: one line that names the thing, before anything is written."""

import json
import shutil

import pytest
import torch
from checkpoints import write_checkpoint
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from piston.core.errors import CheckpointError, CheckpointNotFoundError, MisuseError, UnsupportedModelError
from piston.export import ExportOptions, export_model
from piston.export.checkpoint import load_config, load_model, locate, weights_dtype
from piston.export.tokenizer import write_tokenizer


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    directory = tmp_path_factory.mktemp("checkpoint")
    write_checkpoint(directory)
    return directory


@pytest.fixture
def checkpoint(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "checkpoint")


def edit_config(directory, **changes):
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refusal(source, tmp_path, kind=CheckpointError):
    out = tmp_path / "out"
    with pytest.raises(kind) as caught:
        export_model(source, out)
    assert not out.exists()
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".part")] == []
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_path_that_is_nowhere_is_no_checkpoint(tmp_path):
    assert "/nowhere" in refusal("/nowhere", tmp_path, CheckpointNotFoundError)


def test_a_hub_id_that_the_hub_does_not_give_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import huggingface_hub

    def fail(*_, **__):
        raise huggingface_hub.errors.LocalEntryNotFoundError("offline and not in the cache")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    message = refusal("someone/something", tmp_path, CheckpointNotFoundError)
    assert "someone/something" in message
    assert "offline" in message


def test_a_hub_id_is_loaded_from_the_downloaded_snapshot(checkpoint, tmp_path, monkeypatch):
    import huggingface_hub

    asked = {}

    def download(repo_id, **options):
        asked.update(options, repo_id=repo_id)
        return str(checkpoint)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    found = locate("someone/something", revision="v1")
    assert (found.name, found.directory) == ("someone/something", checkpoint)
    assert (asked["repo_id"], asked["revision"]) == ("someone/something", "v1")
    assert "*.py" not in asked["allow_patterns"]
    locate("someone/something", trust_remote_code=True)
    assert "*.py" in asked["allow_patterns"]


def test_a_revision_of_a_local_checkpoint_is_misuse(checkpoint):
    with pytest.raises(MisuseError, match="v1"):
        locate(str(checkpoint), revision="v1")


def test_an_empty_directory_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    assert "config.json" in refusal(tmp_path / "empty", tmp_path)


def test_a_directory_without_weights_is_refused(checkpoint, tmp_path):
    (checkpoint / "model.safetensors").unlink()
    assert "no weights" in refusal(checkpoint, tmp_path)


def test_a_missing_tensor_is_refused_by_name(checkpoint, tmp_path):
    weights = load_file(checkpoint / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    assert "model.layers.1.mlp.up_proj.weight" in refusal(checkpoint, tmp_path)


def test_a_tensor_of_wrong_shape_is_refused(checkpoint, tmp_path):
    weights = load_file(checkpoint / "model.safetensors")
    weights["model.norm.weight"] = torch.ones(3)
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    assert "model.norm.weight" in refusal(checkpoint, tmp_path)


@pytest.mark.parametrize("keep", [0, 5, 1000, 20_000])
def test_a_truncated_file_is_refused(checkpoint, tmp_path, keep):
    path = checkpoint / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    assert "cannot be read" in refusal(checkpoint, tmp_path)


def test_a_truncated_gguf_is_refused(demo_checkpoint, tmp_path):
    path = tmp_path / "short.gguf"
    path.write_bytes(demo_checkpoint.read_bytes()[:50_000])
    assert "cannot be read" in refusal(path, tmp_path)


def test_a_file_that_is_not_gguf_is_refused(tmp_path):
    path = tmp_path / "weights.bin"
    path.write_bytes(b"x")
    assert "not .gguf" in refusal(path, tmp_path)


def test_an_unknown_architecture_is_refused_by_name_with_what_works(checkpoint, tmp_path):
    edit_config(checkpoint, architectures=["MambaForCausalLM"])
    message = refusal(checkpoint, tmp_path, UnsupportedModelError)
    assert "MambaForCausalLM" in message
    assert "LlamaForCausalLM" in message


@pytest.mark.parametrize("architecture", ["MixtralForCausalLM", "Qwen3MoeForCausalLM", "GptOssForCausalLM"])
def test_a_mixture_of_experts_is_refused_by_name(checkpoint, tmp_path, architecture):
    edit_config(checkpoint, architectures=[architecture])
    assert architecture in refusal(checkpoint, tmp_path, UnsupportedModelError)


def test_a_config_of_garbage_is_refused(checkpoint, tmp_path):
    (checkpoint / "config.json").write_text("{")
    assert "config" in refusal(checkpoint, tmp_path)


def test_an_unknown_model_type_is_refused(checkpoint, tmp_path):
    edit_config(checkpoint, model_type="unheard_of")
    assert "unheard_of" in refusal(checkpoint, tmp_path)


def test_a_checkpoint_that_is_quantized_already_is_refused(checkpoint):
    edit_config(checkpoint, quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(CheckpointError, match="quantized already"):
        load_config(locate(str(checkpoint)))


def test_an_absent_tokenizer_is_refused(checkpoint, tmp_path):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (checkpoint / name).unlink(missing_ok=True)
    assert "no tokenizer" in refusal(checkpoint, tmp_path)


def test_a_damaged_tokenizer_is_refused(checkpoint, tmp_path):
    (checkpoint / "tokenizer.json").write_text('{"model": 3')
    assert "tokenizer" in refusal(checkpoint, tmp_path)


def test_code_in_a_checkpoint_does_not_run_unless_asked(checkpoint, tmp_path):
    edit_config(
        checkpoint,
        model_type="own_type",
        auto_map={"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"},
    )
    mark = tmp_path / "ran"
    (checkpoint / "own.py").write_text(f"open({str(mark)!r}, 'w').close()\nraise SystemExit\n")
    refusal(checkpoint, tmp_path)
    assert not mark.exists()
    with pytest.raises((CheckpointError, SystemExit)):
        export_model(checkpoint, tmp_path / "out", ExportOptions(trust_remote_code=True))
    assert mark.exists()


@pytest.mark.parametrize(
    ("dtype", "expected"), [(torch.float32, "float32"), (torch.float16, "float16"), (torch.bfloat16, "bfloat16")]
)
def test_the_stored_type_is_found(tmp_path, dtype, expected):
    write_checkpoint(tmp_path, dtype=dtype)
    checkpoint = locate(str(tmp_path))
    config = load_config(checkpoint)
    assert weights_dtype(checkpoint, config) == expected
    assert {parameter.dtype for parameter in load_model(checkpoint).parameters()} == {torch.float32}


def name_templates(checkpoint, **templates):
    """Several named chat templates, as transformers' own save writes them."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    tokenizer.chat_template = templates
    (checkpoint / "chat_template.jinja").unlink()
    tokenizer.save_pretrained(checkpoint)
    return AutoTokenizer.from_pretrained(checkpoint)


def template_written(checkpoint, out, **options):
    out.mkdir()
    spec = write_tokenizer(locate(str(checkpoint)), load_config(locate(str(checkpoint))), None, out, **options)
    assert spec.has_chat_template
    return (out / "chat_template.jinja").read_text(encoding="utf-8")


def test_named_chat_templates_without_a_default_one_are_refused_as_by_transformers(checkpoint, tmp_path):
    tokenizer = name_templates(checkpoint, tool_use="{{ 'tools' }}", rag="{{ 'rag' }}")
    with pytest.raises(ValueError, match=r"multiple chat templates with no default"):
        tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    message = refusal(checkpoint, tmp_path)
    assert "'rag', 'tool_use'; choose one of them with --chat-template NAME" in message
    assert template_written(checkpoint, tmp_path / "chosen", chat_template="rag") == "{{ 'rag' }}"


def test_of_named_chat_templates_the_default_one_is_taken_unless_another_is_asked_for(checkpoint, tmp_path):
    name_templates(checkpoint, default="{{ 'plain' }}", rag="{{ 'rag' }}")
    assert template_written(checkpoint, tmp_path / "plain") == "{{ 'plain' }}"
    assert template_written(checkpoint, tmp_path / "rag", chat_template="rag") == "{{ 'rag' }}"
    assert {"chat_template.jinja", "additional_chat_templates/rag.jinja"} <= locate(str(checkpoint)).hashes().keys()


def test_a_chat_template_that_is_not_there_is_misuse_naming_those_that_are(checkpoint, tmp_path):
    with pytest.raises(MisuseError, match=r"no chat template 'rag'; it has: 'default'"):
        template_written(checkpoint, tmp_path / "rag", chat_template="rag")
