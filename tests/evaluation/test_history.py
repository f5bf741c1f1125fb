"""Histories of policies: what goes into them, and what stays out."""

from __future__ import annotations

from pathlib import Path

import pytest

from vla_rl.evaluation.history import history_of_run, record_history, recorded_history, shareable
from vla_rl.files import atomic_write_json


def write_run(folder: Path, *, checkpoint: str | None = None, name: str = "arm") -> Path:
    """The files of a run that a history is made of."""
    policy = {"name": "openvla_oft"} | ({} if checkpoint is None else {"checkpoint": checkpoint})
    recipe = {"name": name, "seed": 3, "policy": policy, "logging": {"mlflow": {"tracking_uri": "https://lab"}}}
    source = {"commit": "abc", "dirty": True}
    manifest = {"recipe": recipe, "versions": {"torch": "2.13", "bddl": None}, "source": source, "deviations": ["x"]}
    atomic_write_json(folder / "manifest.json", manifest | {"started": "2026-01-02T03:04:05+00:00"})
    progress = {"optimizer_steps": 7, "env_steps": 100, "episodes": 4, "decisions": 13}
    atomic_write_json(folder / "checkpoints" / "optimizer_step_7" / "state.json", {"progress": progress})
    return folder / "checkpoints" / "optimizer_step_7"


def test_a_history_has_the_clocks_of_its_checkpoint_and_the_facts_of_its_run(tmp_path: Path) -> None:
    history = history_of_run(tmp_path, write_run(tmp_path), stage="train")
    assert history is not None
    assert (history.optimizer_steps, history.env_steps, history.episodes) == (7, 100, 4)
    assert (history.run, history.versions, history.deviations) == ("arm", {"torch": "2.13"}, ("x",))
    assert (history.commit, history.has_local_changes, history.base) == ("abc", True, None)
    assert history.recipe == {"name": "arm", "seed": 3, "policy": {"name": "openvla_oft"}}


def test_a_supervised_stage_plays_no_episodes(tmp_path: Path) -> None:
    history = history_of_run(tmp_path, write_run(tmp_path), stage="sft")
    assert history is not None
    assert (history.env_steps, history.episodes) == (None, None)


def test_a_run_that_began_from_a_policy_with_a_history_has_both(tmp_path: Path) -> None:
    cloned, policy = tmp_path / "cloned", tmp_path / "cloned" / "policy"
    first = history_of_run(cloned, write_run(cloned, name="clone"), stage="sft")
    atomic_write_json(policy / "vla_rl.json", {"profile": "simplevla"})
    record_history(policy, first)
    second = history_of_run(tmp_path / "run", write_run(tmp_path / "run", checkpoint=str(policy)), stage="train")
    assert second is not None
    assert second.base == "policy"
    assert second.base_history == first == recorded_history(policy)
    export = tmp_path / "export"
    atomic_write_json(export / "vla_rl.json", {})
    record_history(export, second, exported_from="f" * 16)
    assert recorded_history(export) == second


def test_a_run_without_a_manifest_has_no_history_and_a_broken_one_is_named(tmp_path: Path) -> None:
    checkpoint = write_run(tmp_path)
    atomic_write_json(tmp_path / "manifest.json", {"recipe": 3})
    with pytest.raises(ValueError, match=r"manifest\.json or .*state\.json: expected recipe and versions"):
        history_of_run(tmp_path, checkpoint, stage="train")
    (tmp_path / "manifest.json").unlink()
    assert history_of_run(tmp_path, checkpoint, stage="train") is None


@pytest.mark.parametrize(
    ("field", "written", "shared"),
    [
        ("checkpoint", "/home/ann/secret/policy", "policy"),
        ("checkpoint", "~/policy", "policy"),
        ("checkpoint", "runs/clone/policy", "policy"),
        ("checkpoint", "moojink/openvla-7b-oft-finetuned-libero-spatial", None),
        ("checkpoint", "tiny", None),
        ("path", "../data/demos.hdf5", "demos.hdf5"),
        ("path", "data/demos", "demos"),
        ("description", "better and/or faster", None),
        ("suite", "libero_goal", None),
    ],
)
def test_paths_are_reduced_to_their_last_part_and_names_stay_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, field: str, written: str, shared: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    assert shareable({"part": {field: written}}) == {"part": {field: shared or written}}


def test_what_is_about_the_machine_is_left_out() -> None:
    recipe = {"name": "arm", "logging": {}, "runtime": {"device": "cpu"}, "checkpoint": {"keep": 3}, "replay": {"k": 1}}
    recipe["rollout"] = {"env_workers": 4, "remote": ["10.0.0.7:10001"]}
    assert shareable(recipe) == {"name": "arm", "replay": {"k": 1}, "rollout": {"env_workers": 4}}
