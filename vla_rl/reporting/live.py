"""The live view of a run: a panel on a terminal, one plain line now and then anywhere else."""

from __future__ import annotations

from typing import Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from vla_rl.reporting.run_snapshot import Rates, RateWindow, RunSnapshot, pace_setter
from vla_rl.reporting.text import ABSENT, duration, number, percent, size, sparkline

PLAIN_INTERVAL_S = 10.0
HISTORY_WIDTH = 32


class Display(Protocol):
    """Interface of the live view. Used from one thread; closed when the run ends, for whatever reason."""

    def update(self, snapshot: RunSnapshot) -> None:
        """Show the run as it is now."""
        ...

    def message(self, text: str) -> None:
        """Show a message that stays on the screen: a restart, a checkpoint, a warning."""
        ...

    def close(self) -> None:
        """Show the last snapshot and release the screen; safe to call twice."""
        ...


def make_display(console: Console, *, total_optimizer_steps: int) -> Display:
    """Return the display that suits the console.

    Args:
        console: console to write to; the panel needs a terminal with Unicode.
        total_optimizer_steps: budget, for the progress and the remaining time.
    """
    if console.is_terminal and not console.is_dumb_terminal and console.encoding.startswith("utf"):
        return PanelDisplay(console, total_optimizer_steps=total_optimizer_steps)
    return PlainDisplay(console, total_optimizer_steps=total_optimizer_steps)


