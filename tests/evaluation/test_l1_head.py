"""A checkpoint with an L1 head is evaluated by the actions that its head computes, and is not trained."""

import importlib.util
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from vla_rl.envs.libero.assets import Assets
from vla_rl.envs.libero.check import SimulatorReport
from vla_rl.envs.libero.suites import libero_tasks
from vla_rl.errors import UserError
from vla_rl.evaluation.control import CONTROLS
from vla_rl.evaluation.episode_log import read_episodes
from vla_rl.evaluation.eval_options import EvalOptions
from vla_rl.evaluation.evaluate import evaluate
from vla_rl.evaluation.policy_source import find_policy
from vla_rl.policies.image_transforms import frame_transform
from vla_rl.policies.kind import PolicyContext
from vla_rl.policies.openvla_oft import OpenVLAOFT
from vla_rl.policies.openvla_oft.build import build_openvla_oft
from vla_rl.policies.openvla_oft.checkpoint_writer import write_checkpoint
from vla_rl.policies.openvla_oft.heads import L1ActionHead
from vla_rl.policies.openvla_oft.section import OpenVLAOFTSection
from vla_rl.run.plan import plan_policy
from vla_rl.types import ChunkResult, Observation

pytestmark = pytest.mark.skipif(importlib.util.find_spec("libero") is None, reason="hf-libero is not installed")

EPISODE = EvalOptions(suites=("libero_10",), tasks=(2,), episodes_per_task=1)
SIZE = 28
# Chosen so that a normalised x is the action 2 x + 1, and a state p is the proprioception p - 1.
STATISTICS = {
    "libero_10_no_noops": {
        "action": {"q01": [-1.0] * 6 + [0.0], "q99": [3.0] * 6 + [1.0], "mask": [True] * 6 + [False]},
        "proprio": {"q01": [0.0] * 8, "q99": [2.0] * 8},
    }
}
DINOV2 = np.array([[0.484375, 0.455078125, 0.40625], [0.228515625, 0.2236328125, 0.224609375]])
SIGLIP = np.array([[0.5, 0.5, 0.5], [0.5, 0.5, 0.5]])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The layout of a published one: shards, tokenizer, statistics of one suite, projector, L1 head."""
    folder = tmp_path_factory.mktemp("published") / "l1"
    section = OpenVLAOFTSection(
        name="openvla_oft", image_size=SIZE, lora=None, train_action_rows=False, train_proprio_projector=False
    )
    context = PolicyContext(seed=0, suite="libero_10", tasks=("open the drawer",), num_images=1)
    policy = build_openvla_oft(section, context, device="cpu")
    folder.mkdir()
    write_checkpoint(policy, folder, step=7)
    for name in ("vla_rl.json", "value_head.safetensors"):  # ours alone
        (folder / name).unlink()
    (folder / "dataset_statistics.json").write_text(json.dumps(STATISTICS))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        head = L1ActionHead(width=64, chunk_size=8, action_dim=7)
    with torch.no_grad():
        head.model.fc2.weight.mul_(3.0)
        head.model.fc2.bias[6] = 2.6  # so that the gripper opens and closes
    torch.save(
        {f"module.{name}": value for name, value in head.state_dict().items()}, folder / "action_head--7_checkpoint.pt"
    )
    return folder


class Scene:
    """Noise for pictures, one decision an episode; every observation is kept with the actions that it led to."""

    decisions: list  # (frames, state, actions) of every episode that was played

    def __init__(self, *, suite, task_id, render_size, cameras, horizon, **_choices):
        self.task = libero_tasks(suite)[task_id]
        self.horizon = horizon
        self.shape = (len(cameras), render_size, render_size, 3)

    def reset(self, init_state, *, seed=0):
        noise = np.random.default_rng((init_state, seed))
        frames = noise.integers(0, 256, self.shape, dtype=np.uint8)
        self.observation = Observation(frames, noise.uniform(-0.5, 2.5, 8).astype(np.float32))
        return self.observation

    def step_chunk(self, actions):
        self.decisions.append((self.observation.frames, self.observation.state, actions.copy()))
        return ChunkResult(self.observation, 1.0, terminated=True, truncated=False, executed=len(actions))

    def close(self):
        pass


@pytest.fixture
def decisions(monkeypatch):
    """What is played in place of the simulator."""
    report = SimulatorReport({"mujoco": "3.3.0"}, "osmesa", "a renderer", Assets(Path("assets"), "proxy"), ())
    monkeypatch.setattr("vla_rl.envs.libero.plan.check_simulator", lambda **_choices: report)
    monkeypatch.setattr("vla_rl.envs.libero.plan.check_task_assets", lambda *_choices: None)
    monkeypatch.setattr("vla_rl.envs.libero.plan.build_libero", Scene)
    monkeypatch.setattr(Scene, "decisions", [], raising=False)
    return Scene.decisions


def channels(frame):
    """(H, W, 3) uint8 to the six channels of one image."""
    scaled = frame.astype(np.float64) / 255.0
    return np.concatenate([(scaled - mean) / std for mean, std in (DINOV2, SIGLIP)], axis=-1).transpose(2, 0, 1)


@torch.no_grad()
def head_s_actions(model, tokenizer, frames, state, *, told="turn on the stove and put the moka pot on it"):
    """(8, 7) commands that the network's own method gives, with every scale worked out by hand."""
    text = f"In: What action should the robot take to {told}?\nOut:"
    ids = torch.tensor([tokenizer.encode(text).ids])
    pixels = torch.from_numpy(np.concatenate([channels(frame) for frame in frames])).float()[None]
    proprio = torch.from_numpy(np.clip(state - 1.0, -1.0, 1.0))[None]
    normalised = model.l1_actions(model.action_hidden(pixels, ids, proprio=proprio))[0].double().numpy()
    return np.concatenate([2.0 * normalised[:, :6] + 1.0, np.where(normalised[:, 6:] > 0.5, -1.0, 1.0)], axis=-1)


