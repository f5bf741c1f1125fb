import numpy as np
import pytest
import torch

from vla_rl.policies.build import build_openvla_oft
from vla_rl.policies.lora import LoraSettings
from vla_rl.types import PolicyInputs

TASKS = ("pick up the red mug", "turn on the stove and put the moka pot on it", "open the drawer")
TINY = {
    "checkpoint": "tiny",
    "profile": "auto",
    "tasks": TASKS,
    "statistics_key": "libero_spatial",
    "num_images": 1,
    "image_size": 28,
    "proprio": True,
    "lora": LoraSettings(rank=4),
    "train_action_rows": True,
    "train_proprio_projector": True,
    "value_head": "attention_pool",
    "detach_value": True,
    "dtype": "float32",
    "gradient_checkpointing": False,
    "seed": 0,
    "device": "cpu",
}


@pytest.fixture
def build():
    """The tiny policy, four patches per image, with some of its choices replaced."""

    def call(**changes):
        return build_openvla_oft(**{**TINY, **changes})

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


@pytest.fixture
def build_arguments():
    return TINY


@pytest.fixture(scope="module")
def module_build():
    """As `build`, for fixtures that serve a whole file."""

    def call(**changes):
        return build_openvla_oft(**{**TINY, **changes})

    return call
