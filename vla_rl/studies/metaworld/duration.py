"""Price of a Meta-World run before it starts, from measured rates.

A run costs its start, its env steps, and its updates: something for each of them, and for every sample something that
does not depend on the network, something for each weight (forward and backward) and something for each number that the
distribution of an action has (256 for each component with bins, one or two with a Gaussian).

The rates are CPU times, the least of three or four measurements, on one virtual core of an AMD EPYC with torch 2.13 and
mujoco 3.3.0: updates of 128 and 512 units with 256 bins (7.6 ms for 400 samples, 20.3 for 1,600; 64.6 for 2,048 with
512 units) and with Gaussians (5.6 and 14.8 ms for 800), from which the estimate is up to 14 % away; env steps on
door-open, handle-press and push (253, 257 and 513 µs), whose mean is taken, and on which the network's size made no
difference. Cores that are busy with something else take longer, as do two virtual ones that are one physical core.
"""

from __future__ import annotations

from vla_rl.errors import preflight
from vla_rl.recipe import Recipe
from vla_rl.run.plan import make_training_plan
from vla_rl.studies.pace import Expected
from vla_rl.studies.study_plan import memory_of_plan

START_S = 5.0  # imports
ENV_STEP_S = 340e-6
UPDATE_S, SAMPLE_S, WEIGHT_S, OUTPUT_S = 3.0e-3, 2.3e-6, 30e-12, 3.6e-9  # the last two for every sample


def expect(recipe: Recipe) -> Expected:
    """Return the expected cost of a run; a fresh one takes several times as long as a stale one.

    Raises:
        UserError: the recipe is not possible here.
    """
    with preflight():
        plan = make_training_plan(recipe)
        memory = memory_of_plan(plan)
    batch = recipe.learner.batch_segments * recipe.replay.segment_length
    outputs = plan.action_spec.num_tokens * plan.action_spec.num_behavior
    sample = SAMPLE_S + WEIGHT_S * plan.policy.trainable_parameters + OUTPUT_S * outputs
    env_steps = batch / recipe.replay.replay_ratio  # per update
    return Expected(
        start=START_S + recipe.replay.min_decisions * ENV_STEP_S,
        training=recipe.budget.optimizer_steps * (UPDATE_S + batch * sample + env_steps * ENV_STEP_S),
        memory=memory,
    )