class PlainDisplay:
    """Display of one ASCII line every few seconds, for batch logs and pipes."""

    def __init__(self, console: Console, *, total_optimizer_steps: int) -> None:
        self._console = console
        self._total = total_optimizer_steps
        self._window = RateWindow()
        self._shown_at: float | None = None
        self._waiting: str | None = None

    def update(self, snapshot: RunSnapshot) -> None:
        """Print a line if the previous one is old enough."""
        self._waiting = plain_line(snapshot, self._window.add(snapshot), total_optimizer_steps=self._total)
        now = snapshot.clocks.seconds
        if self._shown_at is None or now - self._shown_at >= PLAIN_INTERVAL_S:
            self._shown_at = now
            self._flush()

    def message(self, text: str) -> None:
        """Print the text as a separate line."""
        self._print(text)

    def close(self) -> None:
        """Print the last snapshot if it has not been printed."""
        self._flush()

    def _flush(self) -> None:
        if self._waiting is not None:
            self._print(self._waiting)
            self._waiting = None

    def _print(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


def plain_line(snapshot: RunSnapshot, rates: Rates | None, *, total_optimizer_steps: int) -> str:
    """Format a snapshot as one ASCII line."""
    done = snapshot.clocks.optimizer_steps
    parts = [
        f"[{duration(snapshot.clocks.seconds)}] optimizer step {done:,}/{total_optimizer_steps:,}",
        f"success {percent(snapshot.success_rate)}, return {number(snapshot.mean_return)}, "
        f"{snapshot.clocks.episodes:,} episodes",
        f"lag mean {number(snapshot.policy_lag_mean)}, p95 {number(snapshot.policy_lag_p95)}, "
        f"old {percent(snapshot.old_fraction)}, |log ratio| p95 {number(snapshot.abs_log_ratio_p95)}",
        _rates_in_words(rates),
        f"env wait {percent(snapshot.env_wait_fraction)}, held back {percent(snapshot.env_held_back_fraction)}, "
        f"inference busy {percent(snapshot.inference_busy_fraction)}, "
        f"learner wait {percent(snapshot.learner_wait_fraction)}",
        *_evaluated(snapshot),
        f"restarts {snapshot.env_worker_restarts}",
        f"left {_time_left(rates, total_optimizer_steps - done)}",
    ]
    return " | ".join(parts)


def _evaluated(snapshot: RunSnapshot) -> list[str]:
    """Return the newest evaluation while training in words, and the best; nothing before the first."""
    newest, best = snapshot.evaluated, snapshot.best_evaluated
    if newest is None or best is None:
        return []
    return [
        f"evaluated {percent(newest.success_rate)} ({percent(newest.low)} to {percent(newest.high)}) at "
        f"{newest.optimizer_steps:,}, best {percent(best.success_rate)} at {best.optimizer_steps:,}, "
        f"{percent(snapshot.evaluation_fraction)} of the time"
    ]


def _rates_in_words(rates: Rates | None) -> str:
    shown = (None, None, None) if rates is None else (rates.env_steps, rates.decisions, rates.samples)
    units = ("env steps/s", "decisions/s", "samples/s")
    return ", ".join(f"{number(value)} {unit}" for value, unit in zip(shown, units, strict=True))


def _time_left(rates: Rates | None, optimizer_steps: int) -> str:
    return ABSENT if rates is None else duration(rates.seconds_left(max(0, optimizer_steps)))


class PanelDisplay:
    """Display of a panel that is redrawn in place."""

    def __init__(self, console: Console, *, total_optimizer_steps: int) -> None:
        self._total = total_optimizer_steps
        self._window = RateWindow()
        self._success = History(width=HISTORY_WIDTH)
        self._return = History(width=HISTORY_WIDTH)
        self._live = Live(Text("starting ..."), console=console, refresh_per_second=4)
        self._live.start()

    def update(self, snapshot: RunSnapshot) -> None:
        """Redraw."""
        self._success.add(snapshot.success_rate)
        self._return.add(snapshot.mean_return)
        rates = self._window.add(snapshot)
        self._live.update(self._panel(snapshot, rates))

    def message(self, text: str) -> None:
        """Print the text above the panel."""
        self._live.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Leave the last panel on the screen."""
        self._live.stop()

    def _panel(self, snapshot: RunSnapshot, rates: Rates | None) -> RenderableType:
        body = Group(
            _progress(snapshot, rates, total=self._total),
            Text(),
            _facts(snapshot, rates, success=self._success.values, returns=self._return.values),
        )
        return Panel(body, title="vla-rl", title_align="left", border_style="cyan")


def _progress(snapshot: RunSnapshot, rates: Rates | None, *, total: int) -> Table:
    done = snapshot.clocks.optimizer_steps
    row = Table.grid(padding=(0, 2), expand=True)
    row.add_column(no_wrap=True)
    row.add_column(ratio=1, min_width=10)
    row.add_column(no_wrap=True)
    row.add_column(no_wrap=True)
    row.add_row(
        Text(f"{done:,} / {total:,} optimizer steps", style="bold"),
        ProgressBar(total=total, completed=min(done, total)),
        percent(done / total),
        f"{duration(snapshot.clocks.seconds)} run · {_time_left(rates, total - done)} left",
    )
    return row


def _facts(snapshot: RunSnapshot, rates: Rates | None, *, success: list[float], returns: list[float]) -> Table:
    clocks = snapshot.clocks
    table = Table.grid(padding=(0, 2))
    table.add_column(style="cyan", no_wrap=True)
    table.add_column()
    table.add_row("success", _with_line(percent(snapshot.success_rate), sparkline(success, low=0.0, high=1.0)))
    for words in _evaluated(snapshot):
        table.add_row("evaluation", words.removeprefix("evaluated "))
    table.add_row("return", _with_line(number(snapshot.mean_return), _own_scale(returns)))
    table.add_row(
        "experience",
        f"{clocks.episodes:,} episodes · {clocks.decisions:,} decisions · {clocks.env_steps:,} env steps",
    )
    table.add_row(
        "policy lag",
        f"mean {number(snapshot.policy_lag_mean)} · P95 {number(snapshot.policy_lag_p95)} · "
        f"old {percent(snapshot.old_fraction)} · |log ρ| P95 {number(snapshot.abs_log_ratio_p95)}",
    )
    table.add_row("rates", _rates_in_words(rates).replace(", ", " · "))
    table.add_row("waiting", _waiting(snapshot))
    table.add_row("health", _health(snapshot))
    return table


def _with_line(value: str, line: str) -> Text:
    return Text.assemble((f"{value:>6}", "bold"), "  ", (line, "green"))


def _own_scale(values: list[float]) -> str:
    return sparkline(values, low=min(values), high=max(values)) if values else ""


def _waiting(snapshot: RunSnapshot) -> Text:
    shares = (
        f"envs wait {percent(snapshot.env_wait_fraction)}, "
        f"held back {percent(snapshot.env_held_back_fraction)} · "
        f"inference busy {percent(snapshot.inference_busy_fraction)} · "
        f"learner waits {percent(snapshot.learner_wait_fraction)}"
    )
    pace = pace_setter(snapshot)
    return Text(shares) if pace is None else Text.assemble(shares, (f"  {pace}", "italic yellow"))


def _health(snapshot: RunSnapshot) -> Text:
    restarts = snapshot.env_worker_restarts
    folder = "" if snapshot.run_bytes is None else f" · run folder {size(snapshot.run_bytes)}"
    return Text.assemble(
        f"env workers {snapshot.num_env_workers} · ",
        (f"restarts {restarts}", "red" if restarts else ""),
        f" · replay {snapshot.replay_size:,} / {snapshot.replay_capacity:,}{folder}",
    )


class History:
    """Whole series in at most `width` points of equal weight: when full, neighbours are averaged in pairs."""

    def __init__(self, *, width: int) -> None:
        self._width = width
        self._stride = 1
        self._pending: list[float] = []
        self.values: list[float] = []

    def add(self, value: float | None) -> None:
        """Append one point; None is skipped."""
        if value is None:
            return
        self._pending.append(value)
        if len(self._pending) < self._stride:
            return
        self.values.append(sum(self._pending) / len(self._pending))
        self._pending.clear()
        if len(self.values) == self._width:
            pairs = zip(self.values[::2], self.values[1::2], strict=True)
            self.values = [(first + second) / 2 for first, second in pairs]
            self._stride *= 2
