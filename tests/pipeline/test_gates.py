import pytest

from piston.core.errors import MisuseError
from piston.pipeline.gates import parse_gate, shown_value, stage_of


@pytest.mark.parametrize(
    ("text", "quantity", "stage", "value", "is_met"),
    [
        ("verify", "verify", "verify", 1.0, True),
        ("verify", "verify", "verify", 0.0, False),
        ("bundle.size <= 200MB", "bundle.size", "build", 200e6, True),
        ("bundle.size<=1MiB", "bundle.size", "build", 2**20 + 1, False),
        ("int8 >= 95%", "int8", "build", 0.95, True),
        ("int8 >= 95%", "int8", "build", 0.9499, False),
        ("eval.ppl <= 2%", "eval.ppl_change", "eval", 0.021, False),
        ("eval.ppl <= 30", "eval.ppl", "eval", 29.0, True),
        ("eval.top1 >= 99%", "eval.top1", "eval", 0.98, False),
        ("bench.tpot.p50 <= 20ms", "bench.tpot.p50", "bench", 0.021, False),
        ("bench.tpot <= 20ms", "bench.tpot.p50", "bench", 0.021, False),
        ("bench.decode.p50 >= 40tokens/s", "bench.decode.p50", "bench", 41.0, True),
        ("bench.tpot.p50 <= 5% over baseline", "bench.tpot.p50_change", "bench", 0.06, False),
        ("bench.tpot.p50 <= 105%", "bench.tpot.p50_change", "bench", 0.06, False),
    ],
)
def test_a_gate_of_a_recipe_has_a_figure_of_a_stage(text, quantity, stage, value, is_met):
    gate = parse_gate(text)
    assert (gate.quantity, stage_of(gate), gate.judge({quantity: value}).is_met) == (quantity, stage, is_met)


@pytest.mark.parametrize(
    "text", ["", "verify <= 1", "verify >= 1", "ppl <= 2%", "bundle.size <= 200", "calibrate.peak <= 105%"]
)
def test_what_names_no_figure_in_its_unit_is_refused(text):
    with pytest.raises(MisuseError, match="gate"):
        parse_gate(text)


def test_values_are_shown_in_the_unit_of_their_figure():
    assert shown_value("bench.tpot.p50", 0.02) == "20.0 ms"
    assert shown_value("eval.ppl_change", 0.021) == "+2.10%"
    assert (shown_value("int8", 0.95), shown_value("verify", 0.0)) == ("95.00%", "failed")
