"""Alarms of a run: a sentence when its numbers show that something is wrong, with what to try.

`alarms.jsonl` has a line for each, oldest first:

    {"optimizer_step": 120, "name": "success_collapse", "sentence": "training episodes succeed ...", "env_steps": 9600}

An alarm is given once when its condition begins, and again only after the condition was absent for `QUIET_POINTS` log
points. All that an alarm remembers follows from the log points before it, so a resumed run goes on as if it had never
stopped.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vla_rl.files import atomic_write_bytes
from vla_rl.reporting.metrics_file import is_number
from vla_rl.reporting.series import Records
from vla_rl.reporting.text import number, percent

ALARMS_FILE = "alarms.jsonl"
QUIET_POINTS = 10  # log points without the condition, before it may be told again
OPENING_POINTS = 10  # log points with which a later value loss is compared
RISE = 0.1  # nat per token by which the entropy must have been below its limit: an untrained policy wavers around it
STANDARD_ERRORS = 3.0  # of a difference of two success rates, beyond which it is no noise


@dataclass(frozen=True, slots=True)
class Alarm:
    """One alarm."""

    optimizer_step: int
    name: str
    sentence: str
    env_steps: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class AlarmLimits:
    """Thresholds; None: that alarm is never given."""

    success_drop: float | None = None  # below the highest success rate so far
    all_fail_episodes: int | None = None  # in a row
    all_succeed_episodes: int | None = None  # in a row
    entropy_min: float | None = None  # nat per token
    entropy_max: float | None = None  # nat per token
    kl_max: float | None = None  # nat per token
    value_loss_growth: float | None = None  # times the largest value loss of the first log points
    explained_variance_min: float = -1.0  # of the critic; the value loss counts as grown only below it
    recent_episodes: int = 100  # that a success rate is the mean of


class Alarms:
    """Watch over the log points of one run."""

    def __init__(self, limits: AlarmLimits, before: Records = ()) -> None:
        """Start watching.

        Args:
            limits: thresholds.
            before: log points of the run so far; what they would have told is not told again.
        """
        self._limits = limits
        self._quiet: dict[str, int] = {}  # log points without its condition, for each alarm that was given
        self._peak = 0.0  # success rate
        self._episodes_at_success = self._episodes_at_failure = 0
        self._was_below_max = False  # the entropy, clearly
        self._opening: list[float] = []  # value losses
        self._skipped = 0.0  # updates
        for record in before:
            self.check(record)

    def check(self, record: Mapping[str, Any]) -> list[Alarm]:
        """Return the alarms that begin with a log point: clocks and metrics by name."""
        conditions: dict[str, Callable[[Mapping[str, Any]], str | None]] = {
            "success_collapse": self._collapse,
            "nothing_succeeds": self._nothing_succeeds,
            "everything_succeeds": self._everything_succeeds,
            "entropy_low": self._entropy_low,
            "entropy_high": self._entropy_high,
            "kl_high": self._kl_high,
            "value_explosion": self._value_explosion,
            "updates_skipped": self._updates_skipped,
        }
        begun = []
        for name, condition in conditions.items():
            sentence = condition(record)
            if sentence is None:
                self._calm(name)
                continue
            if name not in self._quiet:
                begun.append(Alarm(int(record["optimizer_steps"]), name, sentence, int(record["env_steps"])))
            self._quiet[name] = 0
        return begun

    def _calm(self, name: str) -> None:
        if name in self._quiet:
            self._quiet[name] += 1
            if self._quiet[name] >= QUIET_POINTS:
                del self._quiet[name]

    def _collapse(self, record: Mapping[str, Any]) -> str | None:
        rate, limit, window = _value(record, "rollout/success_rate"), self._limits.success_drop, self._limits
        if rate is None or record["episodes"] < window.recent_episodes:  # too few for a rate
            return None
        self._peak = max(self._peak, rate)
        drop, pooled = self._peak - rate, (self._peak + rate) / 2
        noise = STANDARD_ERRORS * math.sqrt(2 * pooled * (1 - pooled) / window.recent_episodes)
        if limit is None or drop < limit or drop <= noise:
            return None
        return (
            f"training episodes succeed in {percent(rate)} of cases, after {percent(self._peak)} before: go back to an "
            "earlier checkpoint (checkpoint.keep_best keeps the best) with a lower optimizer.policy_lr, or use less "
            "old data (replay.max_policy_lag, replay.replay_ratio)"
        )

    def _nothing_succeeds(self, record: Mapping[str, Any]) -> str | None:
        rate, limit = _value(record, "rollout/success_rate"), self._limits.all_fail_episodes
        if rate is None:
            return None
        if rate > 0:
            self._episodes_at_success = record["episodes"]
        failed = record["episodes"] - self._episodes_at_success
        if limit is None or rate > 0 or failed < limit:
            return None
        return (
            f"none of the last {failed:,} training episodes succeeded: start from a better checkpoint, raise "
            "rollout.temperature or env.horizon, or train on easier tasks"
        )

    def _everything_succeeds(self, record: Mapping[str, Any]) -> str | None:
        rate, limit = _value(record, "rollout/success_rate"), self._limits.all_succeed_episodes
        if rate is None:
            return None
        if rate < 1:
            self._episodes_at_failure = record["episodes"]
        succeeded = record["episodes"] - self._episodes_at_failure
        if limit is None or rate < 1 or succeeded < limit:
            return None
        return (
            f"all of the last {succeeded:,} training episodes succeeded, so little is left to learn: evaluate the "
            "policy, end such runs with budget.stop_at_success, or train on harder tasks or initial states"
        )

    def _entropy_low(self, record: Mapping[str, Any]) -> str | None:
        entropy, limit = _value(record, "learner/entropy"), self._limits.entropy_min
        if entropy is None or limit is None or entropy >= limit:
            return None
        return (
            f"the policy's entropy is {number(entropy)} nat per token, so it tries hardly anything new: raise "
            "loss.entropy_coefficient or rollout.temperature, or lower optimizer.policy_lr"
        )

    def _entropy_high(self, record: Mapping[str, Any]) -> str | None:
        entropy, limit = _value(record, "learner/entropy"), self._limits.entropy_max
        if entropy is None or limit is None:
            return None
        if entropy <= limit - RISE:
            self._was_below_max = True
        if entropy <= limit or not self._was_below_max:  # an untrained policy begins above it
            return None
        return (
            f"the policy's entropy has risen to {number(entropy)} nat per token, so it acts almost at random: lower "
            "optimizer.policy_lr or loss.entropy_coefficient, and go back to an earlier checkpoint"
        )

    def _kl_high(self, record: Mapping[str, Any]) -> str | None:
        exact, limit = _value(record, "learner/kl"), self._limits.kl_max
        divergence = _value(record, "learner/approx_kl") if exact is None else exact
        if divergence is None or limit is None or divergence <= limit:
            return None
        return (
            f"KL(behaviour ‖ policy) is {number(divergence)} nat per token, so the samples tell little about the "
            "policy: lower optimizer.policy_lr or replay.replay_ratio, or set replay.max_policy_lag"
        )

    def _value_explosion(self, record: Mapping[str, Any]) -> str | None:
        loss, limit = _value(record, "learner/value_loss"), self._limits.value_loss_growth
        advice = "lower optimizer.value_lr or loss.value_coefficient, and go back to an earlier checkpoint"
        if limit is None or loss is None:
            return None
        if len(self._opening) < OPENING_POINTS:
            self._opening.append(loss)
            return None
        explained = _value(record, "learner/explained_variance")
        is_worse = explained is not None and explained < self._limits.explained_variance_min
        if not is_worse or loss <= limit * max(self._opening):
            return None
        return (
            f"the critic's squared error is {number(loss)}, after at most {number(max(self._opening))} at first, and "
            f"its values explain nothing of the targets: {advice}"
        )

    def _updates_skipped(self, record: Mapping[str, Any]) -> str | None:
        before, self._skipped = self._skipped, _value(record, "learner/skipped_updates") or self._skipped
        new = self._skipped - before
        if new <= 0:
            return None
        updates = "update was" if new == 1 else "updates were"
        return (
            f"{number(new)} {updates} skipped because a loss or a gradient was not finite: look at the learner's log, "
            "and lower optimizer.policy_lr and optimizer.value_lr"
        )


def _value(record: Mapping[str, Any], name: str) -> float | None:
    value = record.get(name)
    return float(value) if is_number(value) else None


class AlarmsFile:
    """`alarms.jsonl` of a run. Alarms after the optimizer step that it resumes from are removed."""

    def __init__(self, run_dir: Path, *, resume_at: int) -> None:
        self._path = run_dir / ALARMS_FILE
        self._alarms = [alarm for alarm in read_alarms(run_dir) if alarm.optimizer_step <= resume_at]
        if self._path.exists():
            self._write()

    def add(self, alarm: Alarm) -> None:
        """Append an alarm; a reader sees the whole file at any time.

        Raises:
            OSError: it cannot be written.
        """
        self._alarms.append(alarm)
        self._write()

    def _write(self) -> None:
        lines = [json.dumps(asdict(alarm), ensure_ascii=False).encode() + b"\n" for alarm in self._alarms]
        atomic_write_bytes(self._path, b"".join(lines))


def read_alarms(run_dir: Path) -> list[Alarm]:
    """Return the alarms of a run, oldest first; lines that are none are passed over."""
    path = run_dir / ALARMS_FILE
    if not path.is_file():
        return []
    found = (_parse(line) for line in path.read_text(encoding="utf-8", errors="replace").splitlines())
    return [alarm for alarm in found if alarm is not None]


def _parse(line: str) -> Alarm | None:
    try:
        values = json.loads(line)
    except ValueError:
        return None
    match values:
        case {"optimizer_step": int() as step, "name": str() as name, "sentence": str() as sentence}:
            env_steps = values.get("env_steps")
            return Alarm(step, name, sentence, env_steps if isinstance(env_steps, int) else 0)
    return None
