import pytest
from loaded import sent_at

from piston.bench.load.slo import meets, parse_slo
from piston.core.errors import MisuseError

SENT = sent_at(0.0, 0.4, 0.42, 0.44, 0.6)  # TTFT 400 ms, gaps 20, 20, 160 ms, TPOT 66.7 ms, E2EL 600 ms


@pytest.mark.parametrize(
    ("slo", "is_met"),
    [
        ("", True),
        ("ttft<500ms", True),
        ("ttft<400ms", False),
        ("ttft<=400ms", True),
        ("itl<50ms", True),  # the median
        ("itl.p95<50ms", False),
        ("tpot<70ms,e2el<1s", True),
        ("tpot<70ms,e2el<0.5s", False),
    ],
)
def test_a_request_meets_all_conditions_or_counts_for_nothing(slo, is_met):
    assert meets(SENT, slo) == is_met


def test_a_refused_request_meets_nothing_and_one_of_one_token_has_no_gaps():
    assert not meets(sent_at(0.0, problem="HTTP 429"), "")
    assert meets(sent_at(0.0, 0.1), "itl.p95<1ms,tpot<1ms,ttft<1s")


@pytest.mark.parametrize("slo", ["x<1s", "ttft", "ttft>1s", "ttft<5", ",", "ttft<1s;tpot<1s", "throughput>5tokens/s"])
def test_an_objective_that_cannot_be_read_is_told(slo):
    with pytest.raises(MisuseError, match="--slo"):
        parse_slo(slo)
