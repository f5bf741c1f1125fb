"""The kinds of policies: an import and a member of the union for each. No other generic module names one."""

from __future__ import annotations

from typing import Annotated, get_args

from pydantic import Field

from vla_rl.policies.kind import PolicySection
from vla_rl.policies.mlp.section import MLPSection
from vla_rl.policies.openvla_oft.section import OpenVLAOFTSection

AnyPolicy = Annotated[OpenVLAOFTSection | MLPSection, Field(discriminator="name")]

POLICIES: dict[str, type[PolicySection]] = {
    get_args(kind.model_fields["name"].annotation)[0]: kind for kind in get_args(get_args(AnyPolicy)[0])
}
