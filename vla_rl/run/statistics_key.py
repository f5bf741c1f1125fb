"""The data set whose statistics scale a run's actions: recorded with every checkpoint, and the same after a resume."""

from __future__ import annotations

from pathlib import Path

from vla_rl.run.plan import PolicyPlan

STATISTICS = "statistics"  # in what a checkpoint keeps for its run


def check_statistics(policy: PolicyPlan, checkpoint: Path, recorded: object) -> None:
    """Refuse to go on with other statistics: the same tokens would be other actions.

    Args:
        policy: of the resumed run.
        checkpoint: that it goes on from, for the message.
        recorded: key that the checkpoint was written with; None in those of older versions.

    Raises:
        ValueError: the policy has another key.
    """
    if recorded is not None and recorded != policy.statistics:
        raise ValueError(
            f"{checkpoint}: its actions were scaled by the statistics {recorded!r}, and now they would be by "
            f"{policy.statistics!r}; go on with policy.statistics={recorded}"
        )
