"""What a family of checkpoints was trained with and its files do not say.

Sources: moojink/openvla-oft (oft_l1), PRIME-RL/SimpleVLA-RL (simplevla), RLinf/RLinf (rlinf).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class Profile:
    """One family of public checkpoints."""

    name: str
    num_images: int
    proprio: bool
    head: str  # "l1" or "discrete"
    keep_stop: bool  # a STOP token follows the placeholders, and every token sees it
    image_transform: str  # name for `image_transforms.frame_transform`
    temperature: float | None  # of its authors' training rollouts; None where nothing is sampled


PROFILES: Mapping[str, Profile] = MappingProxyType(
    {
        "oft_l1": Profile("oft_l1", 2, True, "l1", True, "oft", None),
        "simplevla": Profile("simplevla", 1, False, "discrete", True, "oft", 1.6),
        "rlinf": Profile("rlinf", 1, False, "discrete", False, "rlinf", 1.6),
    }
)


def resolve_profile(name: str, *, has_l1_head: bool) -> Profile:
    """The named profile; `auto` takes oft_l1 where an L1 head lies beside the shards, else simplevla.

    Nothing in a folder tells rlinf from simplevla: checkpoints of the former must be named.
    """
    if name == "auto":
        return PROFILES["oft_l1" if has_l1_head else "simplevla"]
    if name not in PROFILES:
        raise ValueError(f"profile {name!r} is unknown; choose one of {['auto', *PROFILES]}")
    return PROFILES[name]
