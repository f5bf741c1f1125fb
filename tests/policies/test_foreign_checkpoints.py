"""Folders as they come from elsewhere: loaded rightly or refused by name, and told alike before anything starts."""

import json
import re
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from vla_rl.cli.main import app
from vla_rl.policies.openvla_oft import OpenVLAOFT
from vla_rl.policies.openvla_oft.checkpoint_files import find_files, unused_shapes
from vla_rl.policies.openvla_oft.checkpoint_reader import empty_model
from vla_rl.policies.openvla_oft.checkpoint_writer import write_checkpoint
from vla_rl.policies.openvla_oft.config import OFTConfig, config_to_json
from vla_rl.policies.openvla_oft.heads import L1ActionHead
from vla_rl.policies.openvla_oft.profiles import PROFILES

BASE = {"image_size": None, "num_images": 1, "proprio": True}
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
BIAS = "projector.fc2.bias"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 18558320\n"
RECIPE = """
name: small
env: {{name: libero, suite: libero_goal, tasks: [3]}}
policy: {{name: openvla_oft, checkpoint: {checkpoint}, lora: null}}
surrogate: {{name: gipo}}
budget: {{optimizer_steps: 10}}
"""


@pytest.fixture(scope="module")
def originals(tmp_path_factory, module_build):
    """The same weights in one file and in three shards, and other weights in shards."""
    root = tmp_path_factory.mktemp("originals")
    policies = {"single": module_build(lora=None), "sharded": module_build(lora=None)}
    policies["others"] = module_build(lora=None, seed=1)
    for name, policy in policies.items():
        (root / name).mkdir()
        size = 10**10 if name == "single" else 9_000_000
        write_checkpoint(policy, root / name, step=7, max_shard_bytes=size)
    return root


@pytest.fixture
def folder(originals, tmp_path):
    """A copy of the single file's folder, to damage."""
    return shutil.copytree(originals / "single", tmp_path / "checkpoint")


def add_shards(folder, source):
    for path in source.glob("model*"):
        shutil.copy(path, folder)


def describe(plan_tiny, directory):
    """What a dry run builds: everything but the weights."""
    return plan_tiny(checkpoint=str(directory), **BASE, lora=None)


def refused(plan_tiny, directory, message):
    """Before the start and when loading, in the same words; returns them."""
    with pytest.raises(ValueError, match=message) as before:
        describe(plan_tiny, directory)
    with pytest.raises(ValueError, match=message) as loading:
        OpenVLAOFT.from_pretrained(directory)
    assert str(before.value) == str(loading.value)
    return str(before.value)


def run_commands(message):
    """Type what a message says to type, in a shell of its own; returns how many commands it says."""
    commands = re.findall(r"`([^`]+)`", message) + re.findall(r"Convert it: (python .*)", message)
    for command in commands:
        subprocess.run(command.replace("python -c", f"{sys.executable} -c"), shell=True, check=True)
    return len(commands)


def edit_weights(folder, change):
    tensors = load_file(folder / SINGLE)
    save_file(change(tensors), folder / SINGLE)


# --- two sets of weights ---------------------------------------------------------------------------------------------


def test_equal_weights_in_one_file_and_in_shards_are_one_checkpoint(originals, folder):
    add_shards(folder, originals / "sharded")
    assert find_files(folder).shards == (folder / SINGLE,)


def test_other_weights_in_one_file_and_in_shards_are_refused_with_both_named(originals, folder, plan_tiny):
    add_shards(folder, originals / "others")
    message = refused(plan_tiny, folder, "two sets of weights and not the same")
    assert SINGLE in message
    assert f"{INDEX}, model-00001-of-00003.safetensors" in message


@pytest.mark.parametrize(("way", "kept"), [(0, "single"), (1, "others")])
def test_the_advised_command_leaves_the_set_that_was_chosen(originals, folder, way, kept):
    add_shards(folder, originals / "others")
    with pytest.raises(ValueError, match="two sets") as raised:
        find_files(folder)
    command = re.findall(r"`([^`]+)`", str(raised.value))[way]
    assert run_commands(f"`{command}`") == 1
    loaded, meant = OpenVLAOFT.from_pretrained(folder), OpenVLAOFT.from_pretrained(originals / kept)
    assert torch.equal(loaded.get_parameter(BIAS), meant.get_parameter(BIAS))


