"""Small demonstrations in LIBERO's layout, and recipes of a few updates on them."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from rich.console import Console

from vla_rl.recipe import build_supervised_recipe
from vla_rl.sft.stage import SupervisedOutcome, supervise

TASKS = ("pick_up_the_black_bowl_on_the_stove_and_place_it_on_the_plate", "pick_up_the_red_bowl")
SIZE = 16  # pixels: what a policy of 14 pixels is shown
RECIPE = """
name: t
demos: {{path: {path}, held_out: 0.0}}
policy: {{name: openvla_oft, checkpoint: tiny, image_size: 14, lora: null, train_backbone: true}}
augmentation: {{crop: 0.9}}
optimizer: {{policy_lr: 3.0e-3, value_lr: 3.0e-3, schedule: constant}}
learner: {{micro_batch: 4}}
runtime: {{device: cpu, threads_per_process: 1, loader_threads: 2}}
budget: {{optimizer_steps: 4}}
logging: {{tensorboard: false}}
"""


def write_demos(folder: Path, *, tasks: tuple[str, ...] = TASKS, episodes: int = 2, rows: int = 12) -> Path:
    """Demonstrations whose pictures are nearly of one colour, which says what the actions are."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, task in enumerate(tasks):
        with h5py.File(folder / f"{task}_demo.hdf5", "w") as file:
            for episode in range(episodes):
                random = np.random.default_rng([number, episode])
                actions = np.repeat(random.uniform(-0.8, 0.8, (1, 7)), rows, axis=0) + 0.01 * random.normal(
                    size=(rows, 7)
                )
                actions[:, 6] = -1.0 if episode % 2 else 1.0
                demo = file.create_group(f"data/demo_{episode}")
                demo["actions"] = actions
                demo["obs/ee_states"] = random.normal(size=(rows, 6))
                demo["obs/gripper_states"] = random.normal(size=(rows, 2))
                colour = random.integers(30, 220, 3)
                for camera in ("agentview_rgb", "eye_in_hand_rgb"):
                    noise = random.integers(0, 20, (rows, SIZE, SIZE, 3))
                    demo[f"obs/{camera}"] = (colour + noise).astype(np.uint8)
    return folder


@pytest.fixture(scope="session")
def demos(tmp_path_factory) -> Path:
    return write_demos(tmp_path_factory.mktemp("demos") / "toys")


def train(run_dir: Path, path: Path, *overrides: str, resume: bool = False) -> SupervisedOutcome:
    """Train on demonstrations with `RECIPE` and overrides in this process."""
    recipe = build_supervised_recipe(RECIPE.format(path=path), overrides)
    outcome = supervise(recipe, run_dir=run_dir, resume=resume, console=Console(quiet=True))
    assert outcome is not None
    return outcome


@pytest.fixture
def run(demos, tmp_path):
    """Train in this process, in folders of the test's own."""

    def train_here(*overrides: str, name: str = "run", path: Path = demos, resume: bool = False) -> SupervisedOutcome:
        return train(tmp_path / name, path, *overrides, resume=resume)

    return train_here
