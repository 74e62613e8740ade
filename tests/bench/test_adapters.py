"""Each adapter over a double of its library; Piston's own over a real bundle, in a process of its own."""

import argparse
import importlib.util
import json
import sys
import threading
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from benched import contender
from loaded import setting_of

from piston.bench import adapters
from piston.bench.child import SERVE, Child
from piston.bench.load.client import Endpoint
from piston.bench.load.run import run_load
from piston.bench.load.setting import LoadWork
from piston.bench.systems import KINDS, SERVED_KINDS
from piston.serving.cli import add_arguments as add_serve_arguments

PROMPTS = [[5, 6, 7], [8, 9, 10]]
OPTIONS = {"threads": 3, "max_length": 64, "max_batch": 2}


def adapter_of(name):
    spec = importlib.util.spec_from_file_location(f"adapter_{name}", Path(adapters.__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def counted(adapter, prompts, gen_len):
    steps = []
    rows = adapter.run(prompts, gen_len, lambda *at: steps.append(at))
    return rows, steps


def test_every_kind_has_an_adapter_and_every_adapter_says_what_it_needs():
    serve = adapter_of("serve")
    assert tuple(serve.FILES) == KINDS
    for name in serve.FILES.values():
        module = adapter_of(name)
        assert module.LIBRARY
        assert module.PACKAGES


def test_every_kind_that_is_put_under_load_has_a_server_and_no_other():
    names = adapter_of("serve").FILES
    assert tuple(kind for kind in KINDS if hasattr(adapter_of(names[kind]), "server")) == SERVED_KINDS


def test_servers_are_told_port_rows_length_and_threads():
    options = OPTIONS | {"port": 81, "target": "ort-cpu"}
    words = adapter_of("piston").server("bundle", options)
    parser = argparse.ArgumentParser()
    add_serve_arguments(parser)
    found = parser.parse_args(words[words.index("serve") + 1 :])
    # Options of one of several bundles may be given by name, so they are lists.
    assert (found.port, found.max_batch, found.max_length) == (81, ["2"], ["64"])
    assert (found.threads, found.target) == (["3"], ["ort-cpu"])
    llama = adapter_of("llama_cpp").server("model.gguf", options)
    named = dict(zip(llama[1::2], llama[2::2], strict=False))
    assert (named["--model"], named["--port"], named["--parallel"], named["--threads"]) == (
        "model.gguf",
        "81",
        "2",
        "3",
    )
    assert named["--ctx-size"] == "128"  # llama-server divides it among the rows


def test_no_server_runs_with_the_adapters_on_its_path():
    # Two of them have the names of libraries: `import openvino` would find the adapter.
    for name in ("openvino", "piston"):
        assert adapter_of(name).server("model", OPTIONS | {"port": 81})[1] in {"-I", "-P"}


def test_genai_is_told_threads_and_lengths_and_gives_the_new_tokens_only():
    told = {}

    class Generator:
        def __init__(self, model, params):
            self.rows = None

        def append_tokens(self, ids):
            self.rows = [list(row) for row in (ids if isinstance(ids[0], list) else [ids])]

        def generate_next_token(self):
            for index, row in enumerate(self.rows):
                row.append(100 + index)

        def get_sequence(self, row):
            return self.rows[row]

    library = SimpleNamespace(
        Config=lambda path: SimpleNamespace(overlay=lambda text: told.update(json.loads(text))),
        Model=lambda config: "model",
        GeneratorParams=lambda model: SimpleNamespace(set_search_options=lambda **options: told.update(options)),
        Generator=Generator,
    )
    adapter = adapter_of("genai").Adapter(library, "path", OPTIONS)
    rows, steps = counted(adapter, PROMPTS, 4)
    assert rows == [[100] * 4, [101] * 4]
    assert len(steps) == 4
    assert (told["max_length"], told["min_length"], told["batch_size"], told["do_sample"]) == (7, 7, 2, False)
    assert told["model"]["decoder"]["session_options"] == {"intra_op_num_threads": 3}
    assert counted(adapter, PROMPTS[:1], 2)[0] == [[100, 100]]


def test_ct2_looks_tokens_up_and_counts_a_step_when_every_row_has_its_token(tmp_path):
    (tmp_path / "vocabulary.json").write_text(json.dumps([f"t{index}" for index in range(20)]), encoding="utf-8")

    class Generator:
        def __init__(self, path, **options):
            assert options["intra_threads"] == 3

        def generate_batch(self, tokens, *, max_length, min_length, callback, **options):
            assert tokens == [["t5", "t6", "t7"], ["t8", "t9", "t10"]]
            assert (max_length, min_length, options["sampling_topk"]) == (3, 3, 1)
            assert options["include_prompt_in_result"] is False
            for step in range(max_length):
                for row in (1, 0):
                    assert not callback(SimpleNamespace(batch_id=row, token_id=10 * row + step))

    adapter = adapter_of("ct2").Adapter(SimpleNamespace(Generator=Generator), str(tmp_path), OPTIONS)
    rows, steps = counted(adapter, PROMPTS, 3)
    assert rows == [[0, 1, 2], [10, 11, 12]]
    assert len(steps) == 3


def test_openvino_takes_the_times_of_a_batch_from_its_own_clocks():
    """The first is microseconds from the call, the others milliseconds on a clock with any zero."""
    raw = SimpleNamespace(m_times_to_first_token=[250_000.0], m_new_token_times=[9000.0, 9100.0, 9250.0])
    assert adapter_of("openvino")._times(raw) == pytest.approx([0.25, 0.35, 0.5])


@pytest.fixture
def toy_bundle(toy_llama, tmp_path):
    """The real toy as a bundle."""
    from toy_model import write_bundle

    from piston.core.bundle.manifest import EngineSpec

    for path in toy_llama.path.parent.glob("model.onnx*"):
        (tmp_path / "bundle/ort-cpu").mkdir(parents=True, exist_ok=True)
        (tmp_path / "bundle/ort-cpu" / path.name).write_bytes(path.read_bytes())
    engine = EngineSpec.of(
        target="ort-cpu", path="ort-cpu/model.onnx", cache=toy_llama.spec, requested={"max_batch": 2}, actual={}
    )
    write_bundle(tmp_path / "bundle", cache=toy_llama.spec, engines=(engine,))
    return tmp_path / "bundle"


def test_piston_in_a_process_of_its_own_answers_as_in_this_one(toy_bundle):
    from piston.runtime import SamplingParams, load

    with load(toy_bundle, max_batch=1, max_length=64) as model:
        wanted = model.generate(PROMPTS, SamplingParams(max_tokens=5, ignore_eos=True))
    own = contender("toy", path=str(toy_bundle), python=sys.executable)
    with Child(own, OPTIONS, timeout=60) as child:
        ran = child.run(PROMPTS, 5)
    assert ran.token_ids == tuple(item.token_ids for item in wanted)
    assert sorted(ran.times) == list(ran.times)
    assert np.min(ran.times) > 0
    assert ran.peak_bytes > 10_000_000
    assert set(ran.parts) == {"sample", "tokenize"}
    assert child.versions["python"] == ".".join(map(str, sys.version_info[:3]))


def test_the_far_side_needs_no_piston_and_no_package():
    """It runs in a rival's environment, where there is neither."""
    source = SERVE.read_text(encoding="utf-8")
    imported = {
        line.split()[1].split(".")[0] for line in source.splitlines() if line.lstrip().startswith(("import ", "from "))
    }
    assert imported <= set(sys.stdlib_module_names)
    for name in ("genai", "ct2", "openvino", "llama_cpp", "transformers", "piston"):
        text = SERVE.with_name(f"{name}.py").read_text(encoding="utf-8")
        lines = [line for line in text.splitlines() if line.startswith(("import ", "from "))]
        assert {line.split()[1].split(".")[0] for line in lines} <= set(sys.stdlib_module_names)


def test_openvinos_continuous_batching_answers_over_http_with_as_many_tokens_as_were_asked_for(monkeypatch):
    told = {}

    class Handle:
        def __init__(self, count):
            self.left = list(range(100, 100 + count))

        def can_read(self):
            return bool(self.ready)

        def read(self):
            self.ready = False
            return {0: SimpleNamespace(generated_ids=[self.left.pop(0)])}

        def get_status(self):
            return "running" if self.left else "finished"

    class Pipeline:
        def __init__(self, path, config, device, properties):
            told.update(path=path, rows=config.max_num_seqs, device=device, properties=properties)
            self.handles = []

        def get_tokenizer(self):
            return SimpleNamespace(decode=lambda ids: f"t{ids[0]}")

        def add_request(self, number, ids, config):
            told.update(prompt=ids.data.tolist(), ignore_eos=config.ignore_eos)
            self.handles.append(Handle(config.max_new_tokens))
            return self.handles[-1]

        def step(self):
            for handle in self.handles:
                handle.ready = bool(handle.left)

    library = ModuleType("openvino_genai")
    library.ContinuousBatchingPipeline, library.SchedulerConfig = Pipeline, SimpleNamespace
    library.GenerationConfig = SimpleNamespace
    library.GenerationStatus = SimpleNamespace(RUNNING="running")
    openvino = ModuleType("openvino")
    openvino.Tensor = lambda array: SimpleNamespace(data=array)
    monkeypatch.setitem(sys.modules, "openvino_genai", library)
    monkeypatch.setitem(sys.modules, "openvino", openvino)
    module = adapter_of("openvino_server")
    module.Handler.engine = module.Engine("model", {"max_batch": 3, "threads": 2})
    server = module.ThreadingHTTPServer(("127.0.0.1", 0), module.Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    setting = setting_of(concurrency=2, requests=4, prompt_len=(5, 5), gen_len=(3, 3))
    endpoint = Endpoint(url=f"http://127.0.0.1:{server.server_port}", model="openvino")
    run = run_load(endpoint, setting, LoadWork(setting, 200).requests(0), "openvino", lambda _: None)
    server.shutdown()
    server.server_close()
    assert [(len(item.times), item.num_tokens) for item in run.sent] == [(3, 3)] * 4
    assert (told["rows"], told["properties"], told["ignore_eos"]) == (3, {"INFERENCE_NUM_THREADS": 2}, True)
    assert len(told["prompt"][0]) == 5
