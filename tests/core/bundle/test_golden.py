import json
import math

import pytest

from piston.core.bundle.golden import FILE_NAME, Golden, GoldenAnswer, GoldenByTarget, GoldenExample


def test_infinite_values_and_margins_are_strict_json_and_are_read_again(tmp_path):
    answer = GoldenAnswer(prompt="a", prompt_ids=(1,), token_ids=(2,), margins=(math.inf,))  # of a single token
    example = GoldenExample(values={"mask": (0.5, -math.inf)})
    written = GoldenByTarget(
        engines={"ort-cpu": Golden(answers=(answer,), examples=(example,), noise=0.0, by="engine")}
    )
    written.write(tmp_path)
    json.loads((tmp_path / FILE_NAME).read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert GoldenByTarget.read(tmp_path) == written


def test_the_infinities_of_older_bundles_are_read(tmp_path):
    golden = {"answers": [], "examples": [{"values": {"mask": [-math.inf]}}], "noise": 0, "by": "engine"}
    (tmp_path / FILE_NAME).write_text(json.dumps({"engines": {"ort-cpu": golden}, "schema": 1}))
    assert GoldenByTarget.read(tmp_path).of("ort-cpu").examples[0].values == {"mask": (-math.inf,)}
