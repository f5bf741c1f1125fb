"""Plan of a setup in plain values: what will be built, its size, and whether it can be built at all."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from vla_rl.envs.kind import EnvPlan
from vla_rl.ipc.memory_check import readable
from vla_rl.policies.kind import PolicyContext, PolicyPlan
from vla_rl.recipe import Recipe, RecipeError, Setup
from vla_rl.run.ranks import cores_of_rank
from vla_rl.section import Problem
from vla_rl.types import ActionSpec, FrameTransform, ObservationSpec, TaskInfo

OPEN_ENVS_PER_SLOT = 2  # simulators a slot keeps open when it plays several tasks


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Setup in plain values: everything that a cell is built from."""

    setup: Setup
    env: EnvPlan
    policy: PolicyPlan
    device: str
    store_logits: bool = False  # True: store the behaviour's distributions, for the exact KL
    shards_frozen: bool = False  # True: the engine shards frozen parameters too, so that they cannot be shared

    @property
    def transform(self) -> FrameTransform | None:
        """Return the transform of the policy's frames, if it sees any."""
        return self.policy.transform

    @property
    def observation_spec(self) -> ObservationSpec:
        """Return the shapes of an observation."""
        return self.policy.observation_spec

    @property
    def action_spec(self) -> ActionSpec:
        """Return the shapes of a decision."""
        return self.policy.action_spec

    @property
    def num_slots(self) -> int:
        """Return the env slots of one cell."""
        return self.setup.rollout.num_workers * self.setup.rollout.envs_per_worker

    @property
    def env_workers_decide(self) -> bool:
        """Return whether the env workers decide themselves, so that there is no inference worker."""
        return self.setup.rollout.inference == "local" and self.setup.runtime.mode == "async"

    @property
    def num_servers(self) -> int:
        """Return the processes of a cell that decide."""
        return self.setup.rollout.num_workers if self.env_workers_decide else 1

    @property
    def max_episode_decisions(self) -> int:
        """Return the decisions of the longest episode."""
        return math.ceil(self.env.horizon / self.action_spec.chunk_size)

    @property
    def device_kind(self) -> Literal["cpu", "cuda"]:
        """Return the kind of the torch device."""
        return "cuda" if self.device.startswith("cuda") else "cpu"

    @property
    def frozen_copies(self) -> int:
        """Return the copies of the frozen weights on a device: one if shared, else learner's and inference worker's."""
        return 2 if self.shards_frozen or self.setup.runtime.share_frozen is False else 1

    @property
    def threads(self) -> int:
        """Return torch's threads of the learner."""
        return self._share_of_cores(2)

    @property
    def server_threads(self) -> int:
        """Return torch's threads of each process that decides: together as many as the learner's."""
        return self._share_of_cores(2 * self.num_servers)

    def _share_of_cores(self, processes: int) -> int:
        return self.setup.runtime.threads_per_process or max(1, cores_of_rank() // processes)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPlan(Plan):
    """Recipe in plain values: the plan of its setup, and the settings of learning."""

    recipe: Recipe


def make_training_plan(recipe: Recipe) -> TrainingPlan:
    """Make the plan of a training; see `make_plan`.

    Raises:
        ValueError: the recipe is not possible here; names the field, the rule, the found and the allowed value.
    """
    plan = make_plan(recipe.setup)
    return training_plan(recipe, env=plan.env, policy=plan.policy, device=plan.device)


def training_plan(recipe: Recipe, *, env: EnvPlan, policy: PolicyPlan, device: str) -> TrainingPlan:
    """Assemble the plan of a training from the parts of `Plan`."""
    return TrainingPlan(
        recipe=recipe,
        setup=recipe.setup,
        env=env,
        policy=policy,
        device=device,
        store_logits=recipe.loss.kl_coefficient > 0,
        shards_frozen=recipe.learner.strategy == "deepspeed" and recipe.learner.zero_stage == 3,
    )


def plan_of_sizes(recipe: Recipe) -> TrainingPlan:
    """Make the plan of a training as far as its sizes need it, without looking for a simulator; it builds nothing.

    Raises:
        ValueError: the policy or the device is not possible here.
    """
    env = EnvPlan(recipe.env.task_infos(), builders=(), num_init_states=(), horizon=recipe.env.episode_horizon)
    device = resolve_device(recipe.runtime.device)
    return training_plan(recipe, env=env, policy=plan_policy(recipe.setup), device=device)


def make_plan(setup: Setup, *, only_acts: bool = False) -> Plan:
    """Turn a setup into plain values and check everything that can be checked without starting a process.

    Args:
        setup: setup of a run or of an evaluation.
        only_acts: nothing is trained, so the policy need not be trainable: a checkpoint may have an L1 head.

    Raises:
        ValueError: the recipe is not possible here; names the field, the rule, the found and the allowed value.
    """
    device = resolve_device(setup.runtime.device)
    policy = plan_policy(setup, only_acts=only_acts, draw_on=device)
    env = setup.env.plan(render_size=policy.transform.input_size if policy.transform is not None else 0)
    plan = Plan(setup=setup, env=env, policy=policy, device=device)
    if plan.env_workers_decide and policy.frozen_parameters:
        raise ValueError(
            f"rollout.inference: local gives every env worker a copy of the policy, and this one has frozen weights "
            f"({readable(policy.frozen_bytes)}), shared with one process only. Allowed: shared, or a policy of which "
            "every weight is trained. Use rollout.inference=shared."
        )
    return plan


def check_contradictions(contradictions: Sequence[Problem], *, source: str) -> None:
    """Refuse a recipe with values that would have no effect in the run that it begins.

    Args:
        contradictions: as a plan lists them.
        source: names the recipe in the error.

    Raises:
        RecipeError: with all of them.
    """
    if contradictions:
        raise RecipeError(source, contradictions)


def check_other_machines(plan: Plan) -> list[str]:
    """Check that the machines of `rollout.remote` answer, ask for a token, and simulate what this one would.

    Returns:
        What each of them is, in words.

    Raises:
        UserError: names those that are no use.
    """
    if not plan.setup.rollout.remote:
        return []
    from vla_rl.remote.far_side import check_far_side

    found = check_far_side(plan.setup.rollout.remote, plan.env.identity)
    return [f"{far.address}: {far.place.host}, {far.place.cpus} usable cores" for far in found]


def resolve_device(asked: str) -> str:
    """Return the torch device of this rank: the one `runtime.device` names, or for auto a GPU if there is one.

    Raises:
        ValueError: `runtime.device` is cuda and torch sees none.
    """
    import torch

    if asked == "cpu":
        return "cpu"
    if torch.cuda.is_available():
        return f"cuda:{int(os.environ.get('LOCAL_RANK', '0'))}"
    if asked == "cuda":
        raise ValueError(
            "runtime.device: cuda was asked for, but torch sees no GPU. Allowed: auto, cpu, cuda. "
            "Use runtime.device=cpu, or install a torch built for your CUDA driver."
        )
    return "cpu"


def plan_policy(
    setup: Setup,
    *,
    only_acts: bool = False,
    tasks: Sequence[TaskInfo] | None = None,
    draw_on: str | None = None,
) -> PolicyPlan:
    """Plan the policy of a setup, as in `make_plan`, without a simulator.

    Args:
        setup: setup of a run or of an evaluation.
        only_acts: as in `make_plan`.
        tasks: tasks whose prompts the policy reads; default: those of `env.tasks`, named by an installed hf-libero.
        draw_on: device that draws the weights of `random-7b`; default: the policy's.

    Raises:
        ValueError: the checkpoint does not fit.
    """
    env = setup.env
    context = PolicyContext(
        seed=setup.seed,
        suite=env.suite_name,
        tasks=tuple(task.language for task in (env.task_infos() if tasks is None else tasks)),
        num_images=env.num_images,
        states=env.states,
        temperature=setup.rollout.temperature,
        bf16=setup.precision == "bf16",
        only_acts=only_acts,
        draw_on=draw_on,
    )
    return setup.policy.plan(context)
