import pytest
from making import eval_json
from toy_model import manifest_of

from piston.core.bundle.manifest import FileRecord
from piston.core.errors import Error
from piston.pipeline.values import values_of

VERIFY = {"verify": {"passed": True}}


def bench(*settings, starts=None):
    """What `piston bench --json` prints of (batch, tpot, decode) at each setting, as far as it is read here."""

    def figures(**values):
        return {name: {"p50": {"value": value}} for name, value in values.items()}

    measured = [{"setting": {"batch": b}, "metrics": figures(tpot=t, decode=d)} for b, t, d in settings]
    return {"systems": [{"settings": measured, "metrics": figures(**(starts or {}))}]}


def test_the_worst_setting_counts_whichever_way_is_better():
    found = values_of(
        manifest_of(), {**VERIFY, "bench": bench((1, 0.02, 50.0), (4, 0.03, 130.0), starts={"peak": 1e9})}
    )
    assert (found["bench.tpot.p50"], found["bench.decode.p50"], found["bench.peak.p50"]) == (0.03, 50.0, 1e9)


def test_the_size_is_that_of_all_files_and_int8_that_of_the_worst_engine():
    (spec,) = manifest_of().engines
    engines = tuple(
        type(spec).of(target=f"t{share}", path="p", cache=spec.cache, requested={}, actual={"linears": {"int8": share}})
        for share in (0.9, 0.8)
    )
    files = {"a": FileRecord(sha256="0", size=3), "b": FileRecord(sha256="1", size=4)}
    found = values_of(manifest_of(engines=engines, files=files), VERIFY)
    assert (found["bundle.size"], found["int8"], found["verify"]) == (7.0, 0.8, 1.0)


def test_the_evaluation_gives_absolute_and_relative_figures():
    found = values_of(manifest_of(), {**VERIFY, "eval": eval_json(0.02)})
    assert (found["eval.ppl"], found["eval.ppl_change"]) == (pytest.approx(20.4), pytest.approx(0.02))
    with pytest.raises(Error, match="cannot read the JSON"):
        values_of(manifest_of(), {**VERIFY, "eval": {"schema": 1}})


def test_figures_of_encoder_tasks_go_by_their_names():
    found = values_of(
        manifest_of(), {**VERIFY, "eval": {"values": {"accuracy": 0.9}}, "bench": {"values": {"latency": 0.002}}}
    )
    assert (found["eval.accuracy"], found["bench.latency"]) == (0.9, 0.002)
