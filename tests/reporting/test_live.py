import io
from dataclasses import replace

import pytest
from rich.console import Console

from vla_rl.reporting.live import History, PanelDisplay, PlainDisplay, make_display
from vla_rl.reporting.metrics_file import Clocks
from vla_rl.reporting.run_snapshot import RateWindow, RunSnapshot, pace_setter


def snapshot(seconds, *, optimizer_steps=0, env_steps=0, decisions=0, samples=0, **more):
    clocks = Clocks(env_steps=env_steps, decisions=decisions, optimizer_steps=optimizer_steps, seconds=seconds)
    return RunSnapshot(clocks=clocks, samples=samples, **more)


def plain_console():
    return Console(file=io.StringIO(), width=80)


def terminal(encoding="utf-8"):
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding, write_through=True)
    console = Console(file=stream, force_terminal=True, width=120, height=30, legacy_windows=False, _environ={})
    return console, lambda: raw.getvalue().decode(encoding)


def test_rates_are_differences_over_the_window():
    window = RateWindow(span_seconds=10)
    assert window.add(snapshot(0)) is None
    rates = window.add(snapshot(4, optimizer_steps=2, env_steps=800, decisions=100, samples=300))
    assert (rates.env_steps, rates.decisions, rates.samples, rates.optimizer_steps) == (200, 25, 75, 0.5)
    assert rates.seconds_left(10) == 20


def test_rates_forget_what_is_older_than_the_window():
    window = RateWindow(span_seconds=10)
    for second in range(0, 62):  # 1000 env steps/s for 50 s, then 2 env steps/s
        rates = window.add(snapshot(second, env_steps=1000 * min(second, 50) + 2 * max(0, second - 50)))
    assert rates.env_steps == 2


def test_rates_span_the_window_even_if_snapshots_are_rare():
    window = RateWindow(span_seconds=10)
    for seconds, env_steps in ((0, 0), (15, 100), (16, 320)):
        rates = window.add(snapshot(seconds, env_steps=env_steps))
    assert rates.env_steps == 20


def test_a_stall_has_no_time_left():
    window = RateWindow()
    window.add(snapshot(0, optimizer_steps=5))
    assert window.add(snapshot(9, optimizer_steps=5)).seconds_left(10) is None


@pytest.mark.parametrize(
    ("learner_waits", "envs_wait", "pace"),
    [
        (0.05, 0.9, "the learner sets the pace"),
        (0.8, 0.9, "inference sets the pace"),
        (0.8, 0.1, "simulation sets the pace"),
        (None, 0.1, None),
    ],
)
def test_who_is_waited_for_follows_from_who_waits(learner_waits, envs_wait, pace):
    assert pace_setter(snapshot(0, learner_wait_fraction=learner_waits, env_wait_fraction=envs_wait)) == pace


def test_a_pipe_gets_one_line_every_ten_seconds_and_the_last_one():
    console = plain_console()
    display = make_display(console, total_optimizer_steps=50)
    assert isinstance(display, PlainDisplay)
    for second in range(24):
        display.update(snapshot(second, optimizer_steps=second))
    display.close()
    display.close()
    lines = console.file.getvalue().splitlines()
    assert [line.split(" | ")[0] for line in lines] == [
        "[0:00:00] optimizer step 0/50",
        "[0:00:10] optimizer step 10/50",
        "[0:00:20] optimizer step 20/50",
        "[0:00:23] optimizer step 23/50",
    ]
    assert lines[-1].endswith("left 0:00:27")


def test_plain_lines_are_ascii_and_say_what_is_unknown():
    console = plain_console()
    display = make_display(console, total_optimizer_steps=50)
    display.update(snapshot(0))
    line = console.file.getvalue()
    assert line.isascii()
    assert "success -, return -" in line
    assert "restarts 0" in line


def test_messages_are_printed_as_they_are():
    console = plain_console()
    make_display(console, total_optimizer_steps=1).message("lost [cell 0] of [/run]: " + "x" * 100)
    assert console.file.getvalue() == "lost [cell 0] of [/run]: " + "x" * 100 + "\n"


def test_a_terminal_gets_a_panel_with_every_fact():
    console, shown = terminal()
    display = make_display(console, total_optimizer_steps=50)
    assert isinstance(display, PanelDisplay)
    first = snapshot(
        0,
        success_rate=0.25,
        mean_return=0.5,
        policy_lag_mean=3.25,
        policy_lag_p95=9,
        old_fraction=0.12,
        abs_log_ratio_p95=0.31,
        env_wait_fraction=0.2,
        env_held_back_fraction=0.05,
        inference_busy_fraction=0.55,
        learner_wait_fraction=0.8,
        replay_size=900,
        replay_capacity=1000,
        num_env_workers=16,
        run_bytes=1_230_000_000,
    )
    display.update(first)
    display.update(replace(first, clocks=replace(first.clocks, seconds=10.0, optimizer_steps=10, env_steps=3430)))
    display.message("a worker [3] came back")
    display.message(f"warning: {'x' * 150}")  # longer than a line: the terminal wraps it, and it can be copied whole
    display.close()
    display.close()
    for fact in (
        "10 / 50 optimizer steps",
        "20 %",
        "0:00:10 run · 0:00:40 left",
        "25 %",
        "mean 3.25 · P95 9 · old 12 % · |log ρ| P95 0.31",
        "343 env steps/s",
        "envs wait 20 %, held back 5 % · inference busy 55 % · learner waits 80 %",
        "simulation sets the pace",
        "env workers 16",
        "restarts 0",
        "replay 900 / 1,000",
        "1.23 GB",
        "a worker [3] came back",
        f"warning: {'x' * 150}",
    ):
        assert fact in shown(), fact


def test_a_panel_leaves_out_the_size_of_the_folder_if_nobody_measured_it():
    console, shown = terminal()
    display = make_display(console, total_optimizer_steps=50)
    display.update(snapshot(0))
    display.close()
    assert "restarts 0" in shown()
    assert "run folder" not in shown()


def test_a_terminal_without_unicode_gets_plain_lines():
    console, _ = terminal("ascii")
    assert isinstance(make_display(console, total_optimizer_steps=1), PlainDisplay)


def test_a_history_keeps_the_whole_series_in_few_points():
    history = History(width=4)
    for value in range(16):
        history.add(float(value))
    assert history.values == [3.5, 11.5]  # means of 0..7 and of 8..15


def test_a_history_skips_what_is_unknown():
    history = History(width=4)
    for value in (None, 1.0, None):
        history.add(value)
    assert history.values == [1.0]
