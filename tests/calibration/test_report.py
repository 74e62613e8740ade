"""The page of a calibration: one whole document, nothing from elsewhere, and what was measured in it."""

import re
from html.parser import HTMLParser
from xml.etree import ElementTree as ET

import numpy as np
import pytest

from piston.calibration.observe.saturation import Saturation
from piston.calibration.report import remainders_text
from piston.cli.main import main
from piston.core.bundle.manifest import Manifest

SENTENCE = "the quick brown fox jumps over a lazy dog while seven wizards brew strange potions by night"
VOID = {"meta", "br"}


class Balanced(HTMLParser):
    """Fails where an element is not closed in order; collects what the document loads."""

    def __init__(self):
        super().__init__()
        self.open, self.loaded, self.text = [], [], []

    def handle_starttag(self, tag, attributes):
        self.loaded += [value for name, value in attributes if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def written(model_dir, tmp_path_factory):
    directory = tmp_path_factory.mktemp("report")
    rng = np.random.default_rng(0)
    lines = (" ".join(rng.choice(SENTENCE.split(), 12)) + "." for _ in range(200))
    (directory / "text.txt").write_text("\n\n".join(lines))
    words = ["calibrate", str(model_dir), "-o", str(directory / "out"), "--scheme", "w8a8", "--kv", "int8", "--quiet"]
    words += ["--data", str(directory / "text.txt"), "--samples", "4", "--seq-len", "24", "--budget", "kl<=0.002"]
    assert main([*words, "--report", str(directory / "report.html")]) == 0
    return directory


@pytest.fixture(scope="module")
def page(written):
    return (written / "report.html").read_text(encoding="utf-8")


def test_the_document_is_whole_and_loads_nothing(page):
    parser = Balanced()
    parser.feed(page)
    parser.close()
    assert (parser.open, parser.loaded) == ([], [])
    assert "<script" not in page
    assert "http" not in page.replace("http-equiv", "")


def test_every_chart_is_well_formed_and_describes_itself(page):
    charts = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(charts) == 3
    for chart in charts:
        root = ET.fromstring(chart)  # noqa: S314
        labels = root.get("aria-labelledby").split()
        assert {node.get("id") for node in root if node.get("id")} == set(labels)


def test_it_says_what_was_measured_and_what_stays_in_float(page, written):
    record = Manifest.read(written / "out").made_by["calibration"]
    best = record["budget"]["best"]
    assert f"{best['share']:.1%}" in page
    assert all(f"<code>{name}</code>" in page for name in best["kept"])
    assert re.search(r"\d+ of 12 rounded tensors", page)  # four a layer that linears read, its keys and its values
    assert "<code>present.1.value</code>" in page
    assert "<code>model.layers.1.mlp.gate_proj, model.layers.1.mlp.up_proj</code>" in page
    assert "KL divergence, nats</text>" in page  # the budget's own figure is what the charts are of
    assert "a scale for each channel" in page
    assert record["data"]["sha256"] in page
    assert f"rows of {4 * 24}" in page


def test_it_says_which_linears_have_remainders(page, written):
    ratios = Manifest.read(written / "out").made_by["calibration"]["remainders"]
    assert ratios
    assert all(name.endswith("mlp.down_proj") for name in ratios)
    assert f"rounded once more for {len(ratios)} linears, by a scale " in page
    for name, ratio in ratios.items():
        assert re.search(rf"<code>{re.escape(name)}</code></th>\s*<td[^>]*>{ratio}</td>", page)


@pytest.mark.parametrize(
    ("ratios", "said"),
    [
        ({"a": 7, "b": 31}, "for 2 linears, by a scale 7 to 31 times as coarse"),
        ({"a": 15}, "a scale 15 times as coarse"),
    ],
)
def test_one_line_says_how_far_apart_the_scales_are(ratios, said):
    assert remainders_text(ratios).endswith(said)


def test_the_command_line_says_it_too(model_dir, written, tmp_path, capsys):
    words = ["calibrate", str(model_dir), "-o", str(tmp_path / "out"), "--scheme", "w8a8", "--quiet"]
    words += ["--data", str(written / "text.txt"), "--samples", "4", "--seq-len", "24", "--require", "kl<=9"]
    assert main(words) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("  remainders: "))
    ratios = Manifest.read(tmp_path / "out").made_by["calibration"]["remainders"]
    assert line == f"  remainders: {remainders_text(ratios)}"


def test_saturation_counts_what_is_beyond_the_last_code():
    found = Saturation("value", np.array(0.5, np.float32))
    found.update(np.array([[0.0, 63.5, -63.7, 63.8, 127.5]], np.float32))
    found.update(np.array([[1.0]], np.float32))
    assert (found.found.num_beyond, found.found.num_values) == (2, 6)
    assert found.found.largest == pytest.approx(2)
    again = Saturation("value", np.array(0.5, np.float32))
    again.restore(found.state())
    assert again.found == found.found


def test_a_place_that_is_not_there_is_refused_before_the_work(model_dir, tmp_path, capsys):
    words = ["calibrate", str(model_dir), "-o", str(tmp_path / "out"), "--scheme", "w8"]
    assert main([*words, "--report", str(tmp_path / "nowhere" / "report.html")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
