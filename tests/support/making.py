"""A recipe, a checkpoint and commands that only write files: `piston make` without torch and without waiting."""

import dataclasses
import json
from pathlib import Path

from toy_model import manifest_of, write_bundle

from piston.core.bundle.golden import Golden, GoldenAnswer, GoldenByTarget
from piston.core.statistics import ConfidenceInterval
from piston.evaluation.report import Agreement, Data, Divergences, Model, Report, WindowScore
from piston.pipeline.cache_key import digest_of_files, files_of_checkpoint
from piston.pipeline.child import Outcome

RECIPE = """
[checkpoint]
source = "model.gguf"
sha256 = "{sha256}"

[calibrate]
scheme = "w8a8"
data = ["rows.txt"]

[build]
target = ["ort-cpu"]

[eval]
data = "held_out.txt"
reference = "float"

[gates]
require = [
  "verify",
  "eval.ppl <= 2%",
]

[output]
bundle = "out/bundle"
"""
TOY_RECIPE = """
[checkpoint]
source = "checkpoint"
sha256 = "{sha256}"

[calibrate]
scheme = "w8a8"
data = ["builtin"]
samples = 8
seq_len = 64
require = ["ppl<=10000%"]

[build]
target = ["ort-cpu"]
max_length = 90
"""
EXPECTED = Golden(
    answers=(GoldenAnswer(prompt="a", prompt_ids=(1, 2), token_ids=(3, 4), margins=(2.0, 1.0)),),
    noise=0.0,
    by="engine",
)


def write_recipe(directory: Path, edit=lambda text: text) -> Path:
    """A recipe beside its checkpoint and data; `edit` changes its text."""
    directory.mkdir(exist_ok=True)
    for name, text in (("model.gguf", "weights"), ("rows.txt", "rows"), ("held_out.txt", "held out")):
        if not (directory / name).exists():
            (directory / name).write_text(text)
    sha256 = digest_of_files(files_of_checkpoint(directory / "model.gguf"))
    (directory / "recipe.toml").write_text(edit(RECIPE.format(sha256=sha256)))
    return directory / "recipe.toml"


def write_toy_recipe(path: Path, rest: str) -> Path:
    """A recipe for the toy checkpoint beside it (checkpoints.py), with `rest` as its further tables."""
    sha256 = digest_of_files(files_of_checkpoint(path.parent / "checkpoint"))
    path.write_text(TOY_RECIPE.format(sha256=sha256) + rest, encoding="utf-8")
    return path


def eval_json(change=0.01):
    """What `piston eval --json` prints where the perplexity rose by `change`."""
    model = Model(
        path="p",
        kind="bundle",
        name="toy",
        scheme="w8a8",
        target="ort-cpu",
        nll=ConfidenceInterval(1.0),
        perplexity=ConfidenceInterval(20.0 * (1 + change)),
        bits_per_byte=None,
        tokens_per_s=1.0,
    )
    estimate = ConfidenceInterval(0.5, 0.4, 0.6)
    kl = Divergences(mean=estimate, p50=0.1, p99=0.2, max=0.3, num_zero=0, edges=(1.0,), counts=(0,))
    report = Report(
        data=Data(
            path="p",
            sha256="0" * 64,
            num_documents=1,
            num_tokens=9,
            num_scored=8,
            num_bytes=8,
            window=4,
            stride=2,
            num_windows=1,
            prefix_ids=(),
            rule="r",
        ),
        candidate=model,
        windows=(
            WindowScore(document=0, start=0, num_scored=8, perplexity=1.0, reference_perplexity=1.0, kl=0.1, top1=0.5),
        ),
        reference=dataclasses.replace(model, perplexity=ConfidenceInterval(20.0)),
        agreement=Agreement(
            kl=kl, top1=estimate, logit_distance=0.1, perplexity_ratio=ConfidenceInterval(1 + change), by_context=()
        ),
    )
    return report.to_json()


class Commands:
    """A Runner: notes what it is asked for, and writes what the stage would, depending on what the stage reads."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.change = 0.01  # of the perplexity
        self.passed = True
        self.mismatches = ()
        self.engine = b"engine"
        self.graph = b"graph"
        self.expected = EXPECTED
        self.failing: str | None = None
        self.raising: tuple[str, BaseException] | None = None

    def __call__(self, words, directory, quiet):
        verb, source = words[0], Path(words[-1])
        self.calls.append(verb)
        if self.raising is not None and self.raising[0] == verb:
            raise self.raising[1]
        if self.failing == verb:
            return Outcome(status=1, result={}, seconds=0.1, peak_bytes=1, error="it is broken")
        out = next((Path(word.removeprefix("--output=")) for word in words if word.startswith("--output=")), None)
        result = {}
        if verb == "export":
            self._model(out, source.read_bytes(), {"stage": "export", "source": {"sha256": {"model.gguf": "1"}}})
        elif verb == "calibrate":
            rows = (Path(directory) / "rows.txt").read_bytes()
            made = {"stage": "calibrate", "calibration": {"data": {"sha256": "rows"}}, "source": {}}
            self._model(out, (source / "model.onnx").read_bytes() + rows, made)
        elif verb == "build":
            self._bundle(out, (source / "model.onnx").read_bytes())
        elif verb == "verify":
            result = {"passed": self.passed, "mismatches": [dataclasses.asdict(item) for item in self.mismatches]}
        elif verb == "eval":
            html = next(Path(word.removeprefix("--html=")) for word in words if word.startswith("--html="))
            html.write_text("a page of piston eval")
            result = eval_json(self.change)
        status = 1 if verb == "verify" and not self.passed else 0
        return Outcome(status=status, result=result, seconds=0.5, peak_bytes=1000, error="")

    def _model(self, out, content, made_by):
        out.mkdir(parents=True)
        (out / "model.onnx").write_bytes(self.graph + content)
        write_bundle(out, kind="model", engines=(), made_by=made_by)

    def _bundle(self, out, content):
        (out / "ort-cpu").mkdir(parents=True)
        (out / "ort-cpu/model.onnx").write_bytes(self.engine + content)
        GoldenByTarget(engines={"ort-cpu": self.expected}).write(out)
        (spec,) = manifest_of().engines
        spec = dataclasses.replace(spec, actual={"linears": {"int8": 0.96, "float": 0.04}, "dtype": "float32"})
        made_by = {"source": {"made_by": {"source": {"sha256": {}}}}}
        write_bundle(out, engines=(spec,), made_by=made_by)


def edited_json(path: Path, edit) -> None:
    """Apply `edit` to a parsed JSON file and write it back."""
    data = json.loads(path.read_text())
    edit(data)
    path.write_text(json.dumps(data))