def test_a_single_differing_number_makes_two_sets_differ(originals, folder):
    """Action rows alone may differ: 256 of 32064 rows of one tensor."""
    add_shards(folder, originals / "sharded")
    edit_weights(folder, lambda it: it | {"language_model.lm_head.weight": nudged(it["language_model.lm_head.weight"])})
    with pytest.raises(ValueError, match=r"language_model\.lm_head\.weight differs"):
        find_files(folder)


def nudged(tensor):
    changed = tensor.clone()
    changed[31_800, 3] += 1.0
    return changed


def test_an_index_that_was_left_behind_does_not_matter(originals, folder):
    shutil.copy(originals / "others" / INDEX, folder)
    assert find_files(folder).shards == (folder / SINGLE,)


def test_an_index_of_the_single_file_is_its_index(folder):
    names = load_file(folder / SINGLE)
    (folder / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(names, SINGLE)}))
    assert find_files(folder).shards == (folder / SINGLE,)


def test_a_shard_that_was_left_behind_beside_the_single_file_is_refused(originals, folder):
    shutil.copy(originals / "others" / "model-00002-of-00003.safetensors", folder)
    with pytest.raises(ValueError, match=r"model\.safetensors and model-00002-of-00003\.safetensors are two sets"):
        find_files(folder)


def test_a_missing_shard_is_named(originals, tmp_path):
    folder = shutil.copytree(originals / "sharded", tmp_path / "sharded")
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(ValueError, match=r"missing model-00002-of-00003\.safetensors"):
        find_files(folder)


def test_a_shard_that_the_index_does_not_name_is_refused_and_the_advice_helps(originals, tmp_path):
    folder = shutil.copytree(originals / "sharded", tmp_path / "sharded")
    shutil.copy(folder / "model-00001-of-00003.safetensors", folder / "model-00001-of-00002.safetensors")
    with pytest.raises(ValueError, match=r"model-00001-of-00002\.safetensors is not in") as raised:
        find_files(folder)
    assert run_commands(str(raised.value)) == 1
    assert len(find_files(folder).shards) == 3


def test_shards_without_their_index_are_told_what_is_missing(originals, tmp_path):
    folder = shutil.copytree(originals / "sharded", tmp_path / "sharded")
    (folder / INDEX).unlink()
    with pytest.raises(ValueError, match=rf"missing {re.escape(INDEX)}, which says what is in model-00001"):
        find_files(folder)


def test_an_index_of_other_shards_is_refused(originals, tmp_path, plan_tiny):
    """As after a second export whose shards are cut elsewhere."""
    folder = shutil.copytree(originals / "sharded", tmp_path / "sharded")
    content = json.loads((folder / INDEX).read_text())
    content["weight_map"][BIAS] = "model-00002-of-00003.safetensors"
    moved = json.loads((originals / "sharded" / INDEX).read_text())["weight_map"][BIAS]
    assert moved != content["weight_map"][BIAS]
    (folder / INDEX).write_text(json.dumps(content))
    refused(plan_tiny, folder, r"says that projector\.fc2\.bias is in model-00002")
    del content["weight_map"][BIAS]
    (folder / INDEX).write_text(json.dumps(content))
    refused(plan_tiny, folder, rf"{moved} holds projector\.fc2\.bias, of which .* does not know")


# --- what headers tell -----------------------------------------------------------------------------------------------


def pointer(name):
    def damage(folder):
        (folder / name).write_text(POINTER)

    return damage


def cut_off(folder):
    with (folder / SINGLE).open("r+b") as file:
        file.truncate(10_000_000)


def cut_off_in_the_header(folder):
    with (folder / SINGLE).open("r+b") as file:
        file.truncate(100)


def appended(folder):
    with (folder / SINGLE).open("ab") as file:
        file.write(b"more")


def an_error_page(folder):
    (folder / SINGLE).write_text("<!DOCTYPE html><html>Not found</html>")


def an_unknown_tensor(folder):
    edit_weights(folder, lambda tensors: tensors | {"value_head.weight": torch.zeros(3)})


def a_missing_tensor(folder):
    edit_weights(folder, lambda tensors: {name: each for name, each in tensors.items() if name != BIAS})


def a_misshapen_tensor(folder):
    edit_weights(folder, lambda tensors: tensors | {BIAS: torch.zeros(3)})


def a_quantised_tensor(folder):
    edit_weights(folder, lambda tensors: tensors | {BIAS: tensors[BIAS].to(torch.int8)})


