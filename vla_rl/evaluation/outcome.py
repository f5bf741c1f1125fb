"""Results of an evaluation, for people and for programs."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vla_rl.evaluation.comparison import interval_in_words, mcnemar_in_words
from vla_rl.evaluation.control import Control
from vla_rl.evaluation.eval_results import EvaluationSummary
from vla_rl.evaluation.perturbed import PerturbedResult, table_in_words
from vla_rl.evaluation.video import VIDEOS


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationReport:
    """Rates of an evaluation, with the facts that must be read with them."""

    checkpoint: str
    folder: Path  # folder of results.json, results.csv, episodes.jsonl, manifest.json, videos/, logs/
    summary: EvaluationSummary
    deviations: tuple[str, ...]
    trained_on: str
    init_states: str  # of the evaluation
    controls: tuple[Control, ...]
    videos: tuple[int, int] | None  # episodes with a video, and without one that should have it; None: not requested
    perturbed: tuple[PerturbedResult, ...] = ()

    def to_json(self) -> str:
        """Return the report as one JSON object."""
        values: dict[str, Any] = {
            "checkpoint": self.checkpoint,
            "folder": str(self.folder),
            "init_states": self.init_states,
            "trained_on": self.trained_on,
            "deviations": list(self.deviations),
            "videos": None if self.videos is None else self.videos[0],
            "controls": [asdict(control) for control in self.controls],
            **({"perturbations": [asdict(one) for one in self.perturbed]} if self.perturbed else {}),
            **asdict(self.summary),
        }
        return json.dumps(values, indent=2)

    def sentences(self) -> list[str]:
        """Return what must be read with the rates, a line each."""
        lines = [f"evaluated on {self.init_states} initial states; trained on {self.trained_on}"]
        for suite in self.summary.suites:
            if suite.iqm is not None and suite.seeds > 1:
                spread = suite.iqm_interval
                words = f" (95 % interval {_points(spread.low)} to {_points(spread.high)})" if spread else ""
                lines.append(f"{suite.suite}: interquartile mean over {suite.seeds} seeds {_points(suite.iqm)}{words}")
        lines += map(_control_in_words, self.controls)
        lines += table_in_words(self.perturbed)
        if self.videos is not None:
            filmed, missed = self.videos
            before = f"; {missed} episodes were played before videos were asked for" if missed else ""
            lines.append(f"{filmed} videos in {self.folder / VIDEOS}{before}")
        lines += [f"note: {note}" for note in self.summary.notes]
        lines += [f"deviation from the protocol: {deviation}" for deviation in self.deviations]
        return [*lines, f"results: {self.folder}"]

    def __str__(self) -> str:
        lines = [f"{'suite':<16} {'task':>5} {'episodes':>8} {'success':>8}  95 % interval (suites also: bootstrap)"]
        lines += [
            f"{row['suite']:<16} {row['task_id']:>5} {row['episodes']:>8} {_points(float(row['success_rate'])):>8}  "
            + "  ".join(
                f"{_points(float(row[f'{kind}_low']))} to {_points(float(row[f'{kind}_high']))}"
                for kind in ("wilson", "bootstrap")
                if row[f"{kind}_low"] != ""
            )
            for row in self.summary.rows()
        ]
        return "\n".join([*lines, *self.sentences()])


def _control_in_words(control: Control) -> str:
    comparison = control.comparison
    return (
        f"control {control.name}: success {_points(control.success_rate)}; {control.subject} a difference of "
        f"{100 * comparison.difference:+.1f} points ({interval_in_words(comparison)}, {mcnemar_in_words(comparison)}): "
        f"{control.meaning}"
    )


def _points(share: float) -> str:
    """Format as a single word, for readers that split columns."""
    return f"{100 * share:.1f}%"
