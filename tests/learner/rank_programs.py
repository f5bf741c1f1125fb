"""What the ranks of a multi-process test run. Each function returns something that JSON can carry."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import learner_fakes as fakes
import torch

from vla_rl.learner.strategies import close_process_group

NUM_RANKS = 2


def train(*, strategy: str, zero_stage: int = 2, updates: int = 3) -> dict[str, Any]:
    """Updates on this rank's half of each union batch; returns weights, metrics and counts."""
    policy = fakes.make_policy()
    engine = fakes.make_engine(policy, strategy=strategy, zero_stage=zero_stage)
    learner = fakes.make_learner(engine)
    metrics = []
    for index in range(updates):
        union = fakes.make_batch(8, seed=index)
        half = slice(4 * engine.collectives.rank, 4 * engine.collectives.rank + 4)
        metrics.append(learner.update(fakes.select(union, half), policy_version=20 + index))
    state = {name: tensor.flatten().tolist() for name, tensor in engine.trainable_state().items()}
    return {"weights": state, "metrics": metrics, "optimizer_steps": engine.optimizer_steps}


def main() -> None:
    function, result, arguments = sys.argv[1:]
    torch.set_num_threads(1)
    value = globals()[function](**json.loads(arguments))
    Path(result).write_text(json.dumps(value))
    close_process_group()


if __name__ == "__main__":
    main()