def an_adapter_that_is_not_merged(folder):
    edit_weights(
        folder,
        lambda tensors: (
            {f"base_model.model.{name}": each for name, each in tensors.items()}
            | {
                "base_model.model.language_model.model.layers.0.self_attn.q_proj.lora_A.default.weight": torch.zeros(
                    4, 64
                )
            }
        ),
    )


def a_tensor_twice(folder):
    edit_weights(folder, lambda tensors: tensors | {f"module.{BIAS}": torch.zeros(64)})


def a_projector_of_another_width(folder):
    state = torch.load(folder / "proprio_projector--7_checkpoint.pt", weights_only=True)
    state["fc1.weight"] = torch.zeros(64, 9)
    torch.save(state, folder / "proprio_projector--7_checkpoint.pt")


def a_projector_cut_off(folder):
    path = folder / "proprio_projector--7_checkpoint.pt"
    path.write_bytes(path.read_bytes()[:3000])


DAMAGES = [
    (pointer(SINGLE), r"model\.safetensors: a git-lfs pointer, .*`cd \S+ && git lfs pull`"),
    (pointer("proprio_projector--7_checkpoint.pt"), r"projector--7_checkpoint\.pt: a git-lfs pointer"),
    (cut_off, r"not a complete safetensors file \(its header promises \d+ bytes, the file has 10000000\)"),
    (cut_off_in_the_header, "not a complete safetensors file .*does not fit into its 100 bytes"),
    (appended, "not a complete safetensors file"),
    (an_error_page, "not a complete safetensors file"),
    (an_unknown_tensor, "holds the tensor 'value_head.weight', which OpenVLA-OFT does not have"),
    (a_missing_tensor, r"1 tensors are missing: projector\.fc2\.bias"),
    (a_misshapen_tensor, r"projector\.fc2\.bias has shape \(3,\), config\.json implies \(64,\)"),
    (a_quantised_tensor, r"projector\.fc2\.bias is stored as I8.*quantised checkpoints are not read"),
    (
        an_adapter_that_is_not_merged,
        r"q_proj\.lora_A\.default\.weight'.*saved around adapters.*merge_and_unload",
    ),
    (a_tensor_twice, r"holds '(module\.)?projector\.fc2\.bias', and .* holds that tensor too"),
    (a_projector_of_another_width, r"proprio_projector\.fc1\.weight has shape \(64, 9\), .* implies \(64, 8\)"),
    (a_projector_cut_off, r"proprio_projector--7_checkpoint\.pt: cannot be read as a plain state dict"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGES)
def test_weights_that_do_not_fit_are_told_alike_before_the_start_and_when_loading(folder, plan_tiny, damage, message):
    damage(folder)
    refused(plan_tiny, folder, message)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "dataset_statistics.json"])
def test_small_files_may_be_pointers_too(folder, plan_tiny, name):
    pointer(name)(folder)
    with pytest.raises(ValueError, match=rf"{re.escape(name)}: a git-lfs pointer"):
        describe(plan_tiny, folder)


@pytest.mark.parametrize("damage", [pointer(SINGLE), an_unknown_tensor, a_missing_tensor, cut_off])
def test_train_eval_and_export_refuse_in_the_same_words(folder, tmp_path, damage):
    damage(folder)
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(checkpoint=folder))
    verbs = [
        ["train", str(tmp_path / "recipe.yaml"), "--dry-run"],
        ["train", str(tmp_path / "recipe.yaml"), "--run-dir", str(tmp_path / "run")],
        ["eval", str(folder), "--suite", "libero_goal", "--out", str(tmp_path / "eval")],
        ["export", str(folder), "--out", str(tmp_path / "export")],
    ]
    done = [CliRunner().invoke(app, verb) for verb in verbs]
    assert [each.exit_code for each in done] == [2, 2, 2, 2]
    assert len({each.stderr for each in done}) == 1, [each.stderr for each in done]
    assert not any((tmp_path / name).exists() for name in ("run", "eval", "export"))


@pytest.mark.parametrize("wrapper", ["module.", "base_model.model.", "_orig_mod.", "module._orig_mod."])
def test_what_wrappers_put_before_every_name_is_taken_off(originals, folder, plan_tiny, wrapper):
    edit_weights(folder, lambda tensors: {f"{wrapper}{name}": each for name, each in tensors.items()})
    describe(plan_tiny, folder)
    plain, wrapped = (OpenVLAOFT.from_pretrained(path) for path in (originals / "single", folder))
    for (name, one), (_, other) in zip(plain.named_parameters(), wrapped.named_parameters(), strict=True):
        assert torch.equal(one, other), name


