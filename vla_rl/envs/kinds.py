"""The kinds of environments: an import and a member of the union for each. No other generic module names one."""

from __future__ import annotations

from typing import Annotated, get_args

from pydantic import Field

from vla_rl.envs.gates import GatesSection
from vla_rl.envs.kind import EnvironmentSection
from vla_rl.envs.libero.section import LiberoSection
from vla_rl.envs.metaworld.section import MetaworldSection
from vla_rl.envs.toy import ToySection

BY_NAME = Field(discriminator="name")
EnvSection = Annotated[LiberoSection | ToySection | MetaworldSection | GatesSection, BY_NAME]

ENVIRONMENTS: dict[str, type[EnvironmentSection]] = {
    get_args(kind.model_fields["name"].annotation)[0]: kind for kind in get_args(get_args(EnvSection)[0])
}
