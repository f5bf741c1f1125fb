import dataclasses

import numpy as np
import pytest
import torch

from vla_rl.policies.kind import PolicyContext
from vla_rl.policies.lora_section import LoraSection
from vla_rl.policies.openvla_oft.build import build_openvla_oft
from vla_rl.policies.openvla_oft.section import OpenVLAOFTSection
from vla_rl.types import PolicyInputs

TASKS = ("pick up the red mug", "turn on the stove and put the moka pot on it", "open the drawer")
CONTEXT = PolicyContext(seed=0, suite="libero_spatial", tasks=TASKS, num_images=1)
SECTION = OpenVLAOFTSection(name="openvla_oft", image_size=28, lora=LoraSection(rank=4))
OF_CONTEXT = {field.name for field in dataclasses.fields(PolicyContext)}


def chosen(changes):
    """The tiny policy's section and context, with some of their fields replaced."""
    of_context = {name: changes.pop(name) for name in OF_CONTEXT & set(changes)}
    section = OpenVLAOFTSection.model_validate(dict(SECTION) | changes)
    return section, dataclasses.replace(CONTEXT, **of_context)


def build_tiny(*, device="cpu", empty=False, **changes):
    return build_openvla_oft(*chosen(changes), device=device, empty=empty)


@pytest.fixture
def build():
    """The tiny policy, four patches per image, with some of its choices replaced."""
    return build_tiny


@pytest.fixture
def plan_tiny():
    """The plan of that policy, as a dry run makes it."""

    def call(**changes):
        section, context = chosen(changes)
        return section.plan(context)

    return call


@pytest.fixture
def make_inputs():
    """Seeded inputs for a policy: frames, a plausible state, the given tasks."""

    def call(policy, task_index, seed=0):
        rng = np.random.default_rng(seed)
        batch = len(task_index)
        frames = rng.integers(0, 256, (batch, *policy.observation_spec.frames_shape), dtype=np.uint8)
        state = rng.normal(0.0, 0.3, (batch, policy.observation_spec.state_dim)).astype(np.float32)
        return PolicyInputs(torch.from_numpy(frames), torch.from_numpy(state), torch.tensor(task_index))

    return call


@pytest.fixture
def tasks():
    return TASKS


@pytest.fixture(scope="module")
def module_build():
    """As `build`, for fixtures that serve a whole file."""
    return build_tiny
