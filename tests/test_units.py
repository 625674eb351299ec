"""Numbers with their units."""

import pytest

from traceformer.units import amount_of_bytes, duration


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (12_345, "12.3 kB"), (123_456, "123 kB"), (999_499, "999 kB"),
        (999_500, "1.00 MB"), (9_996, "10.0 kB"), (99_960, "100 kB"), (1.5e12, "1.50 TB"), (3e18, "3000 PB"),
    ],
)  # fmt: skip
def test_bytes_have_three_digits_and_a_decimal_unit(size: float, words: str) -> None:
    assert amount_of_bytes(size) == words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0.0 s"), (9.94, "9.9 s"), (9.96, "10 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (185, "3 min 05 s"),
        (7800, "2 h 10 min"),
    ],
)  # fmt: skip
def test_durations_are_told_in_the_two_largest_units(seconds: float, words: str) -> None:
    assert duration(seconds) == words