def test_the_head_s_actions_reach_the_simulator_seeing_blind_and_misled(checkpoint, decisions, tmp_path):
    evaluate(str(checkpoint), replace(EPISODE, seeds=(0, 1), controls=CONTROLS, serial=True, out=tmp_path))
    assert len(decisions) == 6  # two seeds: as it is, without images, and with the next task's instruction
    model, look = OpenVLAOFT.from_pretrained(checkpoint), frame_transform("oft", output_size=SIZE)
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    for index, (frames, state, actions) in enumerate(decisions):
        assert frames.shape[0] == 2  # both cameras
        seen = np.zeros((2, SIZE, SIZE, 3), np.uint8) if index in (2, 3) else look(frames)
        told = {"told": "put the black bowl in the bottom drawer of the cabinet and close it"} if index > 3 else {}
        expected = head_s_actions(model, tokenizer, seen, state, **told)
        np.testing.assert_allclose(actions, expected, rtol=0, atol=2e-4)  # of up to 4, in float32
    grippers = np.concatenate([actions[:, 6] for _, _, actions in decisions])
    assert set(grippers) == {-1.0, 1.0}
    assert np.abs(decisions[0][2] - decisions[2][2]).max() > 1e-2  # the same state, blind
    assert np.abs(decisions[0][2] - decisions[4][2]).max() > 1e-2  # the same state, misled
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert "actions from its L1 head" in manifest["extra"]["policies"]["libero_10"]
    assert manifest["extra"]["temperature"] is None
    assert manifest["extra"]["wrong_instructions"]["libero_10"] == {
        "2": "put the black bowl in the bottom drawer of the cabinet and close it"
    }


@pytest.mark.usefixtures("decisions")
def test_a_checkpoint_that_sees_nothing_is_evaluated_where_the_advised_option_says_so(checkpoint, decisions, tmp_path):
    blind = shutil.copytree(checkpoint, tmp_path / "blind")
    tensors = load_file(blind / "model.safetensors")
    tensors["projector.fc3.weight"] = torch.zeros_like(tensors["projector.fc3.weight"])
    save_file(tensors, blind / "model.safetensors")
    with pytest.raises(UserError, match=r"(?s)images do not matter.*\n--no-self-test starts anyway"):
        evaluate(str(blind), replace(EPISODE, serial=True, out=tmp_path / "refused"))
    assert not decisions
    evaluate(str(blind), replace(EPISODE, serial=True, self_test=False, out=tmp_path / "played"))
    assert len(decisions) == 1


def test_a_temperature_that_could_change_nothing_is_refused(checkpoint, tmp_path):
    with pytest.raises(UserError, match=r"--temperature: found 1\.6.*a temperature has no effect"):
        evaluate(str(checkpoint), replace(EPISODE, temperature=1.6, out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_training_from_it_is_refused_with_the_way_to_evaluate_it(checkpoint):
    setup = find_policy(str(checkpoint), profile="auto").setup("libero_10")
    assert setup.env.cameras == ["agentview", "wrist"]
    with pytest.raises(ValueError, match=r"L1 regression.*`vla-rl eval` takes it as it is"):
        plan_policy(setup)


@pytest.mark.libero
@pytest.mark.slow
def test_an_episode_is_played_by_processes_of_their_own(checkpoint, tmp_path):
    evaluate(str(checkpoint), replace(EPISODE, horizon=8, assets="proxy", out=tmp_path))
    (episode,) = read_episodes(tmp_path / "episodes.jsonl")
    assert episode.env_steps == 8
