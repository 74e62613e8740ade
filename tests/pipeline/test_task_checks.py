"""What does not suit the task of the model is refused before a stage runs, and by --dry-run."""

import json

import pytest
from making import Commands

from piston.core.errors import MisuseError
from piston.pipeline.cache_key import digest_of_files, files_of_checkpoint
from piston.pipeline.forecast import forecast
from piston.pipeline.make import MakeOptions, make
from piston.pipeline.plan import locate, task_of
from piston.pipeline.recipe import read_recipe

LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
CLASSIFIER = {"model_type": "bert", "architectures": ["BertForSequenceClassification"]}
WHISPER = {"model_type": "whisper", "architectures": ["WhisperForConditionalGeneration"]}
MARIAN = {"model_type": "marian", "architectures": ["MarianMTModel"]}


@pytest.fixture
def recipe(tmp_path):
    """recipe(config, tables) -> the path of a recipe for a checkpoint that has this config."""

    def write(config, tables):
        (tmp_path / "checkpoint").mkdir()
        (tmp_path / "checkpoint/config.json").write_text(json.dumps(config))
        sha256 = digest_of_files(files_of_checkpoint(tmp_path / "checkpoint"))
        path = tmp_path / "piston.toml"
        path.write_text(
            f'[checkpoint]\nsource = "checkpoint"\nsha256 = "{sha256}"\n[output]\nbundle = "bundle"\n{tables}\n'
        )
        return path

    return write


def refused(path):
    """What a run and a dry run say; neither runs a command."""
    commands = Commands()
    options = MakeOptions(cache_dir=path.parent / "cache", run=commands, quiet=True)
    said = set()
    for work in (make, forecast):
        with pytest.raises(MisuseError) as caught:
            work(read_recipe(path), path, options)
        said.add(str(caught.value))
    assert commands.calls == []
    (one,) = said
    return one


EVAL = '[eval]\ndata = "piston.toml"'


def gated(tables, gate):
    return f"{tables}\n[gates]\nrequire = ['{gate}']"


@pytest.mark.parametrize(
    ("config", "tables", "reason"),
    [
        (LLAMA, '[bench]\naudio_len = "30"', "--audio-len is not for text-generation"),
        (CLASSIFIER, '[bench]\nprompt_len = "8"', "--prompt-len is for language models, and this model is for text-cl"),
        (CLASSIFIER, f"{EVAL}\nwindow = 64", "--window is for language models, and this model is for text-cl"),
        (WHISPER, '[bench]\nbatch = "2"', "--batch is not for automatic-speech-recognition"),
        (WHISPER, '[bench]\ngen_len = "0"', "--gen-len is 0"),
        (MARIAN, "[bench]\nprofile = true", "--profile is for language models, and this model is for text2text-gener"),
        (LLAMA, "[bench]\nrepeats = 0", "--repeats is 0; it must be at least 1"),
        (CLASSIFIER, "[bench]\nrepeats = 0", "--repeats is 0; it must be at least 1"),
        (LLAMA, f"{EVAL}\nwindow = 64\nstride = 65", "the stride must be at least 1"),
        (LLAMA, gated("[bench]", "bench.rtf<=1"), "'bench.rtf<=1' is not measured of text-generation"),
        (LLAMA, gated("[bench]", "bench.latency<=1s"), "the figures of `piston bench` are ttft, tpot"),
        (LLAMA, gated('[bench]\ngen_len = "1"', "bench.tpot<=1s"), "'bench.tpot<=1s' is not measured"),
        (LLAMA, gated("[bench]\nstarts = 0", "bench.load<=1s"), "'bench.load<=1s' is not measured"),
        (CLASSIFIER, gated("[bench]", "bench.ttft<=1s"), "are latency, latency_p90, texts_per_second"),
        (CLASSIFIER, gated("[bench]", "bench.peak.p95<=1GB"), "'bench.peak.p95<=1GB' is not measured of"),
        (CLASSIFIER, gated(EVAL, "eval.ppl<=9"), "'eval.ppl<=9' is not measured of text-cl"),
        (LLAMA, gated(EVAL, "eval.wer<=9%"), "'eval.wer<=9%' is not measured of text-gen"),
        (CLASSIFIER, '[calibrate]\nscheme = "w8"\nkv = "int8"', "--kv int8 is for language models, and this model is"),
        (MARIAN, '[calibrate]\nscheme = "w8"\nbudget = "kl<=1"', "--budget is for language models and encoders"),
        (LLAMA, '[calibrate]\nscheme = "w8"\nlabelled = "piston.toml"', "--labelled is for tasks with labelled ex"),
        (LLAMA, '[calibrate]\nscheme = "w8a8"', "w8a8 rounded to nearest needs data: give --data FILE"),
        (CLASSIFIER, '[calibrate]\nscheme = "w8"\nrequire = ["wer<=1"]', "wer"),
    ],
)
def test_what_is_not_of_the_task_is_refused_before_any_work(recipe, config, tables, reason):
    assert reason in refused(recipe(config, tables))


