"""Facts about a family of checkpoints' training that its weights do not state.

Two more things differ between the families and need no entry. Proprioception: it is fed if a proprio_projector file
lies beside the shards. Padding: original checkpoints were fed one prompt at a time, the others batches padded on the
left; because rotary positions are relative, padding on the right with a readout per row, as done here, gives every row
the same result as alone.

Sources: moojink/openvla-oft (oft_l1), PRIME-RL/SimpleVLA-RL (simplevla), RLinf/RLinf (rlinf).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

ProfileName = Literal["auto", "oft_l1", "simplevla", "rlinf"]  # what a recipe or an option may say


@dataclass(frozen=True, slots=True)
class Profile:
    """One family of public checkpoints."""

    name: str
    num_images: int
    head: Literal["l1", "discrete"]
    keep_stop: bool  # a STOP token follows the placeholders, and every token sees it
    image_transform: str  # name for `image_transforms.frame_transform`
    temperature: float | None  # of its authors' training rollouts, for information; None if nothing is sampled

    @property
    def sampling_in_words(self) -> str:
        """Return how its authors sample, to be added to a line for people."""
        return "" if self.temperature is None else f"; its authors sample at {self.temperature}"


PROFILES: Mapping[str, Profile] = MappingProxyType(
    {
        "oft_l1": Profile("oft_l1", 2, "l1", True, "oft", None),
        "simplevla": Profile("simplevla", 1, "discrete", True, "oft", 1.6),
        "rlinf": Profile("rlinf", 1, "discrete", False, "rlinf", 1.6),
    }
)


def resolve_profile(
    name: str, *, has_l1_head: bool, recorded: str | None = None, num_images: int | None = None
) -> Profile:
    """Return the profile of a checkpoint.

    Args:
        name: name of a profile, or `auto`: the recorded one; otherwise oft_l1 with an L1 head beside the shards,
            simplevla without. Nothing in a published folder distinguishes rlinf from simplevla: the former must be
            named.
        has_l1_head: an action_head file lies beside the shards.
        recorded: profile that this program's export recorded.
        num_images: cameras that it recorded beside the profile, where they are others.

    Raises:
        ValueError: no such profile, or a profile with an L1 head for a checkpoint without it.
    """
    if name == "auto":
        name = recorded or ("oft_l1" if has_l1_head else "simplevla")
    if name not in PROFILES:
        raise ValueError(f"profile {name!r} is unknown; choose one of {['auto', *PROFILES]}")
    profile = PROFILES[name]
    if profile.head == "l1" and not has_l1_head:
        discrete = [other.name for other in PROFILES.values() if other.head == "discrete"]
        raise ValueError(
            f"profile {name!r} is for checkpoints with an L1 head, and no action_head file lies beside the weights; "
            f"choose one of {['auto', *discrete]}"
        )
    return profile if num_images is None else replace(profile, num_images=num_images)
