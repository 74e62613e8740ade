import json

import pytest

from piston.cli.plan import lengths_of, memory_size
from piston.cli.plan_gpus import GPUS, gpu_named
from piston.core.errors import MisuseError


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [("24GiB", 24 * 2**30), ("800MB", 800 * 10**6), ("1.5 g", 1_500_000_000), ("2ki", 2048), ("7", 7)],
)
def test_a_size_is_read_in_both_systems(text, nbytes):
    assert memory_size(text) == nbytes


@pytest.mark.parametrize("text", ["", "much", "-3GB", "0", "3 TB", "GiB"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(MisuseError, match="24GiB"):
        memory_size(text)


@pytest.mark.parametrize("name", ["RTX 4090", "rtx-4090", "NVIDIA GeForce RTX 4090", "rtx4090"])
def test_a_gpu_is_found_however_it_is_spelled(name):
    assert (gpu_named(name).name, gpu_named(name).compute_capability) == ("RTX-4090", "sm89")


def test_an_unknown_gpu_gets_the_nearest_names():
    with pytest.raises(MisuseError, match="RTX-4090"):
        gpu_named("RTX 4099")


def test_no_two_gpus_of_the_table_share_a_spelling():
    assert all(gpu_named(gpu.name) is gpu for gpu in GPUS.values())


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


def test_a_gpu_is_for_its_targets(refused, bundle):
    assert refused("plan", bundle, "--gpu", "L4", "--target", "ort-cpu")[0] == 2
    assert "no engine for tensorrt-rtx" in refused("plan", bundle, "--gpu", "L4")[1]


@pytest.mark.parametrize("words", [["--batch", "0"], ["--length", "97"]])
def test_sizes_the_model_does_not_have_are_misuse(refused, bundle, words):
    assert refused("plan", bundle, "--memory", "1GB", *words)[0] == 2
