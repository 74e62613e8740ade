"""Gates of recipes: the conditions a bundle must meet to be published, and the figures they may name.

verify                               the golden outputs of the bundle
bundle.size <= 200MB                 all files
int8 >= 95%                          of the linear layers' multiply-adds, in every engine that counts them
eval.ppl <= 2%                       over the reference; `eval.ppl <= 30` is absolute; kl, top1, ... as in piston eval
bench.tpot.p50 <= 20ms               at every setting that was measured
bench.tpot.p50 <= 5% over baseline   by the test of `piston bench --require`: see changes.py
"""

from dataclasses import replace

from piston.bench.encoders import METRICS as ENCODER_FIGURES
from piston.bench.gate import BUNDLE_FIGURES
from piston.bench.modules import METRICS as MODULE_FIGURES
from piston.core.gates import INT8, SIZE, Gate, Metric
from piston.core.gates import parse_gate as parse
from piston.core.tasks import task_module, task_names
from piston.core.units import shown
from piston.evaluation import tasks
from piston.evaluation.metrics import METRICS as EVAL_METRICS

VERIFY = Metric(name="verify", described="piston verify", unit="verdict", is_better_high=True)
# Figures of encoder tasks; where a name is one of language models too, it is the same figure.
OF_TASKS = {name: metric for task in task_names(tasks) for name, metric in task_module(tasks, task).METRICS.items()}
METRICS: dict[str, Metric] = {
    VERIFY.name: VERIFY,
    SIZE.name: SIZE,
    INT8.name: INT8,
    **{f"eval.{name}": replace(metric, name=f"eval.{name}") for name, metric in (OF_TASKS | EVAL_METRICS).items()},
    **{
        f"bench.{name}": replace(metric, name=f"bench.{name}")
        for name, metric in (MODULE_FIGURES | ENCODER_FIGURES).items()
    },
    **{f"bench.{name}": replace(metric, name=f"bench.{metric.name}") for name, metric in BUNDLE_FIGURES.items()},
}


def parse_gate(text: str) -> Gate[Metric]:
    """Parse one gate of a recipe. Raises MisuseError if it is malformed or names an unknown figure."""
    if text.strip() == VERIFY.name:
        return Gate(text=text, metric=VERIFY, sign=">=", bound=1.0)
    return parse(text, METRICS, "the gate")


def stage_of(gate: Gate[Metric]) -> str:
    """The stage that gives the value."""
    return {"verify": "verify", "eval": "eval", "bench": "bench"}.get(gate.metric.name.partition(".")[0], "build")


def shown_value(name: str, value: float) -> str:
    """A measured value in the unit of its figure."""
    if name.endswith("_change"):
        return f"{value:+.2%}"
    return shown(value, METRICS[name].unit if name in METRICS else "")
