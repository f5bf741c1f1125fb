"""Folders of a fine-tuning whose adapter was not merged: what was trained together is loaded together."""

import json
import re
import shutil
import subprocess

import pytest
import torch
from safetensors.torch import save_file

from vla_rl.evaluation.policy_source import find_policy
from vla_rl.policies.openvla_oft import OpenVLAOFT
from vla_rl.policies.openvla_oft.checkpoint_files import find_files
from vla_rl.policies.openvla_oft.checkpoint_writer import write_checkpoint
from vla_rl.policies.openvla_oft.heads import L1ActionHead
from vla_rl.policies.openvla_oft.source import find_checkpoint

LINEAR = "language_model.model.layers.1.mlp.down_proj"  # (64, 172)
HEAD, PROJECTOR = "action_head--9_checkpoint.pt", "proprio_projector--9_checkpoint.pt"
QUANTILES = {"q01": [-1.0] * 7, "q99": [3.0] * 7}


@pytest.fixture(scope="module")
def weights(tmp_path_factory, module_build):
    """A base without components."""
    folder = tmp_path_factory.mktemp("unmerged") / "base"
    folder.mkdir()
    write_checkpoint(module_build(lora=None, proprio=False), folder, step=1)
    (folder / "value_head.safetensors").unlink()
    return folder


@pytest.fixture
def base(weights, tmp_path):
    return shutil.copytree(weights, tmp_path / "base")


def write_head(folder, name=HEAD):
    torch.manual_seed(3)
    head = L1ActionHead(width=64, chunk_size=8, action_dim=7)
    torch.save({f"module.{key}": value for key, value in head.state_dict().items()}, folder / name)


def write_projector(folder, name=PROJECTOR):
    shapes = {"fc1.weight": (64, 8), "fc1.bias": (64,), "fc2.weight": (64, 64), "fc2.bias": (64,)}
    torch.save({f"module.{key}": torch.full(shape, 0.5) for key, shape in shapes.items()}, folder / name)


def write_adapter(folder, base):
    folder.mkdir(parents=True)
    factors = {f"{LINEAR}.lora_A.weight": torch.ones(2, 172), f"{LINEAR}.lora_B.weight": torch.ones(64, 2)}
    save_file({f"base_model.model.{key}": each for key, each in factors.items()}, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 1, "bias": "none", "base_model_name_or_path": str(base)}
    (folder / "adapter_config.json").write_text(json.dumps(config))


def write_statistics(folder, *keys):
    content = {key: {"action": QUANTILES, "proprio": {"q01": [0.0] * 8, "q99": [1.0] * 8}} for key in keys}
    (folder / "dataset_statistics.json").write_text(json.dumps(content))


@pytest.fixture
def run(base, tmp_path):
    """What fine-tuning of OpenVLA-OFT leaves without merging: no config.json, no shards."""
    folder = tmp_path / "run"
    write_adapter(folder / "lora_adapter", base)
    write_statistics(folder, "my_data")
    write_head(folder)
    write_projector(folder)
    return folder


@pytest.mark.parametrize("below", ["", "lora_adapter"])
def test_adapter_projector_head_and_statistics_are_one_checkpoint(run, base, below):
    files = find_files(run / below)
    assert files.home.samefile(run)
    assert files.directory == base
    assert [path.name for path in (files.action_head, files.proprio_projector)] == [HEAD, PROJECTOR]
    source = find_checkpoint(run / below, profile="auto")
    assert source.dataset_statistics("my_data").action.q99.tolist() == [3.0] * 7
    plain, loaded = OpenVLAOFT.from_pretrained(base), OpenVLAOFT.from_pretrained(run / below)
    difference = loaded.get_parameter(f"{LINEAR}.weight") - plain.get_parameter(f"{LINEAR}.weight")
    torch.testing.assert_close(difference, torch.ones(64, 172))  # alpha / r times two products of ones
    assert (loaded.get_parameter("proprio_projector.fc1.weight") == 0.5).all()
    assert loaded.action_head is not None


