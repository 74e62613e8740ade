import json
import os
import re
import subprocess
import sys
from importlib.metadata import version

import pytest
from toy_model import edit_manifest, write_bundle

from piston.cli.main import VERBS, main

PROMPT = ("--prompt", "hi", "--max-tokens", "8")
BLOCK = "import sys\nfor name in {names!r}: sys.modules[name] = None\n"
BLOCK += "from piston.cli.main import main\nsys.exit(main({words!r}))"


def without(names, *words):
    code = BLOCK.format(names=names, words=[str(word) for word in words])
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("words", [["--help"], ["run", "--help"], ["chat", "--help"], ["inspect", "--help"]])
def test_help_is_a_result(piston, words):
    result = piston(*words)
    assert result.status == 0
    assert result.out.startswith("usage: piston")
    assert result.err == ""


def test_help_lists_every_verb(piston):
    out = piston("--help").out
    assert all(re.search(rf"^ +{verb}\b", out, re.MULTILINE) for verb in VERBS)


def test_version_is_that_of_the_package(piston):
    assert piston("--version").out == f"piston {version('piston')}\n"


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ([], "VERB"),
        (["frobnicate"], "frobnicate"),
        (["--frobnicate"], "VERB"),
        (["run"], "BUNDLE"),
        (["run", "B"], "--prompt"),
        (["run", "B", "--prompt", "hi", "--frobnicate"], "--frobnicate"),
        (["run", "B", "--prompt", "hi", "--max-tok", "3"], "--max-tok"),
        (["run", "B", "--prompt", "hi", "--prompt-file", "f"], "--prompt-file"),
        (["run", "B", "--prompt"], "--prompt"),
        (["run", "B", "--prompt", "hi", "--max-tokens", "many"], "many"),
        (["run", "B", "C", "--prompt", "hi"], "C"),
        (["chat"], "BUNDLE"),
        (["inspect", "--json"], "PATH"),
    ],
)
def test_a_command_line_that_does_not_parse_is_misuse(refused, words, named):
    status, message = refused(*words)
    assert status == 2
    assert named in message


@pytest.mark.parametrize("verb", ["run", "inspect"])
def test_a_wrong_option_says_where_help_is(refused, verb):
    assert f"piston {verb} --help" in refused(verb, "B", "--frobnicate")[1]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--max-tokens", "0"], "max_tokens is 0; it must be an integer of at least 1"),
        (["--max-tokens", "-3"], "max_tokens is -3"),
        (["--temperature", "-1"], "temperature is -1.0"),
        (["--temperature", "nan"], "temperature is nan"),
        (["--top-p", "2"], "top_p is 2.0"),
        (["-n", "2"], "n is 2 at temperature 0"),
        (["--logit-bias", "x"], "--logit-bias 'x' must be ID=BIAS"),
        (["--logprobs"], "--json"),
        (["--system", "x"], "--chat"),
        (["--stop", ""], "stop is"),
        (["--max-batch", "0"], "max_batch is 0"),
        (["--max-length", "0"], "max_length 0"),
        (["--max-length", "97"], "max_length is 97, but the engine was built for 96"),
    ],
)
def test_an_option_out_of_range_is_misuse(refused, bundle, options, named):
    status, message = refused("run", bundle, "--prompt", "hi", *options)
    assert status == 2
    assert named in message


def test_an_option_out_of_range_is_told_before_anything_is_loaded(refused, tmp_path):
    assert "max_tokens" in refused("run", tmp_path / "nowhere", "--prompt", "hi", "--max-tokens", "0")[1]


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_an_empty_prompt_is_misuse(piston, bundle, options):
    result = piston("run", bundle, "--prompt", "", "--max-tokens", "8", *options)
    assert result.status == 2
    assert result.err == "error: The prompt has no tokens; give at least one character.\n"
    assert result.out.strip() == ""


