"""What is refused, and how: one line that names the thing, before anything is written."""

import json
import shutil

import pytest
import torch
from checkpoints import edit_config, write_checkpoint
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer
from zoo import make

from piston.checkpoint.architectures import ARCHITECTURES
from piston.checkpoint.checkpoint import check_weights, load_config, load_model, locate
from piston.checkpoint.generation_defaults import GenerationDefaults
from piston.checkpoint.tokenizer import write_tokenizer
from piston.core.errors import CheckpointError, CheckpointNotFoundError, MisuseError, UnsupportedModelError
from piston.export import ExportOptions, export_model


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    directory = tmp_path_factory.mktemp("checkpoint")
    write_checkpoint(directory)
    return directory


@pytest.fixture
def checkpoint(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "checkpoint")


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


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("model.layers.0.self_attn.q_proj.bias", (64,)),  # attention_bias is false
        ("model.layers.2.mlp.up_proj.weight", (112, 64)),  # a layer more than the config says
        ("score.weight", (2, 64)),
    ],
)
def test_a_tensor_that_the_model_does_not_take_is_refused_by_name(checkpoint, tmp_path, name, shape):
    weights = load_file(checkpoint / "model.safetensors")
    weights[name] = torch.ones(shape)
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    assert name in refusal(checkpoint, tmp_path)


def test_buffers_that_older_checkpoints_store_are_no_surprise(tmp_path):
    write_checkpoint(tmp_path, "gpt2")
    weights = load_file(tmp_path / "model.safetensors")
    weights["transformer.h.0.attn.bias"] = torch.ones(1, 1, 96, 96).tril()
    weights["transformer.h.0.attn.masked_bias"] = torch.tensor(-1e4)
    weights["transformer.h.0.attn.rotary_emb.inv_freq"] = torch.ones(8)
    save_file(
        {name: tensor.half() if tensor.dim() == 2 else tensor for name, tensor in weights.items()},
        tmp_path / "model.safetensors",
        metadata={"format": "pt"},
    )
    load_model(locate(str(tmp_path)))


def test_an_adapter_beside_the_base_model_is_refused_with_the_remedy(checkpoint, tmp_path):
    (checkpoint / "adapter_config.json").write_text("{}")
    assert "merge" in refusal(checkpoint, tmp_path)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"sliding_window": 0, "model_type": "mistral", "architectures": ["MistralForCausalLM"]}, "sliding_window"),
        ({"num_attention_heads": 0}, "num_attention_heads"),
        ({"num_key_value_heads": 0}, "num_key_value_heads"),
        ({"num_key_value_heads": 3}, "k_proj"),
        ({"num_attention_heads": 5, "head_dim": None}, "multiple of the number of attention heads (5)"),
        ({"hidden_size": -64}, "hidden_size"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"num_hidden_layers": 10**9}, "1,000,000,000 layers"),
        ({"vocab_size": 10**9}, "embed_tokens"),
        ({"intermediate_size": 10**9}, "mlp"),
        ({"max_position_embeddings": 0}, "max_position_embeddings"),
        ({"max_position_embeddings": 10**9}, "--context"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": float("nan")}}, "rope_theta"),
        ({"rms_norm_eps": float("inf")}, "rms_norm_eps"),
    ],
)
def test_a_size_that_no_model_has_is_refused_before_weights_are_read(checkpoint, tmp_path, monkeypatch, changes, named):
    monkeypatch.setattr("piston.checkpoint.checkpoint.load_model", None)
    edit_config(checkpoint, **changes)
    assert named in refusal(checkpoint, tmp_path)


def test_a_context_whose_tables_would_take_gigabytes_is_misuse(checkpoint, tmp_path):
    with pytest.raises(MisuseError, match=r"--context 1000000000 would need a rotary table of 64\.0 GB"):
        export_model(checkpoint, tmp_path / "out", ExportOptions(context=10**9))


def test_learned_positions_beyond_the_stored_table_are_refused_before_weights_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr("piston.checkpoint.checkpoint.load_model", None)
    write_checkpoint(tmp_path / "gpt2", "gpt2")
    edit_config(tmp_path / "gpt2", n_positions=10**9)
    assert "wpe" in refusal(tmp_path / "gpt2", tmp_path)


def test_a_failure_of_transformers_own_forward_is_told_as_such(checkpoint, tmp_path, monkeypatch):
    from transformers import LlamaForCausalLM

    def fail(*_, **__):
        raise RuntimeError("shapes cannot be multiplied\nsecond line")

    monkeypatch.setattr(LlamaForCausalLM, "forward", fail)
    message = refusal(checkpoint, tmp_path)
    assert message == "transformers cannot run checkpoint itself: shapes cannot be multiplied"


def test_weights_that_hold_nan_are_told_before_anything_is_traced(checkpoint, tmp_path):
    weights = load_file(checkpoint / "model.safetensors")
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    assert "transformers itself answers NaN" in refusal(checkpoint, tmp_path)


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


def test_what_transformers_builds_counts_not_the_class_that_the_config_names(checkpoint, tmp_path):
    edit_config(checkpoint, model_type="mixtral")
    assert "MixtralForCausalLM" in refusal(checkpoint, tmp_path, UnsupportedModelError)


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


@pytest.mark.parametrize("changes", [{"model_max_length": {}}, {"chat_template": 3}], ids=str)
def test_a_tokenizer_that_opens_and_cannot_be_used_is_refused(checkpoint, tmp_path, changes):
    (checkpoint / "chat_template.jinja").unlink()
    path = checkpoint / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    assert "tokenizer of checkpoint cannot be used" in refusal(checkpoint, tmp_path)


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


@pytest.mark.parametrize("model_type", sorted(ARCHITECTURES.values()))
def test_what_transformers_saves_of_an_architecture_is_what_its_model_takes(tmp_path, model_type):
    make(model_type).save_pretrained(tmp_path)
    checkpoint = locate(str(tmp_path))
    assert check_weights(checkpoint, load_config(checkpoint))
    load_model(checkpoint)


def name_templates(checkpoint, **templates):
    """Several named chat templates, as transformers' own save writes them."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    tokenizer.chat_template = templates
    (checkpoint / "chat_template.jinja").unlink()
    tokenizer.save_pretrained(checkpoint)
    return AutoTokenizer.from_pretrained(checkpoint)


def template_written(checkpoint, out, **options):
    out.mkdir()
    place, defaults = (
        locate(str(checkpoint)),
        GenerationDefaults(eos_token_ids=(), bos_token_id=None, pad_token_id=None),
    )
    spec, _ = write_tokenizer(place, load_config(place), defaults, out, **options)
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
