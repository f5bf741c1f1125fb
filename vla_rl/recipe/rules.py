"""Rules across sections: combinations that each section alone allows.

Every rule names the sections it reads through its parameters, so that it can also be checked when other sections are
invalid: a recipe reports all its faults at once.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args

from pydantic import ValidationError

from vla_rl.credit import KINDS as CREDITS
from vla_rl.credit import Credit, GroupNeeds
from vla_rl.envs.kind import EnvOptions
from vla_rl.envs.kinds import ENVIRONMENTS, EnvSection
from vla_rl.policies.kind import NO_CRITIC, PolicySection
from vla_rl.policies.kinds import POLICIES
from vla_rl.recipe.regimes import SPANS, STALE_REUSE, Regime, RegimeName, regime_of_run
from vla_rl.recipe.sections import (
    BudgetSection,
    CheckpointSection,
    EngineSection,
    EvaluationSection,
    LearnerSection,
    OptimizerSteps,
    PlayedSection,
    ReplaySection,
    RolloutSection,
    RuntimeSection,
)
from vla_rl.recipe.supervised_sections import DemosSection, SupervisedEvaluationSection
from vla_rl.rl.loss_weights import LossWeights
from vla_rl.rl.optimizer_section import AdamWSection, OptimizerSection
from vla_rl.section import Problem, Section, TimeLimit


def _policy_sees_enough(env: EnvSection, policy: PolicySection) -> Problem | None:
    if policy.sees == env.observes:
        return None
    if policy.sees == "state":
        rule = f"'{policy.name}' sees states only, and {env.state_lacks}"
    else:
        rule = f"'{policy.name}' looks at camera frames, and this environment gives states only"
    policies = [name for name, kind in POLICIES.items() if kind.sees == env.observes]
    envs = [f"'{name}'" for name, kind in ENVIRONMENTS.items() if kind.observes == policy.sees]
    return Problem(
        path="policy.name",
        rule=rule,
        found=f"{policy.name} with env.name '{env.name}'",
        allowed=f"{', '.join(policies)}, or env.name {' or '.join(envs)}",
    )


def decisions_per_episode(env: EnvSection, policy: PolicySection) -> int:
    """Return the most decisions that fit in one episode: a policy has chunks of its own, or takes the environment's."""
    own = None if env.states is None else env.states.chunk_size
    return env.decisions_per_episode(policy.chunk_size or own or 1)


def _critic_is_used(policy: PolicySection, targets: Credit) -> Problem | None:
    field = type(policy).model_fields.get("value_head")
    if field is None or policy.has_critic == targets.needs_values:
        return None
    if policy.has_critic:
        return Problem(
            path="policy.value_head",
            rule=f"targets '{targets.kind()}' compares episodes with each other, so no critic is built",
            found=str(getattr(policy, "value_head", "")),
            allowed=NO_CRITIC,
        )
    critics = [kind for kind in get_args(field.annotation) if kind != NO_CRITIC]
    return Problem(
        path="policy.value_head",
        rule=f"targets '{targets.kind()}' is made of a critic's values",
        found=NO_CRITIC,
        allowed=f"{', '.join(critics)}, or targets.name 'group'",
    )


def _critic_is_there_to_train_alone(optimizer: AdamWSection, targets: Credit) -> Problem | None:
    if not isinstance(optimizer, OptimizerSection) or not optimizer.critic_only_steps or targets.needs_values:
        return None
    return Problem(
        path="optimizer.critic_only_steps",
        rule=f"targets '{targets.kind()}' has no critic",
        found=str(optimizer.critic_only_steps),
        allowed="0",
    )


def _episodes_are_whole(targets: Credit, loss: LossWeights) -> Problem | None:
    if loss.aggregation == "token" or targets.groups is not None:
        return None
    return Problem(
        path="loss.aggregation",
        rule="only groups put whole episodes into a batch",
        found=f"{loss.aggregation} with targets.name '{targets.kind()}'",
        allowed="token, or targets.name 'group'",
    )