def test_a_prompt_beyond_the_capacity_is_misuse_with_both_numbers(refused, bundle):
    status, message = refused("run", bundle, "--prompt", "x" * 100, "--max-tokens", "8")
    assert status == 2
    assert "has 100 tokens" in message
    assert "holds 96" in message


def test_memory_that_the_machine_does_not_have_is_a_failure_on_one_line(refused, bundle, monkeypatch):
    def exhausted(arguments):
        raise MemoryError("Unable to allocate 149. TiB.")

    monkeypatch.setattr("piston.cli.inspect.run", exhausted)
    told = "Out of memory: Unable to allocate 149. TiB; free some, or use a machine with more."
    assert refused("inspect", bundle) == (1, told)


def test_a_missing_bundle_is_a_failure(refused, tmp_path):
    status, message = refused("run", tmp_path / "nowhere", *PROMPT)
    assert status == 1
    assert str(tmp_path / "nowhere") in message


def test_an_error_about_a_name_with_a_newline_is_one_line(refused, tmp_path):
    assert "no where" in refused("inspect", tmp_path / "no\nwhere")[1]


@pytest.mark.parametrize("verb", [("run", *PROMPT), ("chat",), ("inspect",)])
@pytest.mark.parametrize("name", ["tokenizer.json", "chat_template.jinja", "ort-cpu/model.onnx"])
def test_a_changed_byte_is_a_failure_that_names_the_file(refused, bundle, verb, name):
    data = (bundle / name).read_bytes()
    (bundle / name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    status, message = refused(verb[0], bundle, *verb[1:])
    assert status == 1
    assert name in message


def test_a_missing_file_is_a_failure_that_names_it(refused, bundle):
    (bundle / "tokenizer.json").unlink()
    assert refused("run", bundle, *PROMPT) == (1, f"{bundle} lacks tokenizer.json; copy it whole or make it again.")


def test_a_newer_schema_is_a_failure(refused, bundle):
    edit_manifest(bundle, lambda data: data.update(schema=7))
    status, message = refused("run", bundle, *PROMPT)
    assert status == 1
    assert "schema 7" in message


def test_a_damaged_tokenizer_is_a_failure_that_names_it(refused, bundle):
    (bundle / "tokenizer.json").write_text("{}")
    edit_manifest(bundle, lambda data: data["files"].pop("tokenizer.json"))
    status, message = refused("run", bundle, *PROMPT)
    assert status == 1
    assert "tokenizer.json" in message


@pytest.mark.parametrize("template", ["{{ raise_exception('no\nsuch\nthing') }}", "{% if %}", "{{ 1 / 0 }}"])
def test_a_template_that_fails_is_a_failure_on_one_line(refused, tmp_path, template):
    write_bundle(tmp_path / "bundle", template=template)
    status, message = refused("run", tmp_path / "bundle", "--chat", *PROMPT)
    assert status == 1
    assert message.startswith("Chat template")


def test_a_broken_engine_is_a_failure(bundle, capsys):
    pytest.importorskip("onnxruntime")
    assert main(["run", str(bundle), *PROMPT]) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ONNX Runtime failed while loading")
    assert err.count("\n") == 1


@pytest.mark.parametrize("verb", ["export", "build"])
def test_an_output_that_exists_is_misuse(refused, bundle, tmp_path, verb):
    pytest.importorskip("torch")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/file").write_text("")
    target = ["--target", "ort-cpu"] if verb == "build" else []
    status, message = refused(verb, bundle, "-o", tmp_path / "out", *target)
    assert status == 2
    assert "--overwrite" in message


def test_a_file_that_cannot_be_read_is_named(refused, bundle, tmp_path):
    status, message = refused("run", bundle, "--prompt-file", tmp_path / "nowhere.txt")
    assert status == 2
    assert "nowhere.txt" in message


def test_an_interrupt_ends_without_traceback(piston, bundle):
    def script(history):
        raise KeyboardInterrupt

    result = piston("run", bundle, *PROMPT, script=script)
    assert result.status == 130
    assert result.err == "interrupted\n"


def test_debug_shows_the_traceback(tmp_path):
    words = [sys.executable, "-m", "piston.cli.main", "inspect", str(tmp_path), "--debug"]
    result = subprocess.run(words, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.startswith("Traceback")
    assert "BundleNotFoundError" in result.stderr


def test_the_installed_command_has_no_traceback(tmp_path):
    words = [sys.executable, "-m", "piston.cli.main", "inspect", str(tmp_path)]
    result = subprocess.run(words, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.startswith(f"error: No manifest.json in {tmp_path}")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("variables", "is_red"),
    [
        ({}, False),
        ({"FORCE_COLOR": "1"}, True),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False),
        ({"NO_COLOR": ""}, False),
    ],
)
def test_the_word_error_is_red_only_where_wanted(piston, tmp_path, monkeypatch, variables, is_red):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    err = piston("inspect", tmp_path).err
    assert err.startswith("\x1b[31merror:\x1b[0m " if is_red else "error: ")


def test_json_is_one_object_and_nothing_else(piston, bundle):
    result = piston("run", bundle, "--json", *PROMPT)
    assert (result.status, result.err) == (0, "")
    assert isinstance(json.loads(result.out), dict)


def test_a_reader_who_leaves_ends_the_command_quietly(bundle):
    code = "import sys; from piston.cli.main import main; sys.exit(main(sys.argv[1:]))"
    words = [sys.executable, "-c", code, "inspect", str(bundle), "--json"]
    out, writer = os.pipe()
    os.close(out)
    with os.fdopen(writer, "w") as gone:
        result = subprocess.run(words, stdout=gone, stderr=subprocess.PIPE, text=True, check=False)
    assert result.returncode != 0
    assert result.stderr == ""


@pytest.mark.parametrize(
    ("verb", "package"),
    [
        ("export", "torch"),
        ("export", "transformers"),
        ("export", "gguf"),
        ("build", "onnx_ir"),
        ("build", "onnxruntime"),
    ],
)
def test_a_verb_whose_extra_is_missing_names_package_and_extra_before_any_work(tmp_path, verb, package):
    result = without([package], verb, tmp_path / "nowhere", "-o", tmp_path / "out")
    expected = f"error: `piston {verb}` needs {package}; pip install 'piston[{verb}]'.\n"
    assert (result.returncode, result.stderr) == (1, expected)


@pytest.mark.parametrize("verb", ["export", "build"])
def test_help_needs_no_extra(verb):
    result = without(["torch", "transformers", "onnx", "onnx_ir", "onnxruntime"], verb, "--help")
    assert (result.returncode, result.stderr) == (0, "")


def test_running_without_onnxruntime_names_the_extra(bundle):
    result = without(["onnxruntime"], "run", bundle, *PROMPT)
    assert (result.returncode, result.stderr) == (
        1,
        "error: onnxruntime is not installed; pip install 'piston[ort]'.\n",
    )


def test_the_runtime_verbs_need_no_extra(bundle):
    result = without(["torch", "transformers", "onnx", "onnx_ir", "onnxruntime"], "inspect", bundle)
    assert (result.returncode, result.stderr) == (0, "")
    assert "ort-cpu" in result.stdout


def test_errors_can_be_json_lines(piston, bundle):
    result = piston("run", bundle / "none", "--prompt", "a", "--log-format", "json")
    assert result.status == 1
    entry = json.loads(result.err)
    assert entry["level"] == "error"
    assert "none" in entry["message"]


def test_a_log_format_of_the_environment_that_there_is_not_is_misuse(refused, bundle, monkeypatch):
    monkeypatch.setenv("PISTON_LOG_FORMAT", "xml")
    status, message = refused("run", bundle, "--prompt", "a")
    assert status == 2
    assert "xml" in message
