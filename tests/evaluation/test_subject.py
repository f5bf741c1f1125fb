"""What can be evaluated, and how the rest is refused."""

import json
import shutil

import pytest

from vla_rl.evaluation.subject import find_subject
from vla_rl.learner.checkpoint import CheckpointError


def test_a_run_stands_for_its_newest_checkpoint(trained):
    by_run = find_subject(str(trained), profile="auto")
    by_checkpoint = find_subject(str(trained / "checkpoints" / "optimizer_step_30"), profile="auto")
    assert by_run == by_checkpoint
    assert by_run.checkpoint == trained / "checkpoints" / "optimizer_step_30"
    assert by_run.home == trained / "eval"
    assert by_run.trained_on == "toy (tasks: 0,1), sampled initial states"


def test_a_moved_run_is_the_same_policy(trained, tmp_path):
    moved = shutil.copytree(trained, tmp_path / "moved")
    fingerprints = {find_subject(str(path), profile="auto").fingerprint for path in (trained, moved)}
    assert len(fingerprints) == 1


def test_a_damaged_checkpoint_is_refused(trained, tmp_path):
    moved = shutil.copytree(trained, tmp_path / "moved")
    checkpoint = moved / "checkpoints" / "optimizer_step_30"
    weights = bytearray((checkpoint / "policy.safetensors").read_bytes())
    weights[-1] ^= 1
    (checkpoint / "policy.safetensors").write_bytes(weights)
    for target in (checkpoint, moved):
        with pytest.raises(CheckpointError, match="damaged"):
            find_subject(str(target), profile="auto")


def directory(path, weights=b"weights"):
    path.mkdir()
    (path / "config.json").write_text("{}")
    (path / "model.safetensors").write_bytes(weights)
    return path


def test_a_checkpoint_directory_is_a_policy_of_unknown_training(tmp_path):
    subject = find_subject(str(directory(tmp_path / "merged")), profile="rlinf")
    assert subject.checkpoint is None
    assert subject.recipe.policy.checkpoint == str(tmp_path / "merged")
    assert subject.recipe.policy.profile == "rlinf"
    assert subject.recipe.policy.lora is None
    assert subject.trained_on == "unknown"
    assert str(subject.home) == "runs/merged/eval"  # never into the user's folder


def test_other_weights_have_another_fingerprint(tmp_path):
    large = bytes(10_000_000)
    changed = large[:5_000_000] + bytes([1]) * 1_000_000 + large[6_000_000:]
    fingerprints = [
        find_subject(str(directory(tmp_path / str(number), weights)), profile="auto").fingerprint
        for number, weights in enumerate([large, large, changed, large + b"0", b"short"])
    ]
    assert fingerprints[0] == fingerprints[1]
    assert len(set(fingerprints)) == 4


@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        ({}, "holds neither recipe.yaml"),
        ({"adapter_config.json": json.dumps({"r": 32})}, "LoRA adapter without the weights"),
    ],
)
def test_a_folder_that_is_no_policy_is_told_why(tmp_path, files, complaint):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(CheckpointError, match=complaint):
        find_subject(str(tmp_path), profile="auto")


def test_a_run_without_a_checkpoint_is_told_so(trained, tmp_path):
    shutil.copy(trained / "recipe.yaml", tmp_path)
    with pytest.raises(CheckpointError, match="holds no whole checkpoint"):
        find_subject(str(tmp_path), profile="auto")


def test_a_file_is_no_policy(trained):
    with pytest.raises(CheckpointError, match="it is a file"):
        find_subject(str(trained / "recipe.yaml"), profile="auto")


def test_nothing_is_downloaded_unasked(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match="`hf download nobody/nothing-of-this-name`"):
        find_subject("nobody/nothing-of-this-name", profile="auto")
    with pytest.raises(CheckpointError, match="does not exist"):
        find_subject("runs/a/b/c", profile="auto")