@pytest.mark.parametrize(
    ("tables", "reason"),
    [
        ('[bench]\nbatch = "x"', r"\[bench\] cannot be run: argument --batch: 'x' is not a list of integers"),
        ('[calibrate]\nreport = "page.html"', r"unknown field calibrate.report; it has"),
        ("[eval]\nwindow = 64", r"\[eval\] cannot be run: the following arguments are required: --data"),
        (
            '[eval]\ndata = "piston.toml"\n[gates]\nrequire = ["eval.kl<=1"]',
            r"'eval.kl<=1' needs eval.reference, such as 'float'",
        ),
    ],
)
def test_what_no_verb_could_run_is_refused_when_the_recipe_is_read(recipe, tables, reason):
    with pytest.raises(MisuseError, match=reason):
        read_recipe(recipe(LLAMA, tables))


@pytest.mark.parametrize(
    ("config", "tables"),
    [
        (
            LLAMA,
            '[bench]\nprompt_len = "8"\nbatch = "1,2"\n[gates]\nrequire = ["bench.tpot.p90<=1s", "bench.load<=9s"]',
        ),
        (CLASSIFIER, '[bench]\nrepeats = 2\n[gates]\nrequire = ["bench.latency<=1s", "bench.peak<=1GB"]'),
        (WHISPER, '[bench]\naudio_len = "30"\n[gates]\nrequire = ["bench.rtf<=1", "bench.encode<=1s"]'),
        (MARIAN, '[bench]\nnum_beams = "1,4"\n[gates]\nrequire = ["bench.encode<=1s"]'),
    ],
)
def test_what_suits_the_task_is_planned(recipe, tmp_path, config, tables):
    path = recipe(config, tables)
    stages = forecast(read_recipe(path), path, MakeOptions(cache_dir=tmp_path / "cache")).stages
    assert [stage.name for stage in stages] == ["export", "build", "verify", "bench"]


@pytest.mark.parametrize(
    ("tables", "reason"),
    [
        ('[eval]\ndata = "held_out.txt"', "eval.data of the recipe is held_out.txt, which does not exist in"),
        ('[eval]\ndata = "piston.toml"\nreference = "old"', "eval.reference of the recipe is old"),
        ('[bench]\nprompts = "p.txt"', "bench.prompts of the recipe is p.txt"),
        ('[calibrate]\nscheme = "w8a8"\ndata = ["builtin", "t.txt"]', "calibrate.data of the recipe is t.txt, which"),
        ('[calibrate]\nscheme = "w8"\ncheck_data = "t.txt"', "calibrate.check_data of the recipe is t.txt"),
    ],
)
def test_a_file_that_a_late_stage_reads_must_be_there_before_the_first(recipe, tables, reason):
    assert reason in refused(recipe(LLAMA, tables))


def test_the_task_that_the_recipe_asks_for_comes_before_the_checkpoints(recipe, tmp_path):
    path = recipe(LLAMA, '[export]\ntask = "text-ranking"\n[bench]\nprompt_len = "8"')
    assert "this model is for text-ranking" in refused(path)


def test_of_a_hub_id_the_task_is_not_known_before_the_export(tmp_path):
    path = tmp_path / "piston.toml"
    revision = "a" * 40
    path.write_text(f'[checkpoint]\nsource = "a/b"\nrevision = "{revision}"\n[output]\nbundle = "b"\n[bench]\n')
    recipe = read_recipe(path)
    assert task_of(recipe, locate(recipe, tmp_path)) is None
