import json

import numpy as np

from piston.calibration.calibrate import CheckOptions, calibrate
from piston.calibration.recipe import Recipe
from piston.core.bundle.manifest import Manifest
from piston.data.rows import RowOptions
from piston.evaluation.encoders import open_directory

TEXTS = ["paris", "hello world", "in paris", "good day", "a b c", "world in world", "what, now?", "5 by 5", "no", "yes"]


def calibrated(model, out, tmp_path, labels):
    path = tmp_path / "labelled.jsonl"
    path.write_text("\n".join(json.dumps({"text": text, "label": labels}) for text in TEXTS), encoding="utf-8")
    checked = CheckOptions(bounds=("distance<=100%",), labelled=path)
    return calibrate(model, out, Recipe(scheme="w4", block=32), rows=RowOptions(seq_len=24), checked=checked)


def test_a_quantized_model_gives_each_label_as_often_as_the_float_one(encoder_toys, tmp_path):
    model = encoder_toys.model("multi")
    found = calibrated(model, tmp_path / "w4", tmp_path, ["hate"])
    thresholds = Manifest.read(tmp_path / "w4").settings["thresholds"]
    assert list(thresholds) == ["hate", "spam"]
    assert found.manifest.settings["thresholds"] == thresholds
    rates = []
    for directory, bounds in ((model, [0.5, 0.5]), (tmp_path / "w4", [*thresholds.values()])):
        opened = open_directory(directory)
        rates.append((opened.scores(TEXTS, truncate=True) >= np.array(bounds)).sum(axis=0).tolist())
        opened.close()
    assert rates[0] == rates[1]


def test_a_model_of_one_label_a_text_has_no_thresholds(encoder_toys, tmp_path):
    calibrated(encoder_toys.model("single"), tmp_path / "w4", tmp_path, "good")
    assert "thresholds" not in Manifest.read(tmp_path / "w4").settings