def test_the_same_network_is_loaded_where_the_base_is_given_with_the_adapter(run, base):
    whole = OpenVLAOFT.from_pretrained(run)
    for adapter in (run, run / "lora_adapter"):
        given = OpenVLAOFT.from_pretrained(base, adapter=adapter)
        for (name, one), (_, other) in zip(whole.named_parameters(), given.named_parameters(), strict=True):
            assert torch.equal(one, other), name


def test_a_run_is_evaluated_as_one_and_its_head_counts_in_the_fingerprint(run):
    before = find_policy(str(run), profile="auto")
    assert before.num_images == 2  # of checkpoints with an L1 head
    write_projector(run)
    torch.save({"module.model.fc2.bias": torch.zeros(7)}, run / HEAD)
    assert find_policy(str(run), profile="auto").fingerprint != before.fingerprint


def test_what_only_the_base_has_is_ambiguous_and_the_advice_settles_it(run, base):
    write_projector(base)
    (run / PROJECTOR).unlink()
    with pytest.raises(ValueError, match="no proprio_projector file beside lora_adapter") as raised:
        find_files(run)
    command = re.search(r"`([^`]+)`", str(raised.value))[1]
    subprocess.run(command, shell=True, check=True)
    assert find_files(run).proprio_projector == run / PROJECTOR


def test_the_run_s_components_come_before_those_of_its_base(run, base):
    write_projector(base, "proprio_projector--1_checkpoint.pt")
    write_head(base, "action_head--1_checkpoint.pt")
    files = find_files(run)
    assert [path.name for path in (files.action_head, files.proprio_projector)] == [HEAD, PROJECTOR]


def test_components_in_both_folders_are_ambiguous(run):
    write_projector(run / "lora_adapter")
    for given in (run, run / "lora_adapter"):
        with pytest.raises(ValueError, match="both hold proprio_projector, and nothing says which"):
            find_files(given)


def test_an_adapter_that_is_merged_into_the_shards_beside_it_is_not_merged_again(run, base):
    """The layout of published checkpoints."""
    for path in base.iterdir():
        if path.name != "dataset_statistics.json":
            shutil.copy(path, run)
    assert find_files(run).adapter is None
    assert find_files(run).action_head == run / HEAD
    with pytest.raises(ValueError, match=f"merged this adapter into the shards beside it already; load {run} itself"):
        find_files(run / "lora_adapter")
    with pytest.raises(ValueError, match="merged this adapter into the shards beside it already"):
        find_files(run, adapter=run / "lora_adapter")
    assert find_files(base, adapter=run / "lora_adapter").adapter is not None  # asked for, into other shards


def test_an_adapter_below_its_own_base_is_merged_into_it(base):
    write_adapter(base / "lora_adapter", base)
    assert find_files(base).adapter is None
    files = find_files(base / "lora_adapter")
    assert (files.directory, files.adapter) == (base, base / "lora_adapter")


@pytest.mark.parametrize("files", [["adapter_model.safetensors", "adapter_model.bin"], ["adapter_model.bin"]])
def test_an_adapter_in_torch_s_own_format_is_refused_alone_and_beside_the_other(run, files):
    folder = run / "lora_adapter"
    torch.save({}, folder / "adapter_model.bin")
    if len(files) == 1:
        (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(ValueError, match=" and ".join(files) if len(files) == 2 else "Convert it: python") as raised:
        find_files(run)
    if len(files) == 2:
        subprocess.run(re.search(r"`([^`]+)`", str(raised.value))[1], shell=True, check=True)
        assert find_files(run).adapter == folder


def test_a_folder_of_several_checkpoints_names_them(run, base):
    with pytest.raises(ValueError, match=rf"(?s){base} is one of these.*{run} is one of these"):
        find_policy(str(run.parent), profile="auto")
