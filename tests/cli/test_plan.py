import json

import pytest

from piston.cli.plan import lengths_of


def test_lengths_are_the_models_and_its_halves():
    assert lengths_of(8192) == [8192, 4096, 2048, 1024, 512, 256]
    assert lengths_of(96) == [96]


def test_json_and_text_say_the_same(piston, bundle):
    found = json.loads(piston("plan", bundle, "--memory", "1GB", "--json").out)
    text = piston("plan", bundle, "--memory", "1GB").out
    assert found["fits"]
    assert found["bytes"]["total"] == sum(size for name, size in found["bytes"].items() if name != "total")
    assert f"batch {found['batch']}, length {found['length']}:" in text
    assert all(f"{batch}\n" in text for batch in found["largest_batch"].values())


def test_what_does_not_fit_is_said_with_status_1(piston, bundle):
    result = piston("plan", bundle, "--memory", "1MB", "--batch", "2", "--length", "64")
    assert (result.status, "DOES NOT FIT" in result.out, "none fits" in result.out) == (1, True, True)


def test_a_target_that_the_bundle_was_not_built_for_is_misuse(refused, bundle):
    status, message = refused("plan", bundle, "--memory", "24GB", "--target", "tensorrt-rtx")
    assert (status, "no engine for tensorrt-rtx" in message) == (2, True)


@pytest.mark.parametrize("words", [["--batch", "0"], ["--length", "97"]])
def test_sizes_the_model_does_not_have_are_misuse(refused, bundle, words):
    assert refused("plan", bundle, "--memory", "1GB", *words)[0] == 2
