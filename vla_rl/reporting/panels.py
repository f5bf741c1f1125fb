"""Panels in which the metrics of a run are drawn, by the report and by the live page: one list, one look."""

from __future__ import annotations

from dataclasses import dataclass

# Okabe and Ito's colours, distinguishable with any colour vision; reordered for contrast on white.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
CLOCK_LABELS = {"env_steps": "env steps", "optimizer_steps": "optimizer steps", "seconds": "wall-clock seconds"}


@dataclass(frozen=True, slots=True)
class PanelSpec:
    """One pair of axes; its metrics share a unit."""

    title: str
    metrics: tuple[str, ...]
    unit: str = ""  # empty for shares and other pure numbers
    shares: bool = False  # values are shares, shown in percent
    from_zero: bool = False  # the axis starts at 0, because the magnitude matters and not only the change

    @property
    def heading(self) -> str:
        """Return the title with the unit."""
        return f"{self.title} ({self.unit})" if self.unit else self.title

    @property
    def labels(self) -> tuple[str, ...]:
        """Return a name for each metric: without its group, unless two would then have one name."""
        short = tuple(name.partition("/")[2] for name in self.metrics)
        return short if len(set(short)) == len(short) else self.metrics


@dataclass(frozen=True, slots=True)
class FigureSpec:
    """One picture: panels over one clock."""

    name: str  # file name without suffix
    title: str
    over: str  # clock
    panels: tuple[PanelSpec, ...]


FIGURES = (
    FigureSpec(
        "learning",
        "Learning curves (training episodes)",
        "env_steps",
        (
            PanelSpec("success rate", ("rollout/success_rate",), shares=True),
            PanelSpec("return", ("rollout/return",), unit="reward"),
            PanelSpec("episode length", ("rollout/episode_length",), unit="env steps"),
        ),
    ),
    FigureSpec(
        "evaluations",
        "Evaluations while training",
        "optimizer_steps",
        (
            PanelSpec(
                "success rate and its 95 % interval",
                ("evaluation/success_rate", "evaluation/success_low", "evaluation/success_high"),
                shares=True,
            ),
            PanelSpec("time for evaluations", ("perf/evaluation_fraction",), shares=True),
        ),
    ),
    FigureSpec(
        "supervised",
        "Learning from demonstrations",
        "optimizer_steps",
        (
            PanelSpec("loss", ("supervised/loss", "held_out/loss"), unit="nat", from_zero=True),
            PanelSpec("action tokens that are right", ("supervised/accuracy", "held_out/accuracy"), shares=True),
            PanelSpec("success rate of evaluations", ("supervised/success_rate",), shares=True),
        ),
    ),
    FigureSpec(
        "groups",
        "Groups of episodes",
        "optimizer_steps",
        (
            PanelSpec("groups by outcome", ("groups/kept", "groups/all_success", "groups/all_fail"), shares=True),
            PanelSpec("played per kept group", ("groups/episodes_per_useful",), unit="episodes", from_zero=True),
        ),
    ),
    FigureSpec(
        "optimisation",
        "Optimisation",
        "optimizer_steps",
        (
            PanelSpec("policy loss", ("learner/policy_loss",)),
            PanelSpec("value loss", ("learner/value_loss",), unit="reward²", from_zero=True),
            PanelSpec("explained variance of the value", ("learner/explained_variance",)),
            PanelSpec("entropy", ("learner/entropy",), unit="nat", from_zero=True),
            PanelSpec("KL(behaviour ‖ policy)", ("learner/approx_kl", "learner/kl"), unit="nat"),
            PanelSpec("gradient norm", ("learner/grad_norm",), from_zero=True),
        ),
    ),
    FigureSpec(
        "policy_lag",
        "Policy lag",
        "optimizer_steps",
        (
            PanelSpec("lag", ("policy_lag/mean", "policy_lag/p95", "policy_lag/max"), unit="versions", from_zero=True),
            PanelSpec("old samples", ("policy_lag/old_fraction", "policy_lag/excluded"), shares=True),
            PanelSpec("|log ρ|, 95 % quantile", ("ratio/abs_log_p95",), unit="nat", from_zero=True),
        ),
    ),
    FigureSpec(
        "utilisation",
        "Use of the samples",
        "optimizer_steps",
        (
            PanelSpec(
                "share of ratios by weight",
                ("utilization/dead", "utilization/suppressed", "utilization/near_zero"),
                shares=True,
            ),
            PanelSpec("old ratios' part of the contribution", ("utilization/old_share",), shares=True),
            PanelSpec("effective sample size of old ratios", ("utilization/ess_old",), shares=True),
        ),
    ),
    FigureSpec(
        "rates",
        "Rates and waiting",
        "seconds",
        (
            PanelSpec("simulated", ("perf/env_steps_per_s",), unit="env steps/s", from_zero=True),
            PanelSpec(
                "collected and consumed",
                ("perf/decisions_per_s", "perf/learner_samples_per_s"),
                unit="decisions/s",
                from_zero=True,
            ),
            PanelSpec(
                "waiting",
                ("perf/learner_wait_fraction", "perf/env_wait_fraction", "perf/env_held_back_fraction"),
                shares=True,
            ),
        ),
    ),
)