def _batch_is_whole_groups(
    env: EnvSection, policy: PolicySection, replay: ReplaySection, learner: LearnerSection, targets: Credit
) -> Problem | None:
    longest = decisions_per_episode(env, policy)
    if targets.groups is None or policy.sees != env.observes or replay.segment_length > longest:
        return None
    of_episode = math.ceil(longest / replay.segment_length)
    of_group = targets.groups.size * of_episode
    if learner.batch_segments % of_group == 0:
        return None
    return Problem(
        path="learner.micro_batch",
        rule=f"an update takes whole groups: {targets.groups.size} episodes of up to {of_episode} segments",
        found=f"{learner.batch_segments} segments (micro_batch times accumulation)",
        allowed=f"a multiple of {of_group}, or a larger replay.segment_length (at most {longest})",
    )


def _ring_holds_groups(
    env: EnvSection,
    policy: PolicySection,
    replay: ReplaySection,
    learner: LearnerSection,
    rollout: RolloutSection,
    targets: Credit,
) -> Problem | None:
    needs, longest = targets.groups, decisions_per_episode(env, policy)
    if needs is None or policy.sees != env.observes:
        return None
    slots = rollout.num_workers * rollout.envs_per_worker
    groups = max(1, learner.batch_segments // (needs.size * math.ceil(longest / replay.segment_length)))
    smallest = smallest_ring(needs, slots=slots, groups=groups, longest=longest)
    if replay.capacity >= smallest:
        return None
    return Problem(
        path="replay.capacity",
        rule=f"the ring must hold the {groups} groups of an update, each of {needs.candidates} episodes, and those in "
        f"the making by {slots} environments",
        found=str(replay.capacity),
        allowed=f">= {smallest}; several times as many where groups are left out (targets.keep)",
    )


def smallest_ring(needs: GroupNeeds, *, slots: int, groups: int, longest: int) -> int:
    """Return the decisions of the smallest ring that holds the groups of an update and those in the making.

    Args:
        needs: sizes and limits of the groups.
        slots: environments that play.
        groups: groups of an update.
        longest: decisions of the longest episode.
    """
    turns = needs.candidates // math.gcd(needs.candidates, slots)
    teams = slots // math.gcd(needs.candidates, slots)
    return slots * (longest + 1) * (turns * (math.ceil(groups / teams) + needs.max_lead) + 1)


def _uses_allow_the_ratio(replay: ReplaySection, targets: Credit) -> Problem | None:
    uses = None if targets.groups is None else targets.groups.max_uses
    if uses is None or replay.replay_ratio <= uses:
        return None
    return Problem(
        path="replay.replay_ratio",
        rule="a decision is consumed at most as often as its group is used",
        found=f"{replay.replay_ratio:g} with targets.uses {uses}",
        allowed=f"at most {uses}, or targets.uses=null",
    )


def _compiled_policy_has_layers(policy: PolicySection, learner: EngineSection) -> Problem | None:
    if learner.compile == "layers" and not policy.has_layers:
        layered = " or ".join(f"'{name}'" for name, kind in POLICIES.items() if kind.has_layers)
        return Problem(
            path="learner.compile",
            rule="'layers' are those of a language model",
            found=f"layers with policy.name '{policy.name}'",
            allowed=f"off, or policy.name {layered}",
        )
    return None


def _compiled_layers_are_whole(learner: EngineSection) -> Problem | None:
    if learner.compile == "layers" and learner.strategy == "deepspeed" and learner.zero_stage == 3:
        return Problem(
            path="learner.compile",
            rule="stage 3 of ZeRO gathers the weights of every module by hooks that cannot be compiled",
            found="layers with learner.zero_stage 3",
            allowed="off, or learner.zero_stage 1 or 2",
        )
    return None


def _ring_can_start(replay: ReplaySection) -> Problem | None:
    if replay.min_decisions > replay.capacity:
        return Problem(
            path="replay.min_decisions",
            rule="the ring must be able to hold what the first update waits for",
            found=f"{replay.min_decisions} with replay.capacity {replay.capacity}",
            allowed=f"1..{replay.capacity}",
        )
    return None


def _segment_fits_episode(env: EnvSection, policy: PolicySection, replay: ReplaySection) -> Problem | None:
    longest = decisions_per_episode(env, policy)
    if policy.sees == env.observes and replay.segment_length > longest:  # an invalid pair has no episodes
        return Problem(
            path="replay.segment_length",
            rule="a segment lies in one episode; what is longer is padding that the learner computes for nothing",
            found=f"{replay.segment_length}, and an episode has at most {longest} decisions",
            allowed=f"1..{longest}",
        )
    return None


def _segment_fits_ring(replay: ReplaySection) -> Problem | None:
    if replay.segment_length > replay.capacity:
        return Problem(
            path="replay.segment_length",
            rule="a segment must fit in the ring",
            found=f"{replay.segment_length} with replay.capacity {replay.capacity}",
            allowed=f"1..{replay.capacity}",
        )
    return None


def _evaluation_tasks_are_trained(env: EnvSection, evaluation: EvaluationSection) -> Problem | None:
    if evaluation.tasks == "all":
        return None
    trained = env.task_ids
    unknown = [task for task in evaluation.tasks if task not in trained]
    if unknown:
        return Problem(
            path="evaluation.tasks",
            rule="evaluations of a run are made on tasks of env.tasks; for others there is `vla-rl eval`",
            found=str(unknown),
            allowed=str(trained),
        )
    return None


def _evaluation_has_episodes(evaluation: PlayedSection) -> Problem | None:
    if evaluation.every_optimizer_steps is None or evaluation.episodes_per_task:
        return None
    return Problem(
        path="evaluation.episodes_per_task",
        rule="evaluations while training play episodes",
        found=f"0 with evaluation.every_optimizer_steps {evaluation.every_optimizer_steps}",
        allowed=">= 1, or evaluation.every_optimizer_steps=null",
    )


def _best_is_measured(checkpoint: CheckpointSection, evaluation: EvaluationSection) -> Problem | None:
    return _measured("checkpoint.keep_best", "false", checkpoint.keep_best, evaluation)


def _target_is_measured(budget: BudgetSection, evaluation: EvaluationSection) -> Problem | None:
    return _measured("budget.stop_at_success", "null", budget.stop_at_success, evaluation)


def _gain_is_measured(budget: BudgetSection, evaluation: EvaluationSection) -> Problem | None:
    field = "stop_after_evaluations_without_gain"
    return _measured(f"budget.{field}", "null", budget.stop_after_evaluations_without_gain, evaluation)


def _measured(path: str, off: str, value: object, evaluation: EvaluationSection) -> Problem | None:
    """Check that there are the evaluations which a field goes by."""
    if not value or evaluation.every_optimizer_steps is not None:
        return None
    return Problem(
        path=path,
        rule="goes by the evaluations while training, and there are none",
        found=f"{str(value).lower()} with evaluation.every_optimizer_steps null",
        allowed=f"{off}, or a number of optimizer steps as evaluation.every_optimizer_steps",
    )


def _evaluation_states_exist(env: EnvSection, evaluation: EvaluationSection) -> Problem | None:
    if evaluation.init_states is None:
        return None
    try:
        changes = env.evaluation_changes(env.suite_name, EnvOptions(init_states=evaluation.init_states))
        type(env).model_validate({**env.model_dump(by_alias=True), **changes})
    except ValueError:  # a validation error too
        return Problem(
            path="evaluation.init_states",
            rule=f"'{env.suite_name}' has no such initial states",
            found=evaluation.init_states,
            allowed="null, sampled, or another suite",
        )
    return None


def _videos_show_frames(env: EnvSection, evaluation: EvaluationSection) -> Problem | None:
    if evaluation.video is None or env.observes == "frames":
        return None
    return Problem(
        path="evaluation.video",
        rule=f"environment '{env.name}' has no cameras",
        found=evaluation.video,
        allowed="null",
    )


def _serial_has_one_rank(runtime: RuntimeSection, learner: LearnerSection) -> Problem | None:
    if runtime.mode == "serial" and (learner.strategy != "single"):
        return Problem(
            path="learner.strategy",
            rule="runtime.mode 'serial' runs everything in one process, so there is one rank",
            found=learner.strategy,
            allowed="single, or runtime.mode 'async'",
        )
    return None


def _serial_is_here(runtime: RuntimeSection, rollout: RolloutSection) -> Problem | None:
    if runtime.mode == "serial" and rollout.remote:
        return Problem(
            path="rollout.remote",
            rule="runtime.mode 'serial' runs everything in one process, simulators too",
            found=", ".join(rollout.remote),
            allowed="[], or runtime.mode 'async'",
        )
    return None


def _simulators_are_near_what_decides(rollout: RolloutSection) -> Problem | None:
    if rollout.inference == "local" and rollout.remote:
        return Problem(
            path="rollout.inference",
            rule="simulators on other machines are played side by side, and the inference worker decides for them",
            found="local, with rollout.remote",
            allowed="shared, or rollout.remote=[]",
        )
    return None


def _compiling_is_shared(rollout: RolloutSection) -> Problem | None:
    if rollout.inference == "local" and rollout.compile:
        return Problem(
            path="rollout.compile",
            rule="only the inference worker compiles",
            found="true, with rollout.inference 'local'",
            allowed="false, or rollout.inference=shared",
        )
    return None


def _workers_reach_every_machine(learner: LearnerSection, rollout: RolloutSection) -> Problem | None:
    workers = rollout.num_workers * (1 if learner.num_ranks == "auto" else learner.num_ranks)
    if learner.strategy != "single" and learner.num_ranks == "auto":  # only the machine knows how many
        return None
    if len(rollout.remote) <= workers:
        return None
    return Problem(
        path="rollout.num_workers",
        rule="every address of rollout.remote gets an env worker",
        found=f"{workers} of all ranks, and {len(rollout.remote)} addresses",
        allowed=f">= {len(rollout.remote)} in all, or fewer addresses",
    )


def _critic_only_ends(optimizer: AdamWSection, budget: OptimizerSteps) -> Problem | None:
    steps = optimizer.policy_begins_at
    total = budget.optimizer_steps
    if steps >= total:
        return Problem(
            path="optimizer.critic_only_steps",
            rule="the policy must be trained after the critic, or it never is",
            found=f"{steps} with budget.optimizer_steps {total}",
            allowed=f"0..{total - 1}, or a larger budget.optimizer_steps",
        )
    return None


def _policy_warmup_ends(optimizer: AdamWSection, budget: OptimizerSteps) -> Problem | None:
    before = optimizer.policy_begins_at
    return _warmup_ends("policy_warmup", optimizer.policy_warmup, optimizer, budget, before=before)


def _value_warmup_ends(optimizer: AdamWSection, budget: OptimizerSteps) -> Problem | None:
    return _warmup_ends("value_warmup", optimizer.value_warmup, optimizer, budget)


def _warmup_ends(
    field: str, warmup: int, optimizer: AdamWSection, budget: OptimizerSteps, *, before: int = 0
) -> Problem | None:
    """Check a warm-up that begins after the first `before` optimizer steps."""
    total = budget.optimizer_steps - before
    if optimizer.schedule != "constant" and warmup >= total > 0:
        after = f" after optimizer.critic_only_steps {before}" if before else ""
        return Problem(
            path=f"optimizer.{field}",
            rule=f"the warm-up must end before the run, or the {optimizer.schedule} schedule never begins",
            found=f"{warmup}{after} with budget.optimizer_steps {budget.optimizer_steps}",
            allowed=f"0..{total - 1}, a larger budget.optimizer_steps, or optimizer.schedule 'constant'",
        )
    return None


def _evaluation_has_a_suite(demos: DemosSection, evaluation: SupervisedEvaluationSection) -> Problem | None:
    if evaluation.episodes_per_task and demos.suite is None:
        return Problem(
            path="evaluation.episodes_per_task",
            rule="an evaluation plays tasks of a suite of LIBERO",
            found=f"{evaluation.episodes_per_task} with demos.suite null",
            allowed="0, or a demos.suite",
        )
    return None


def _policy_sees_pictures(policy: PolicySection) -> Problem | None:
    if policy.sees == "frames":
        return None
    return Problem(
        path="policy.name",
        rule="demonstrations show pictures, and this policy sees states only",
        found=policy.name,
        allowed=", ".join(name for name, kind in POLICIES.items() if kind.sees == "frames"),
    )


def _statistics_are_own(policy: PolicySection) -> Problem | None:
    found = getattr(policy, "statistics", None)
    if found is None:
        return None
    return Problem(
        path="policy.statistics",
        rule="actions are scaled by the statistics of the demonstrations themselves",
        found=found,
        allowed="null; demos.key names them",
    )


def regime_of(name: str, replay: ReplaySection, learner: LearnerSection, budget: BudgetSection) -> Regime:
    """Return what a regime sets in a recipe with these sections."""
    return regime_of_run(
        name,
        capacity=replay.capacity,
        decisions_per_update=learner.batch_segments * replay.segment_length,
        optimizer_steps=budget.optimizer_steps,
        publish_every=learner.publish_every,
    )


def completed(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe's raw data with all values that follow from others, where nothing else is written."""
    return without_critic(with_time_limit(with_regime(data)))


def with_regime(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe's raw data with its regime's values, if these can be computed and are not written.

    Invalid data is returned unchanged; validation reports its problems.
    """
    name, replay = data.get("regime"), data.get("replay", {})
    if not isinstance(name, str) or name not in SPANS or not isinstance(replay, Mapping):
        return dict(data)
    try:
        learner = LearnerSection.model_validate(data.get("learner", {}))
        budget = BudgetSection.model_validate(data.get("budget", {}))
        regime = regime_of(name, ReplaySection.model_validate(replay), learner, budget)
    except ValidationError:
        return dict(data)
    settings = {"replay_ratio": regime.replay_ratio, "old_threshold": regime.old_threshold}
    return {**data, "replay": {**settings, **replay}}


def with_time_limit(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe's raw data with the environment's own `targets.time_limit`, if none is written.

    Invalid data is returned unchanged; validation reports its problems.
    """
    usual = usual_time_limit(data.get("env"))
    targets = data.get("targets", {"name": "gae"})
    if isinstance(targets, Credit):
        targets = targets.model_dump(by_alias=True)
    if usual is None or not isinstance(targets, Mapping) or targets.get("time_limit") is not None:
        return dict(data)
    kind = CREDITS.get(str(targets.get("name")))
    has_choice = kind is None or kind.needs_values  # without a critic nothing can stand for what would follow
    return {**data, "targets": {**targets, "time_limit": usual if has_choice else "end"}}


def without_critic(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe's raw data with what follows from targets without a critic, where nothing else is written.

    The policy gets none (`policy.value_head`), and advantages, which each group has centred, are not normalised again
    over the batch (`loss.normalize_advantages`). Invalid data is returned unchanged; validation reports its problems.
    """
    targets, policy, loss = data.get("targets"), data.get("policy"), data.get("loss", {})
    name = targets.get("name") if isinstance(targets, Mapping) else getattr(targets, "name", None)
    kind = CREDITS.get(name) if isinstance(name, str) else None
    if kind is None or kind.needs_values:
        return dict(data)
    changed = {**data, "policy": _written(policy), "loss": _written(loss)}
    if isinstance(changed["policy"], Mapping):
        of_policy = POLICIES.get(str(changed["policy"].get("name")))
        if of_policy is not None and "value_head" in of_policy.model_fields:
            changed["policy"] = {"value_head": NO_CRITIC, **changed["policy"]}
    if isinstance(changed["loss"], Mapping):
        changed["loss"] = {"normalize_advantages": False, **changed["loss"]}
    return changed


def _written(section: Any) -> Any:  # noqa: ANN401 - whatever was given
    """Return what was written of a section that was made in code; anything else as it is."""
    return section.model_dump(by_alias=True, exclude_unset=True) if isinstance(section, Section) else section


def usual_time_limit(env: Any) -> TimeLimit | None:  # noqa: ANN401 - a section, or whatever was given for one
    """Return the default `targets.time_limit` of an environment; None if it is not an environment."""
    name = env.get("name") if isinstance(env, Mapping) else getattr(env, "name", None)
    kind = ENVIRONMENTS.get(name) if isinstance(name, str) else None
    return None if kind is None else kind.usual_time_limit


def _regime_sets_ratio(
    regime: RegimeName | None, replay: ReplaySection, learner: LearnerSection, budget: BudgetSection
) -> Problem | None:
    return None if regime is None else _as_meant("replay_ratio", regime, replay, learner, budget)


def _regime_sets_threshold(
    regime: RegimeName | None, replay: ReplaySection, learner: LearnerSection, budget: BudgetSection
) -> Problem | None:
    return None if regime is None else _as_meant("old_threshold", regime, replay, learner, budget)


def _as_meant(
    field: str, regime: RegimeName, replay: ReplaySection, learner: LearnerSection, budget: BudgetSection
) -> Problem | None:
    found, allowed = getattr(replay, field), getattr(regime_of(regime, replay, learner, budget), field)
    if field not in replay.model_fields_set or found == allowed:
        return None
    return Problem(
        path=f"replay.{field}",
        rule=f"regime '{regime}' sets it from the capacity, the batch and the budget",
        found=str(found),
        allowed=f"{allowed}, or any with regime=null",  # a resumed run cannot leave it out: its recipe has it
    )


def _stale_reuses(
    regime: RegimeName | None, replay: ReplaySection, learner: LearnerSection, budget: BudgetSection
) -> Problem | None:
    if regime != "stale":
        return None
    reuse = regime_of(regime, replay, learner, budget).replay_ratio
    if reuse >= STALE_REUSE:
        return None
    return Problem(
        path="regime",
        rule="stale means that old data is used tens of times",
        found=f"{reuse:g} times",
        allowed="a larger budget.optimizer_steps or batch, or a smaller replay.capacity",
    )


Rule = Callable[..., Problem | None]
_ALWAYS: tuple[Rule, ...] = (
    _compiled_policy_has_layers,
    _compiled_layers_are_whole,
    _policy_warmup_ends,
    _value_warmup_ends,
)
RULES: tuple[Rule, ...] = (
    _policy_sees_enough,
    _critic_is_used,
    _critic_is_there_to_train_alone,
    _episodes_are_whole,
    _batch_is_whole_groups,
    _ring_holds_groups,
    _uses_allow_the_ratio,
    *_ALWAYS[:2],
    _ring_can_start,
    _segment_fits_ring,
    _segment_fits_episode,
    _evaluation_tasks_are_trained,
    _evaluation_has_episodes,
    _evaluation_states_exist,
    _best_is_measured,
    _target_is_measured,
    _gain_is_measured,
    _videos_show_frames,
    _serial_has_one_rank,
    _serial_is_here,
    _simulators_are_near_what_decides,
    _compiling_is_shared,
    _workers_reach_every_machine,
    _critic_only_ends,
    *_ALWAYS[2:],
    _regime_sets_ratio,
    _regime_sets_threshold,
    _stale_reuses,
)
SUPERVISED_RULES: tuple[Rule, ...] = (
    *_ALWAYS,
    _policy_sees_pictures,
    _evaluation_has_a_suite,
    _evaluation_has_episodes,
    _statistics_are_own,
)


def broken_rules(sections: Mapping[str, Any], rules: Sequence[Rule] = RULES) -> list[Problem]:
    """Check every rule whose sections are all present.

    Args:
        sections: the recipe's fields by name, without invalid ones.
        rules: of recipes of this kind.
    """
    found: list[Problem] = []
    for rule in rules:
        names = inspect.signature(rule).parameters
        if all(name in sections for name in names):
            broken = rule(**{name: sections[name] for name in names})
            if broken is not None:
                found.append(broken)
    return found
