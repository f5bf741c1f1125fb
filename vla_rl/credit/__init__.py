"""Credit: the step from rewards, episode ends and values to value targets and advantages.

A kind of credit is one class in one file here, and a member of `AnyCredit`. The class is both the recipe's `targets`
section and the object that the learner calls; `base.Credit` is the interface of both. Importing this package does not
import torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, get_args

from pydantic import Field

from vla_rl.credit.base import Credit, Experience, GroupNeeds, Targets, ValueSource
from vla_rl.credit.gae import Gae
from vla_rl.credit.group import Group
from vla_rl.credit.vtrace import Vtrace

AnyCredit = Annotated[Gae | Vtrace | Group, Field(discriminator="name")]

KINDS: Mapping[str, type[Credit]] = {kind.kind(): kind for kind in get_args(get_args(AnyCredit)[0])}
"""Every credit by the name that chooses it in a recipe."""

__all__ = [
    "KINDS",
    "AnyCredit",
    "Credit",
    "Experience",
    "Gae",
    "Group",
    "GroupNeeds",
    "Targets",
    "ValueSource",
    "Vtrace",
]
