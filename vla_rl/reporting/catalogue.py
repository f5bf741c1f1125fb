"""Catalogue of every metric the program writes: its unit, its meaning, and its reduction over ranks.

Writing a metric that is not listed here is an error, so the catalogue is complete by construction. Thresholds are given
in words, with the recipe field that sets them. A sample is one valid decision of an optimizer step. A ratio is of a
token, control step or decision, as `loss.ratio` says; drift is always measured per token.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Reduction = Literal["mean", "sum", "max"]


@dataclass(frozen=True, slots=True)
class Metric:
    """One named series."""

    name: str
    unit: str  # "1" for shares and other pure numbers
    meaning: str  # one line, with the threshold in words
    reduction: Reduction | None = None  # over ranks; None: computed over all ranks' samples or episodes at once


COMPONENTS = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")  # of an action
_OF_DEMONSTRATIONS = {
    "cross_entropy": ("nat", "mean cross-entropy of action tokens with the demonstrated ones"),
    "accuracy": ("1", "share of action tokens whose most likely bin is the demonstrated one"),
    "l1": ("action", "mean absolute difference of the most likely action from the demonstrated one"),
}


def _supervised(group: str, where: str) -> tuple[Metric, ...]:
    """Return what is measured on demonstrations, over all components of an action and for each."""
    return (
        Metric(f"{group}/loss", "nat", f"mean loss of action tokens (labels as loss.label_sigma makes them), {where}"),
        *(Metric(f"{group}/{name}", unit, f"{said}, {where}") for name, (unit, said) in _OF_DEMONSTRATIONS.items()),
        *(
            Metric(f"{group}/{name}_{part}", unit, f"the same, only for {part}")
            for name, (unit, _) in _OF_DEMONSTRATIONS.items()
            for part in COMPONENTS
        ),
        Metric(f"{group}/value_loss", "reward²", f"mean squared error of the value, {where}"),
    )


def _metrics() -> tuple[Metric, ...]:
    return (
        Metric("rollout/success_rate", "1", "share of the recent training episodes with a success"),
        Metric("rollout/return", "reward", "mean undiscounted return of the recent training episodes"),
        Metric("rollout/episode_length", "env steps", "mean length of the recent training episodes"),
        Metric("groups/kept", "1", "share of the recent groups inside `targets.keep`"),
        Metric("groups/all_success", "1", "share of the recent groups whose members all succeeded"),
        Metric("groups/all_fail", "1", "share of the recent groups whose members all failed"),
        Metric("groups/episodes_per_useful", "episodes", "episodes played per recent group inside `targets.keep`"),
        *_supervised("supervised", "since the last log point"),
        *_supervised("held_out", "on held-out episodes"),
        Metric("supervised/epochs", "1", "mean number of times that a sample was used"),
        Metric("supervised/success_rate", "1", "success rate of the newest evaluation during a supervised run"),
        Metric("evaluation/success_rate", "1", "success rate of an evaluation while training, mean over tasks"),
        Metric("evaluation/success_low", "1", "lower end of its 95 % interval (Wilson, all episodes as one sample)"),
        Metric("evaluation/success_high", "1", "upper end of its 95 % interval"),
        Metric("evaluation/episodes", "episodes", "episodes of that evaluation"),
        Metric("evaluation/best_success_rate", "1", "success rate of the best evaluation so far"),
        Metric("evaluation/without_gain", "count", "evaluations since the best one, none distinguishably better"),
        Metric("learner/policy_loss", "1", "minus the surrogate objective, averaged as `loss.aggregation` says"),
        Metric("learner/value_loss", "reward²", "mean squared error of the critic's value, before its coefficient"),
        Metric("learner/entropy", "nat", "mean entropy of the policy per action token"),
        Metric(
            "learner/approx_kl", "nat", "sample estimate of KL(behaviour ‖ policy), mean of ρ − 1 − log ρ over tokens"
        ),
        Metric("learner/kl", "nat", "exact KL(behaviour ‖ policy) over the bins, per token, if logits are stored"),
        Metric("learner/grad_norm", "1", "norm of the gradient before clipping"),
        Metric("learner/clip_fraction", "1", "share of ratios outside the surrogate's clip range"),
        Metric(
            "learner/explained_variance", "1", "1 − Var(target − value) / Var(target); 1 is a perfect critic, 0 a mean"
        ),
        Metric("learner/policy_lr", "1", "learning rate of the policy's parameters"),
        Metric("learner/value_lr", "1", "learning rate of the critic's parameters"),
        Metric(
            "learner/micro_batches", "count", "micro-batches of an update per rank; more after running out of memory"
        ),
        Metric("learner/skipped_updates", "count", "updates skipped so far, because a gradient was not finite"),
        Metric("policy_lag/mean", "versions", "mean policy lag of the samples, when they were consumed"),
        Metric("policy_lag/p95", "versions", "95 % quantile of the policy lag"),
        Metric("policy_lag/max", "versions", "largest policy lag"),
        Metric("policy_lag/old_fraction", "1", "share of samples at or above `replay.old_threshold` versions"),
        Metric("policy_lag/old_p95", "versions", "95 % quantile of the old samples' policy lag; 0 if there are none"),
        Metric(
            "policy_lag/excluded", "1", "share of the ring beyond `replay.max_policy_lag`, so never sampled", "mean"
        ),
        Metric("ratio/abs_log_p95", "nat", "95 % quantile of |log ρ| over tokens"),
        Metric("ratio/lag0_abs_log_p95", "nat", "the same over decisions of lag 0, where ρ is 1 except for rounding"),
        Metric("ratio/lag0_abs_log_max", "nat", "largest |log ρ| of a token at lag 0"),
        Metric("ratio/lag0_joint_abs_log_p95", "nat", "95 % quantile of |log ρ| of whole decisions at lag 0"),
        Metric("ratio/lag0_joint_abs_log_max", "nat", "largest |log ρ| of a whole decision at lag 0"),
        Metric("utilization/dead", "1", "share of ratios whose weight w on ∇ log π is exactly 0"),
        Metric("utilization/suppressed", "1", "share of ratios with 0 < |w| below one thousandth"),
        Metric("utilization/near_zero", "1", "share of ratios whose contribution |w A| is below one thousandth"),
        Metric("utilization/old_share", "1", "old ratios' share of the summed contribution |w A|; 0 if there are none"),
        Metric(
            "utilization/ess_old",
            "1",
            "effective sample size of |w A| among old ratios, over their number; 0 if there are none",
        ),
        Metric("replay/size", "decisions", "decisions in the replay rings", "sum"),
        Metric("replay/age_mean", "decisions", "decisions collected since a sample was, mean over the samples"),
        Metric("replay/ratio", "1", "decisions consumed per decision collected, since the start"),
        Metric("perf/env_steps_per_s", "env steps/s", "simulated control steps per second", "sum"),
        Metric("perf/decisions_per_s", "decisions/s", "decisions collected per second", "sum"),
        Metric("perf/learner_samples_per_s", "decisions/s", "decisions consumed by the learner per second", "sum"),
        Metric("perf/images_per_s", "images/s", "demonstration frames used per second", "sum"),
        Metric("perf/seconds_left", "s", "time to the end of the budget at the present rate", "max"),
        Metric("perf/learner_wait_fraction", "1", "share of time the learner waits for experience", "mean"),
        Metric(
            "perf/env_wait_fraction",
            "1",
            "share of time env workers wait for actions; with rollout.remote, while all of their simulators wait",
            "mean",
        ),
        Metric(
            "perf/env_held_back_fraction",
            "1",
            "share of time `replay.replay_ratio` makes env workers wait for the learner",
            "mean",
        ),
        Metric("perf/inference_batch_size", "decisions", "mean decisions per inference batch", "mean"),
        Metric(
            "perf/values_ms",
            "ms",
            "time of the last update's pass for values; 0 if the pass for the loss computes them",
            "max",
        ),
        Metric("perf/loss_ms", "ms", "time of the last update's forward and backward passes for the loss", "max"),
        Metric("perf/optimizer_ms", "ms", "time of the last update's clipping and optimizer step", "max"),
        Metric(
            "perf/learner_mfu",
            "1",
            "model FLOPs of the consumed decisions over the GPU's bfloat16 peak while the learner does not wait",
            "mean",
        ),
        Metric(
            "perf/inference_mfu",
            "1",
            "model FLOPs of the served decisions over the GPU's bfloat16 peak while the inference worker computes",
            "mean",
        ),
        Metric("perf/evaluation_s", "s", "time of the evaluation, during which the learner stands still", "max"),
        Metric("perf/evaluation_fraction", "1", "share of the run's time for evaluations while training", "max"),
        Metric("perf/publish_ms", "ms", "time to publish the trainable weights", "max"),
        Metric("perf/adopt_ms", "ms", "time the inference worker took to load the newest weights", "max"),
        Metric("memory/learner_allocated", "GiB", "peak GPU memory of the learner's tensors", "max"),
        Metric("memory/learner_reserved", "GiB", "peak GPU memory that the learner's allocator reserved", "max"),
        Metric(
            "memory/inference_allocated",
            "GiB",
            "peak GPU memory of the inference worker's own tensors; in serial mode the learner's number",
            "max",
        ),
        Metric(
            "memory/inference_reserved",
            "GiB",
            "peak GPU memory that the inference worker's allocator reserved; in serial mode the learner's number",
            "max",
        ),
        Metric(
            "memory/estimated",
            "GiB",
            "the dry run's estimate for one GPU: both processes, their CUDA contexts, rendering simulators",
            "max",
        ),
        Metric("system/env_worker_restarts", "count", "restarts of env workers since the last start or resume", "sum"),
        Metric(
            "system/dropped_episodes",
            "count",
            "episodes lost since the last start or resume, because a worker died or hung",
            "sum",
        ),
    )


CATALOGUE: Mapping[str, Metric] = {metric.name: metric for metric in _metrics()}


def require_known(names: Iterable[str]) -> None:
    """Refuse names that the catalogue lacks.

    Raises:
        ValueError: naming each unknown metric and the closest known one.
    """
    unknown = [name for name in names if name not in CATALOGUE]
    if unknown:
        raise ValueError("; ".join(_complaint(name) for name in unknown))


def _complaint(name: str) -> str:
    close = difflib.get_close_matches(name, CATALOGUE, n=1)
    advice = f"did you mean {close[0]!r}?" if close else "add it to vla_rl/reporting/catalogue.py"
    return f"metric {name!r} is not in the catalogue: {advice}"


def reduce_over_ranks(per_rank: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Reduce the ranks' metrics, each by its own reduction.

    A rank that lacks a metric is left out of its reduction. A non-finite value makes the result non-finite, so that a
    broken rank is visible. A mean weighs all ranks equally.

    Args:
        per_rank: one mapping from metric name to value per rank.

    Returns:
        One value per metric that at least one rank has, in the catalogue's order.

    Raises:
        ValueError: a name is not in the catalogue, or its metric has no reduction.
    """
    present = {name for metrics in per_rank for name in metrics}
    require_known(sorted(present))
    return {
        name: _reduce(metric, [metrics[name] for metrics in per_rank if name in metrics])
        for name, metric in CATALOGUE.items()
        if name in present
    }


def _reduce(metric: Metric, values: Sequence[float]) -> float:
    if metric.reduction is None:
        raise ValueError(f"{metric.name} is computed over all ranks at once: values of single ranks cannot be reduced")
    if any(math.isnan(value) for value in values):
        return math.nan
    if metric.reduction == "max":
        return max(values)
    total = sum(values)
    return total if metric.reduction == "sum" else total / len(values)
