import pytest

from piston.core.errors import MisuseError
from piston.core.units import factor_of, parse_count, parse_size, shown


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("24GiB", 24 * 2**30),
        ("800MB", 800 * 10**6),
        (" 1.5 g ", 1_500_000_000),
        ("1.5GB", 1_500_000_000),
        ("2ki", 2048),
        ("2gib", 2 * 2**30),
        ("3 TB", 3 * 10**12),
        ("7B", 7),
    ],
)
def test_a_size_is_read_in_both_systems(text, nbytes):
    assert parse_size(text, "--memory") == nbytes


@pytest.mark.parametrize(
    "text", ["", "much", "-3GB", "0", "0GB", "0.5B", "7", "GiB", "3 PB", "9" * 400 + "TB", "nanMB"]
)
def test_what_is_no_size_is_refused_naming_the_option(text):
    with pytest.raises(MisuseError, match=r"Cannot read --memory .*24GiB"):
        parse_size(text, "--memory")


def test_a_suffix_belongs_to_one_unit():
    assert factor_of("bytes", "MiB") == 2**20
    assert factor_of("s", "ms") == pytest.approx(1e-3)
    assert factor_of("tokens/s", "tokens/s") == 1
    assert factor_of("", "") == 1
    assert factor_of("bytes", "ms") is factor_of("s", "MB") is factor_of("tokens/s", "") is factor_of("", "s") is None


def test_bytes_are_shown_in_megabytes_or_kilobytes():
    assert (shown(2_500_000, "bytes"), shown(2_500, "bytes")) == ("2.5 MB", "2.5 kB")


@pytest.mark.parametrize(
    ("text", "count"), [("0", 0), ("012", 12), ("9" * 18, 10**18 - 1), ("9" * 19, None), ("9" * 5000, None)]
)
def test_a_count_is_digits_alone(text, count):
    assert parse_count(text) == count


@pytest.mark.parametrize("text", ["", "-1", "+1", "1.0", "1_0", " 1", "\u0663", "\u00b2"])
def test_anything_else_is_no_count(text):
    assert parse_count(text) is None
