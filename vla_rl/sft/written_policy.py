"""Policy of a supervised run as a checkpoint directory in the public layout."""

from __future__ import annotations

import gc
import shutil
from pathlib import Path

from vla_rl.envs.libero.section import LiberoSection
from vla_rl.errors import SimulatorError, UserError
from vla_rl.evaluation.history import history_of_run, record_history
from vla_rl.evaluation.provenance import Training, record_training
from vla_rl.learner.checkpoint import CheckpointInfo
from vla_rl.learner.checkpoint_folder import replace_folder
from vla_rl.reporting.run_folder import POLICY_FOLDER
from vla_rl.run.trained_network import load_trained
from vla_rl.sft.plan import SupervisedPlan

DEMONSTRATED = "demonstrated"  # the initial states of a training on demonstrations


def write_policy(plan: SupervisedPlan, checkpoint: CheckpointInfo, run_dir: Path) -> Path:
    """Write the policy of a run's checkpoint into the run's folder, in place of an earlier one. Only rank 0 calls it.

    The policy is built once more, on the CPU: the training's may be sharded, and its adapters must stay as they are.

    Raises:
        OSError: it could not be written; an earlier one is unchanged.
    """
    from vla_rl.policies.openvla_oft.checkpoint_metadata import appears_whole
    from vla_rl.policies.openvla_oft.checkpoint_writer import write_checkpoint

    policy = plan.policy.build(device="cpu")
    load_trained(checkpoint.path, policy, plan.policy)
    new = run_dir / f"{POLICY_FOLDER}.new"
    shutil.rmtree(new, ignore_errors=True)  # left by a run that was killed between the two renames
    with appears_whole(new) as folder:
        write_checkpoint(policy.eval(), folder, step=checkpoint.optimizer_steps)
        training = demonstrated(plan)
        if training is not None:
            record_training(folder, training)
        record_history(folder, history_of_run(run_dir, checkpoint.path, stage="sft"))
    del policy
    gc.collect()
    final = run_dir / POLICY_FOLDER
    replace_folder(new, final)
    return final


def demonstrated(plan: SupervisedPlan) -> Training | None:
    """Return the suite and the tasks of the demonstrations; None: of no suite, or hf-libero is missing."""
    suite, tasks = plan.recipe.demos.suite, _demonstrated_tasks(plan)
    return Training(suite=suite, tasks=tasks, init_states=DEMONSTRATED) if suite and tasks else None


def _demonstrated_tasks(plan: SupervisedPlan) -> tuple[int, ...] | None:
    """Return the suite's tasks that have demonstrations; None: without a suite or hf-libero nothing tells.

    In libero_90 several scenes share an instruction: names of tasks decide where the data have them.
    """
    suite = plan.recipe.demos.suite
    if suite is None:
        return None
    rollouts = plan.samples.rollouts
    try:
        infos = LiberoSection(name="libero", suite=suite).task_infos()
    except SimulatorError:
        return None
    named = {info.language.lower() for info in infos if info.name in rollouts.names}
    other = set(rollouts.instructions) - named
    return tuple(info.task_id for info in infos if info.name in rollouts.names or info.language.lower() in other)


def check_suite(plan: SupervisedPlan) -> None:
    """Check that the suite is one of the demonstrations, by which the policy's record and statistics name it.

    Tasks that `evaluation.tasks` chooses need not be demonstrated.

    Raises:
        UserError: none of the suite's tasks was demonstrated.
    """
    recipe = plan.recipe
    evaluates = recipe.evaluation.episodes_per_task > 0
    if _demonstrated_tasks(plan) == () and not (evaluates and recipe.evaluation.tasks != "all"):
        raise UserError(
            f"demos.suite: {recipe.demos.suite} has none of the tasks of {recipe.demos.path}: "
            f"{'; '.join(plan.samples.rollouts.instructions[:5])}. Set it to the suite of these tasks, or set "
            f"{'evaluation.tasks' if evaluates else 'demos.suite=null'}"
        )
