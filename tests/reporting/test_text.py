import pytest

from vla_rl.reporting import text


@pytest.mark.parametrize(
    ("value", "expected"),
    [(None, "-"), (0, "0"), (0.0312, "0.0312"), (4.534, "4.53"), (12345.6, "12,346"), (3.0, "3"), (2e-5, "2.0e-05")],
)
def test_numbers_keep_three_digits(value, expected):
    assert text.number(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"), [(None, "-"), (3725, "1:02:05"), (59.6, "0:01:00"), (2 * 86400 + 3 * 3600, "2 d 3 h")]
)
def test_durations_read_as_hours_minutes_seconds(value, expected):
    assert text.duration(value) == expected


@pytest.mark.parametrize(("value", "expected"), [(0, "0 B"), (999, "999 B"), (1_500_000, "1.5 MB"), (999_900, "1 MB")])
def test_sizes_are_powers_of_a_thousand(value, expected):
    assert text.size(value) == expected


def test_percent_of_a_share():
    assert (text.percent(0.456), text.percent(0.985, digits=1), text.percent(None)) == ("46 %", "98.5 %", "-")


def test_a_sparkline_runs_from_the_lowest_bar_to_the_full_one_and_clips():
    assert text.sparkline([0.0, 0.5, 1.0, 2.0, -1.0], low=0.0, high=1.0) == "▁▅██▁"


def test_a_sparkline_of_a_constant_is_flat():
    assert text.sparkline([3.0, 3.0], low=3.0, high=3.0) == "▁▁"
