"""Reasons why a run with groups has no batch: its policy solves what it plays, or too little is left to learn from."""

from __future__ import annotations

from collections.abc import Sequence

from vla_rl.replay.group_sampler import Outcome

SOLVED_SHARE = 0.9  # of the groups left out: if so many succeeded altogether, the policy solves what it plays


def no_signal(rejected: Sequence[Outcome], *, usable: int, needs: int) -> tuple[bool, str]:
    """Return whether there is no batch because the policy solves what it plays; and why there is none, for people.

    Args:
        rejected: groups that were left out since the last batch.
        usable: groups in the ring that a batch could be made of.
        needs: groups of a batch.
    """
    succeeded, failed = sum(it.all_succeeded for it in rejected), sum(it.all_failed for it in rejected)
    is_solved = succeeded >= SOLVED_SHARE * len(rejected)
    if is_solved:
        advice = "The policy solves what it plays: evaluate it, or train on harder tasks or initial states"
    elif 2 * failed > len(rejected):
        advice = (
            "The policy does not solve what it plays: start from a better checkpoint, raise rollout.temperature or "
            "env.horizon, or use a credit with a critic (targets.name=gae)"
        )
    elif succeeded + failed > len(rejected) / 2:
        advice = (
            "The policy nearly always solves some of what it plays, and not the rest: leave out the tasks that it "
            "solves, or use a credit with a critic (targets.name=gae)"
        )
    else:
        advice = "Widen targets.keep, or raise replay.capacity so that the groups that are kept stay in the ring"
    held = (
        f"{usable} of the {needs} groups that an update takes"
        if usable < needs
        else f"{usable} more, but replay.replay_ratio asks for new ones before the next update"
    )
    return is_solved, (
        f"nothing {'left ' if is_solved else ''}to learn from: {len(rejected)} groups were left out since the last "
        f"batch (targets.max_rejected), {succeeded} because all their episodes succeeded and {failed} because all "
        f"failed. The ring holds {held}. {advice}"
    )
