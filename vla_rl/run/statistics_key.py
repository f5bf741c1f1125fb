"""Check that a resumed run scales actions by the data set's statistics recorded with the checkpoint."""

from __future__ import annotations

from pathlib import Path

from vla_rl.policies.kind import PolicyPlan

STATISTICS = "statistics"  # key in a checkpoint's `extra`


def check_statistics(policy: PolicyPlan, checkpoint: Path, recorded: object) -> None:
    """Refuse to resume with other statistics: the same tokens would be other actions.

    Args:
        policy: policy of the resumed run.
        checkpoint: checkpoint it resumes from, for the message.
        recorded: key that the checkpoint was written with; None for older versions.

    Raises:
        ValueError: the policy has another key.
    """
    if recorded is not None and recorded != policy.statistics:
        raise ValueError(
            f"{checkpoint}: its actions were scaled by the statistics {recorded!r}, and now would be by "
            f"{policy.statistics!r}; continue with policy.statistics={recorded}"
        )