def test_tables_that_old_versions_of_transformers_store_are_ignored(folder, plan_tiny):
    table = "language_model.model.layers.0.self_attn.rotary_emb.inv_freq"
    edit_weights(folder, lambda tensors: tensors | {table: torch.zeros(8)})
    describe(plan_tiny, folder)
    OpenVLAOFT.from_pretrained(folder)


@pytest.mark.parametrize("parts", [1, 2])
def test_weights_in_torch_s_own_format_come_with_the_command_that_converts_them(originals, folder, plan_tiny, parts):
    tensors = list(load_file(folder / SINGLE).items())
    (folder / SINGLE).unlink()
    for part in range(parts):
        name = "pytorch_model.bin" if parts == 1 else f"pytorch_model-{part + 1:05d}-of-{parts:05d}.bin"
        torch.save(dict(tensors[part::parts]), folder / name)
    assert run_commands(refused(plan_tiny, folder, "in torch's own format")) == 1
    for name, tensor in load_file(originals / "single" / SINGLE).items():
        assert torch.equal(load_file(folder / SINGLE)[name], tensor)
    describe(plan_tiny, folder)


def test_a_checkpoint_of_the_real_size_is_checked_by_its_headers(originals, tmp_path, plan_tiny):
    """982 tensors of 15 GB in three shards that hold nothing: reading them would take minutes and memory."""
    config = OFTConfig()
    model = empty_model(OpenVLAOFT, config, PROFILES["simplevla"], proprio=False, l1_head=False, dtype=torch.bfloat16)
    shapes = {**{name: tuple(each.shape) for name, each in model.named_parameters()}, **unused_shapes(config)}
    assert len(shapes) == 982
    names, weight_map, total = sorted(shapes), {}, 0
    for part in range(3):
        file, header, end = f"model-{part + 1:05d}-of-00003.safetensors", {}, 0
        for name in names[part::3]:
            size = 2 * torch.Size(shapes[name]).numel()
            header[name] = {"dtype": "BF16", "shape": shapes[name], "data_offsets": [end, end + size]}
            end += size
            weight_map[name] = file
        text = json.dumps(header).encode()
        with (tmp_path / file).open("wb") as hollow:
            hollow.write(len(text).to_bytes(8, "little") + text)
            hollow.truncate(8 + len(text) + end)
        total += end
    assert total == 15_082_474_368  # of the published index
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    for name in ("tokenizer.json", "preprocessor_config.json", "dataset_statistics.json"):
        shutil.copy(originals / "single" / name, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config_to_json(config)))
    arguments = {"checkpoint": str(tmp_path), **BASE, "lora": None, "dtype": "bfloat16"}
    plan_tiny(**arguments)
    with (tmp_path / "model-00002-of-00003.safetensors").open("r+b") as file:
        file.truncate(4_000_000_000)
    with pytest.raises(ValueError, match=r"model-00002-of-00003\.safetensors: not a complete safetensors file"):
        plan_tiny(**arguments)


# --- components ------------------------------------------------------------------------------------------------------


def save_head(folder, name):
    torch.save(L1ActionHead(width=64, chunk_size=8, action_dim=7).state_dict(), folder / name)


def test_components_of_different_steps_are_of_different_checkpoints(folder):
    save_head(folder, "action_head--8_checkpoint.pt")
    with pytest.raises(ValueError, match=r"action_head--8_\S+ and proprio_projector--7_\S+ are of different steps"):
        find_files(folder)
    (folder / "action_head--8_checkpoint.pt").rename(folder / "action_head--7_checkpoint.pt")
    assert find_files(folder).action_head is not None


def test_two_heads_are_refused(folder):
    save_head(folder, "action_head--7_checkpoint.pt")
    save_head(folder, "action_head--latest_checkpoint.pt")
    with pytest.raises(ValueError, match=r"several files for action_head \(action_head--7_\S+, action_head--latest_"):
        find_files(folder)


def test_a_head_under_another_name_is_not_overlooked(folder):
    save_head(folder, "action_head.pt")
    (folder / "proprio_projector--7_checkpoint.pt").rename(folder / "proprio_projector--0_checkpoint.pt")
    with pytest.raises(ValueError, match="has 'checkpoint' in the name of its action_head file") as raised:
        find_files(folder)
    assert len(re.findall(r"`(mv [^`]+)`", str(raised.value))) == run_commands(str(raised.value)) == 1
    assert find_files(folder).action_head == folder / "action_head--0_checkpoint.pt"
